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

from cujax.methods import FisherForgetting, InfluenceUnlearning
from cujax.model import from_function

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


@pytest.mark.parametrize("batch_size", [1, 4])
def test_noise_is_of_the_inverse_information_in_variance(batch_size):
    small, large = (run(FisherForgetting(alpha=alpha, batch_size=batch_size)) for alpha in (0.01, 0.04))
    expected = variances(fisher(RETAIN), 0.01)
    # Both drew the same standard normal numbers, which the expected variance must give back.
    keys = jax.random.split(jax.random.split(KEY)[1], len(leaves(START)))
    drawn = jax.tree.unflatten(
        jax.tree.structure(START),
        [np.asarray(jax.random.normal(key, leaf.shape)) for key, leaf in zip(keys, leaves(START), strict=True)],
    )
    for found, variance, number in zip(*map(leaves, (noise_of(small), expected, drawn)), strict=True):
        np.testing.assert_allclose(found, np.sqrt(variance) * number, rtol=1e-4, atol=1e-5)
    for more, less in zip(leaves(noise_of(large)), leaves(noise_of(small)), strict=True):
        np.testing.assert_allclose(more, 2 * less, rtol=1e-3, atol=1e-5)
    assert len(np.unique(np.round(np.concatenate([leaf.ravel() for leaf in leaves(expected)]), 9))) > 10


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
