"""L-CODEC: conditional dependence by brute force, the choice of units, and the Newton step in float64."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CLASSES,
    HIDDEN,
    IMAGES,
    KEY,
    LOOP,
    MODEL,
    MODES,
    ORIGINAL,
    SPLIT,
    X,
    Y,
    apply,
    assert_close,
    float64,
    forward,
    init,
    log_softmax,
    part,
)

from cujax.adapters import from_function
from cujax.data.batches import examples_at
from cujax.methods import LCodec
from cujax.methods.l_codec import conditional_dependence, foci

ANYTHING = dataclasses.replace(LOOP, retain_tolerance=1.0)
START = float64(ORIGINAL.params)
QUICK = LCodec(perturbations=60)


def brute_force(target, features, given):
    m = len(target)
    rank = [sum(other <= value for other in target) for value in target]
    from_above = [sum(other >= value for other in target) for value in target]

    def neighbour(points, i):
        return min((j for j in range(m) if j != i), key=lambda j: np.sum((points[i] - points[j]) ** 2))

    both = np.concatenate([given, features], axis=1)
    nearest = [min(rank[i], rank[neighbour(both, i)]) for i in range(m)]
    if given.shape[1] == 0:
        above = sum(m * nearest[i] - from_above[i] ** 2 for i in range(m))
        return above / sum(low * (m - low) for low in from_above)
    before = [min(rank[i], rank[neighbour(given, i)]) for i in range(m)]
    return sum(map(np.subtract, nearest, before)) / sum(map(np.subtract, rank, before))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("given", [0, 1, 3])
def test_dependence_is_what_its_formula_says(seed, given):
    rng = np.random.default_rng(seed)
    features, known = rng.normal(size=(40, 2)), rng.normal(size=(40, given))
    target = np.round(features[:, 0] + rng.normal(size=40), seed % 2)  # with ties, and without
    assert conditional_dependence(target, features, known) == pytest.approx(brute_force(target, features, known))


def test_dependence_is_one_of_a_function_and_none_of_what_has_no_part():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2000, 1))
    nothing = np.zeros((2000, 0))
    assert conditional_dependence(np.sin(3 * a[:, 0]), a, nothing) > 0.95
    assert abs(conditional_dependence(b[:, 0], a, nothing)) < 0.05
    assert conditional_dependence(a[:, 0] * b[:, 0], b, a) > 0.8
    assert conditional_dependence(a[:, 0] ** 2, b, a) < 0.1
    assert conditional_dependence(np.zeros(50), a[:50], nothing[:50]) == 0


def test_the_features_that_matter_are_chosen_the_one_that_matters_most_first():
    features = np.random.default_rng(0).normal(size=(1500, 6))
    target = features[:, 4] + 0.4 * np.tanh(2 * features[:, 1])
    assert foci(features, target)[:2] == [4, 1]
    assert foci(features, features[:, 3]) == [3]


@pytest.mark.parametrize("seed", range(4))
def test_features_are_chosen_greedily_while_any_adds(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, 4))
    target = features[:, 2] + 0.7 * features[:, 0] + 0.5 * rng.normal(size=40)
    chosen, left = [], [0, 1, 2, 3]
    while left:
        gains = [brute_force(target, features[:, [column]], features[:, chosen]) for column in left]
        if chosen and max(gains) <= 0:
            break
        chosen.append(left.pop(int(np.argmax(gains))))
    assert foci(features, target) == chosen


def test_one_feature_at_least_is_chosen():
    target = np.arange(6.0)
    features = np.array([0.0, 3, 6, 1, 4, 7])[:, None]
    assert conditional_dependence(target, features, np.zeros((6, 0))) < 0
    assert foci(features, target) == [0]


def perturbed(number):
    """Logits and losses of the copies of one sample that the method draws, by the keys that it has."""
    perturb_key, _ = jax.random.split(jax.random.fold_in(jax.random.split(KEY)[1], number))
    noise = jax.random.normal(jax.random.fold_in(perturb_key, 0), (60, 2, 2, 1))
    return np.asarray(X[SPLIT.forget.indices[number]] + 0.1 * np.asarray(noise, np.float64).reshape(60, 4))


def newton(params, row, retain, units, n, l2=0.001):
    """The head after the step, by the Hessian of the softmax: `E[(diag(p) - p pᵀ) ⊗ z zᵀ]`."""

    def with_one(x):
        return np.concatenate([forward(params, x)[0], np.ones((len(x), 1))], axis=1)

    def probabilities(x):
        return np.exp(log_softmax(forward(params, x)[1]))

    size = HIDDEN + 1
    hessian = np.zeros((len(units) * size,) * 2)
    for z, p in zip(with_one(X[retain]), probabilities(X[retain]), strict=True):
        curvature = (np.diag(p) - np.outer(p, p))[np.ix_(units, units)]
        hessian += np.kron(curvature, np.outer(z, z)) / len(retain)
    z, p = with_one(X[[row]])[0], probabilities(X[[row]])[0]
    gradient = np.concatenate([(p[unit] - (Y[row] == unit)) * z for unit in units])
    step = np.linalg.solve(hessian + l2 * np.eye(len(hessian)), gradient) / (n - 1)
    head = {kind: leaf.copy() for kind, leaf in params["head"].items()}
    for unit, part_of in zip(units, step.reshape(len(units), size), strict=True):
        head["kernel"][:, unit] += part_of[:HIDDEN]
        head["bias"][unit] += part_of[HIDDEN]
    return {"hidden": params["hidden"], "head": head}


def test_samples_are_removed_one_by_one_each_by_a_newton_step_on_the_units_that_matter():
    result = QUICK(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)
    params, chosen = START, []
    for number, row in enumerate(SPLIT.forget.indices):
        logits = forward(params, perturbed(number))[1]
        units = foci(logits, -log_softmax(logits)[:, Y[row]])
        params = newton(params, row, SPLIT.retain.indices, units, 9 - number)
        chosen.append(units)
    for found, wanted in zip(jax.tree.leaves(result.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())
    moved = np.abs(params["head"]["kernel"] - START["head"]["kernel"]).max()
    assert moved > 0.05
    assert any(len(units) < CLASSES for units in chosen)


def test_a_step_and_its_noise_to_float32():
    # With so much on the diagonal of the Hessian, the solution has hardly more error than its arguments.
    method = dataclasses.replace(QUICK, l2=0.1, samples=4, epsilon=30.0, delta=0.05)
    result = method(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)
    retain_key, key = jax.random.split(KEY)
    drawn = np.asarray(jax.random.permutation(retain_key, SPLIT.retain.indices))[:4]
    params = START
    for number, row in enumerate(SPLIT.forget.indices):
        n = 9 - number
        logits = forward(params, perturbed(number))[1]
        units = foci(logits, -log_softmax(logits)[:, Y[row]])
        params = newton(params, row, drawn, units, n, 0.1)
        _, noise_key = jax.random.split(jax.random.fold_in(key, number))
        normal = np.asarray(jax.random.normal(noise_key, (len(units) * (HIDDEN + 1),)), np.float64)
        noise = 2 * 0.25 / (n**2 * 0.1**3) / 30 * np.sqrt(2 * np.log(1.25 / 0.05)) * normal
        params["head"]["bias"][units] += noise[: len(units)]
        params["head"]["kernel"][:, units] += noise[len(units) :].reshape(HIDDEN, len(units))
    assert_close(result.params, params)
    assert result.history.cost.samples == 3 * (60 + 4 + 1)


def test_other_units_and_layers_stay_to_the_bit():
    one = dataclasses.replace(SPLIT, forget=part([0]))
    result = QUICK(MODEL, ORIGINAL, one, key=KEY, loop=ANYTHING)
    chex.assert_trees_all_equal(result.params["hidden"], ORIGINAL.params["hidden"])
    logits = forward(START, perturbed(0))[1]
    units = foci(logits, -log_softmax(logits)[:, Y[0]])
    others = [unit for unit in range(CLASSES) if unit not in units]
    kernels = result.params["head"]["kernel"], ORIGINAL.params["head"]["kernel"]
    assert others
    np.testing.assert_array_equal(*(np.asarray(kernel)[:, others] for kernel in kernels))
    assert (np.asarray(kernels[0])[:, units] != np.asarray(kernels[1])[:, units]).all()


def test_the_published_certificate_is_noise_of_the_size_that_it_asks_for():
    one = dataclasses.replace(SPLIT, forget=part([0]))
    plain = QUICK(MODEL, ORIGINAL, one, key=KEY, loop=ANYTHING).params["head"]["kernel"]
    noisy = dataclasses.replace(QUICK, epsilon=1e6)(MODEL, ORIGINAL, one, key=KEY, loop=ANYTHING).params["head"]["kernel"]
    smaller = dataclasses.replace(QUICK, epsilon=2e6)(MODEL, ORIGINAL, one, key=KEY, loop=ANYTHING).params["head"]["kernel"]
    changed = np.abs(np.asarray(noisy - plain)) > 0
    deviation = 2 * 0.25 / (7**2 * 0.001**3) / 1e6 * np.sqrt(2 * np.log(1.25 / 0.01))
    sizes = np.asarray(noisy - plain)[changed] / deviation
    assert 0.3 < np.sqrt(np.mean(sizes**2)) < 2.5
    np.testing.assert_allclose(np.asarray(smaller - plain)[changed], sizes * deviation / 2, rtol=1e-3)


def test_perturbed_copies_are_answered_in_eval_mode_and_the_original_is_left_alone():
    jax.clear_caches()
    MODES.clear()
    before = float64(ORIGINAL)
    history = QUICK(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING).history
    assert MODES
    assert True not in MODES
    chex.assert_trees_all_equal(float64(ORIGINAL), before)
    assert history.cost.steps == 3
    assert history.cost.samples == 3 * (60 + 6 + 1)


def test_every_perturbed_copy_is_another_in_whatever_batches_they_are_answered(monkeypatch):
    seen = []

    def spy(answers, losses):
        seen.append(np.column_stack([answers, losses]))
        return foci(answers, losses)

    monkeypatch.setattr("cujax.methods.l_codec._LARGEST_BATCH", 25)
    monkeypatch.setattr("cujax.methods.l_codec.foci", spy)
    QUICK(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)
    assert [len(np.unique(each, axis=0)) for each in seen] == [60, 60, 60]
    np.testing.assert_allclose(seen[0][:, 3], -log_softmax(seen[0][:, :3])[:, Y[0]], atol=1e-5)


def test_images_are_taken_as_they_are():
    rows = np.array([7, 2, 2])
    found = examples_at(dataclasses.replace(IMAGES, augmentation="crop_flip"), rows)
    np.testing.assert_array_equal(found.inputs, IMAGES.images[rows])
    np.testing.assert_array_equal(found.labels, Y[rows])
    assert found.mask.all()


def test_what_is_not_finite_gives_the_original_back():
    broken = dataclasses.replace(ANYTHING, images=dataclasses.replace(IMAGES, images=IMAGES.images.at[3].set(jnp.nan)))
    result = QUICK(MODEL, ORIGINAL, SPLIT, key=KEY, loop=broken)
    assert result.history.stop_rule == "not_finite"
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)


def test_too_many_samples_are_refused_before_anything_is_computed():
    LCodec(max_samples=3).check(SPLIT)
    with pytest.raises(ValueError, match=r"removes samples one by one.*request is for 3, but max_samples is 2.*raise"):
        LCodec(max_samples=2)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=LOOP)
    with pytest.raises(ValueError, match="LCodec must know the layers"):
        QUICK(from_function(init, apply, num_classes=3), ORIGINAL, SPLIT, key=KEY, loop=LOOP)


@pytest.mark.parametrize(
    ("name", "value"),
    [("perturbations", 2), ("perturbation_scale", 0.0), ("l2", 0.0), ("epsilon", 0.0), ("delta", 0.0), ("max_samples", 0)],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        LCodec(**{name: value})
