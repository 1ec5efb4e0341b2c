"""Fisher forgetting and influence unlearning against dense float64."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CLASSES,
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
    backward,
    combine,
    cross_entropy_gradient,
    float64,
    forward,
    init,
    leaves,
    log_softmax,
)

from cujax.adapters import from_function
from cujax.batch import Examples
from cujax.methods import FisherForgetting, InfluenceUnlearning, influence
from cujax.methods.fisher import fisher_sum
from cujax.methods.fisher import variance as variance_of
from cujax.methods.influence import fisher_product

ANYTHING = dataclasses.replace(LOOP, retain_tolerance=1.0)
START = float64(ORIGINAL.params)
RETAIN, FORGET = SPLIT.retain.indices, SPLIT.forget.indices
WITHOUT_FORGET = dataclasses.replace(
    ANYTHING, images=dataclasses.replace(IMAGES, images=IMAGES.images.at[FORGET].set(jnp.nan))
)


def run(method, loop=ANYTHING, key=KEY):
    return method(MODEL, ORIGINAL, SPLIT, key=key, loop=loop)


def fisher(rows):
    """The diagonal of the information: over samples the mean, over answers the expectation, of squared gradients."""
    terms = []
    for row in rows:
        x = X[[row]]
        probabilities = np.exp(log_softmax(forward(START, x)[1]))[0]
        for answer in range(CLASSES):
            gradient = backward(START, x, probabilities[None] - np.eye(CLASSES)[[answer]])
            terms.append((probabilities[answer] / len(rows), jax.tree.map(np.square, gradient)))
    return combine(*terms)


def variances(information, alpha):
    def of(leaf, in_head):
        inverse = np.minimum(1 / (leaf + 1e-8), 100 if in_head else 1000)
        return alpha * inverse * (10 if in_head or leaf.ndim == 1 else 1)

    return {name: {kind: of(leaf, name == "head") for kind, leaf in layer.items()} for name, layer in information.items()}


def noise_of(result):
    return jax.tree.map(lambda new, old: np.asarray(new, np.float64) - old, result.params, START)


def test_information_is_of_a_sample_of_the_retain_set_where_that_is_larger():
    drawn = np.asarray(jax.random.permutation(jax.random.split(KEY)[0], RETAIN))[:2]
    some, all_of_it = (noise_of(run(FisherForgetting(alpha=0.01, samples=n))) for n in (2, 100))
    ratio = jax.tree.map(lambda a, b: (a / b) ** 2, some, all_of_it)
    expected = jax.tree.map(np.divide, variances(fisher(drawn), 1.0), variances(fisher(RETAIN), 1.0))
    assert_close(ratio, expected, rtol=5e-3)


@pytest.mark.parametrize("method", [FisherForgetting(alpha=0.01), FisherForgetting(alpha=0.01, samples=3)])
def test_fisher_forgetting_never_looks_at_the_forget_set(method):
    chex.assert_trees_all_equal(run(method, WITHOUT_FORGET).params, run(method).params)


def dense_step(rows, alpha):
    """`alpha · H⁻¹ v` by a dense solution."""

    def flat(tree):
        return np.concatenate([leaf.ravel() for leaf in leaves(tree)])

    def gradient(row):
        return flat(cross_entropy_gradient(START, X[[row]], Y[[row]]))

    n, n_forget, n_retain = len(FORGET) + len(RETAIN), len(FORGET), len(RETAIN)
    difference = sum(map(gradient, FORGET)) / n - sum(map(gradient, RETAIN)) * n_forget / (n * n_retain)
    hessian = np.eye(len(difference)) + sum(np.outer(gradient(row), gradient(row)) for row in rows) / len(rows)
    return alpha * np.linalg.solve(hessian, difference), alpha * difference


@pytest.mark.parametrize("batch_size", [2, 4])
def test_influence_is_a_newton_step_with_the_empirical_fisher_matrix(batch_size):
    found = noise_of(run(InfluenceUnlearning(alpha=20.0, batch_size=batch_size)))
    expected, without_hessian = dense_step(RETAIN, 20.0)
    flat = np.concatenate([leaf.ravel() for leaf in leaves(found)])
    np.testing.assert_allclose(flat, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected - without_hessian).max() > 0.1 * np.abs(expected).max()


def test_influence_raises_the_loss_of_what_is_forgotten_and_not_of_what_stays():
    def loss(params, rows):
        return -np.mean(log_softmax(forward(float64(params), X[rows])[1])[np.arange(len(rows)), Y[rows]])

    moved = run(InfluenceUnlearning(alpha=3.0)).params
    assert loss(moved, FORGET) > loss(START, FORGET) + 0.05
    assert loss(moved, RETAIN) < loss(START, RETAIN)


def test_the_hessian_is_of_a_sample_of_the_retain_set_where_that_is_larger():
    drawn = np.asarray(jax.random.permutation(KEY, RETAIN))[:2]
    found = noise_of(run(InfluenceUnlearning(alpha=20.0, samples=2)))
    expected, _ = dense_step(drawn, 20.0)
    flat = np.concatenate([leaf.ravel() for leaf in leaves(found)])
    np.testing.assert_allclose(flat, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_fisher_forgetting_agrees_with_float64_whatever_the_batch_size(batch_size):
    result = run(FisherForgetting(alpha=0.01, batch_size=batch_size))
    keys = jax.tree.unflatten(
        jax.tree.structure(START), list(jax.random.split(jax.random.split(KEY)[1], len(leaves(START))))
    )
    expected = jax.tree.map(
        lambda weight, size, key: weight + np.sqrt(size) * np.asarray(jax.random.normal(key, weight.shape)),
        START,
        variances(fisher(RETAIN), 0.01),
        keys,
    )
    assert_close(result.params, expected)
    chex.assert_trees_all_equal(result.model_state, ORIGINAL.model_state)


def test_the_noise_is_another_for_another_key():
    one, other = (noise_of(run(FisherForgetting(alpha=0.01), key=jax.random.key(number))) for number in (0, 1))
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert np.abs(a - b).max() > 0.1 * np.abs(a).max()


def test_the_inverse_information_is_capped_and_larger_in_the_head_and_in_vectors():
    information = jnp.array([0.0, 5e-4, 2e-3, 0.05, 2.0])
    layer = {"bias": information, "kernel": information[None]}
    found = variance_of(
        {"hidden": layer, "head": layer}, {name: dict.fromkeys(layer, name == "head") for name in ("hidden", "head")}, 0.1
    )
    expected = {
        "hidden": {"bias": [1000, 1000, 500, 20, 0.5], "kernel": [[100, 100, 50, 2, 0.05]]},
        "head": {"bias": [100, 100, 100, 20, 0.5], "kernel": [[100, 100, 100, 20, 0.5]]},
    }
    for name, kind in (("hidden", "bias"), ("hidden", "kernel"), ("head", "bias"), ("head", "kernel")):
        np.testing.assert_allclose(found[name][kind], expected[name][kind], rtol=1e-5)


ROWS = np.array([3, 5, 8, 0])
BATCH = Examples(IMAGES.images[ROWS], IMAGES.labels[ROWS], jnp.array([True, True, True, False]))


def test_information_sums_over_the_rows_that_count_each_answer_by_its_probability():
    total = jax.jit(fisher_sum, static_argnums=0)
    for answer in range(CLASSES):
        terms = []
        for row in ROWS[:3]:
            probabilities = np.exp(log_softmax(forward(START, X[[row]])[1]))
            gradient = backward(START, X[[row]], probabilities - np.eye(CLASSES)[[answer]])
            terms.append((probabilities[0, answer], jax.tree.map(np.square, gradient)))
        assert_close(total(MODEL, ORIGINAL, BATCH, jnp.int32(answer)), combine(*terms))


def test_information_is_of_the_networks_own_answers_and_not_of_labels():
    elsewhere = dataclasses.replace(ANYTHING, images=dataclasses.replace(IMAGES, labels=(IMAGES.labels + 1) % CLASSES))
    chex.assert_trees_all_equal(
        run(FisherForgetting(alpha=0.01), elsewhere).params, run(FisherForgetting(alpha=0.01)).params
    )


def test_products_are_with_the_outer_products_of_the_rows_that_count():
    vector = jax.tree.map(lambda leaf: np.linspace(-1, 2, leaf.size).reshape(leaf.shape), START)
    terms = []
    for row in ROWS[:3]:
        gradient = cross_entropy_gradient(START, X[[row]], Y[[row]])
        terms.append((sum(np.sum(a * b) for a, b in zip(*map(leaves, (gradient, vector)), strict=True)), gradient))
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), vector)
    assert_close(jax.jit(fisher_product, static_argnums=0)(MODEL, ORIGINAL, BATCH, single), combine(*terms))


@pytest.mark.parametrize(("samples", "batch_size"), [(6, 2), (6, 4), (2, 4)])
def test_conjugate_gradients_solve_to_their_tolerance(samples, batch_size):
    """No eigenvalue of H is below 1: the solution is no farther off than the residual, 1e-4 of the right-hand side."""
    result = run(InfluenceUnlearning(alpha=20.0, samples=samples, batch_size=batch_size))
    drawn = np.asarray(jax.random.permutation(KEY, RETAIN))[:samples]
    expected, without_hessian = dense_step(drawn, 20.0)
    found = np.concatenate([leaf.ravel() for leaf in leaves(noise_of(result))])
    allowed = 1.1e-4 * np.linalg.norm(without_hessian)
    assert np.linalg.norm(found - expected) <= allowed
    assert np.linalg.norm(without_hessian - expected) > 1000 * allowed
    chex.assert_trees_all_equal(result.model_state, ORIGINAL.model_state)


def test_conjugate_gradients_that_do_not_converge_give_the_original_back(monkeypatch):
    monkeypatch.setattr(influence, "_MOST_PRODUCTS", 1)
    result = run(InfluenceUnlearning())
    assert result.history.stop_rule == "not_finite"
    assert "have not converged after 1 products" in result.history.stop_reason
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)


@pytest.mark.parametrize("method", [FisherForgetting(alpha=0.01), InfluenceUnlearning()])
def test_samples_that_are_held_out_are_not_looked_at(method):
    images = IMAGES.images.at[SPLIT.validation.indices].set(jnp.nan)
    loop = dataclasses.replace(ANYTHING, images=dataclasses.replace(IMAGES, images=images))
    chex.assert_trees_all_equal(run(method, loop).params, run(method).params)


def test_a_forget_set_that_is_not_finite_gives_the_original_back_from_influence():
    result = run(InfluenceUnlearning(), WITHOUT_FORGET)
    assert result.history.stop_rule == "not_finite"
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)


@pytest.mark.parametrize("method", [FisherForgetting(alpha=0.01), InfluenceUnlearning()])
def test_a_harmed_network_is_not_returned(method):
    result = run(method, dataclasses.replace(LOOP, retain_tolerance=-2.0))
    assert (result.history.stop_rule, result.history.step) == ("retain_tolerance", 0)
    assert result.history.cost.steps == 1
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)


def test_every_backward_pass_is_on_the_account():
    fisher_cost = run(FisherForgetting()).history.cost
    assert (fisher_cost.steps, fisher_cost.samples) == (1, CLASSES * 6)
    assert run(FisherForgetting(samples=2)).history.cost.samples == CLASSES * 2
    # The gradients of 3 and 6, and products of 2 each; conjugate gradients need at most one more than the rank of H - I.
    products, rest = divmod(run(InfluenceUnlearning(samples=2)).history.cost.samples - (3 + 6), 2)
    assert rest == 0
    assert 2 <= products <= 3


@pytest.mark.parametrize(
    ("method", "samples"),
    [(FisherForgetting(), CLASSES * 6), (InfluenceUnlearning(), 3 + 6)],
    ids=["fisher", "influence"],
)
def test_one_step_is_accounted_for_and_computed_in_eval_mode(method, samples):
    MODES.clear()
    jax.clear_caches()
    history = run(method).history
    assert True not in MODES
    assert history.cost.steps == history.step == 1
    assert history.cost.samples >= samples
    assert history.cost.flops > 0
    assert history.cost.seconds > 0
    assert [check.step for check in history.checks] == [0, 1]


def test_a_result_that_is_not_finite_is_not_returned():
    result = run(FisherForgetting(alpha=1e38))
    assert result.history.stop_rule == "not_finite"
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)


@pytest.mark.parametrize("method", [FisherForgetting(), InfluenceUnlearning()])
def test_what_is_not_finite_gives_the_original_back(method):
    broken = dataclasses.replace(ANYTHING, images=dataclasses.replace(IMAGES, images=IMAGES.images.at[RETAIN].set(jnp.nan)))
    result = run(method, broken)
    assert result.history.stop_rule == "not_finite"
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)


def test_fisher_forgetting_must_know_the_head():
    with pytest.raises(ValueError, match=r"FisherForgetting must know the layers.*give layers="):
        FisherForgetting()(from_function(init, apply, num_classes=3), ORIGINAL, SPLIT, key=KEY, loop=LOOP)


@pytest.mark.parametrize("kind", [FisherForgetting, InfluenceUnlearning])
@pytest.mark.parametrize(("name", "value"), [("alpha", 0.0), ("samples", 0), ("batch_size", 0)])
def test_impossible_settings_are_named(kind, name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        kind(**{name: value})
