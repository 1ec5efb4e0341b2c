"""MUNBa against NumPy float64: the bargain, the step on it, and what is trained beside what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from tiny import (
    MODES,
    SPLIT,
    X,
    assert_follows,
    combine,
    counted,
    cross_entropy_gradient,
    drawn_labels,
    label_of,
    leaves,
    part,
    record,
    take,
)

from cujax.methods import Munba
from cujax.methods.munba import bargain

RNG = np.random.default_rng(0)


def norm(tree):
    return np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))


def test_the_step_goes_equally_far_along_both_gradients():
    def gradient(params, batch, step):
        retain = cross_entropy_gradient(params, X[counted(batch.retain)], label_of(batch.retain))
        forget = cross_entropy_gradient(params, X[counted(batch.forget)], drawn_labels(step, batch.forget))
        summed = combine((1 / norm(retain), retain), (1 / norm(forget), forget))
        return combine((1 / norm(summed), summed))

    assert_follows(Munba(learning_rate=0.3, batch_size=2), gradient, record(Munba(learning_rate=0.3, batch_size=2)))


def test_what_is_left_of_the_retain_set_is_trained_on_alone():
    method = Munba(learning_rate=0.3, batch_size=2)

    def gradient(params, rows, step):
        return cross_entropy_gradient(params, X[counted(rows)], label_of(rows))

    _, alone = assert_follows(method, gradient, record(method), phase=1)
    pairs, _ = record(method).phases(0)
    beside = [counted(batch.retain) for batch in pairs.batches]
    assert len(beside) == 2
    np.testing.assert_array_equal(np.sort(np.concatenate(beside + [counted(rows) for rows in alone])), SPLIT.retain.indices)
    forgotten = [counted(batch.forget) for batch in record(method).phases(0)[0].batches]
    np.testing.assert_array_equal(np.sort(np.concatenate(forgotten)), SPLIT.forget.indices)


@pytest.mark.parametrize("seed", range(5))
def test_the_weights_solve_the_bargaining_problem_up_to_their_scale(seed):
    """`GᵀG α = 1 / α`, solved numerically from the definition."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(2, 7)) * np.array([[1.0], [30.0]])
    product = gradients @ gradients.T
    start = -np.log(np.linalg.norm(gradients, axis=1))
    # A convex problem whose gradient is that equation.
    problem = minimize(lambda log: np.exp(log) @ product @ np.exp(log) / 2 - log.sum(), start, tol=1e-9)
    solution = np.exp(problem.x)
    np.testing.assert_allclose(product @ solution, 1 / solution, rtol=1e-4)
    weights = np.array(bargain(*jnp.asarray(gradients, jnp.float32)), np.float64)
    np.testing.assert_allclose(weights / weights.sum(), solution / solution.sum(), rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(weights @ gradients), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("retain", "forget"), [([1.0, 2.0], [-2.0, -4.0]), ([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0]), ([0.0], [0.0])]
)
def test_without_a_bargain_the_weights_are_those_of_the_authors(retain, forget):
    weights = bargain(jnp.array(retain), jnp.array(forget))
    np.testing.assert_array_equal(weights, np.float32([1, 0.1]))


def test_gradients_of_very_different_size_have_the_same_influence():
    """Trap: the larger gradient decides alone, as in a plain sum."""
    retain, forget = RNG.normal(size=(2, 50))
    small, large = (bargain(jnp.float32(retain), jnp.float32(scale * forget)) for scale in (1e-4, 1e4))
    directions = [np.float64(a) * retain + np.float64(b) * scale * forget for (a, b), scale in ((small, 1e-4), (large, 1e4))]
    np.testing.assert_allclose(*directions, rtol=1e-4)


def test_both_sets_are_seen_in_train_mode_and_only_the_retain_pass_moves_the_statistics():
    recorder = record(Munba(batch_size=2, momentum=0.234567))
    phase, _ = recorder.phases(0)
    jax.clear_caches()
    MODES.clear()
    state, _ = take(recorder.state, phase, [next(iter(phase.batches))])
    assert set(MODES) == {True}
    assert int(state.model_state["calls"]) == 1
    assert all(np.isfinite(leaf).all() for leaf in leaves(state.params))


def test_a_forget_set_larger_than_the_retain_set_fills_the_pass():
    split = dataclasses.replace(SPLIT, forget=part([0, 1, 2, 3, 4, 5]), retain=part([6, 7]))
    (pairs,) = record(Munba(batch_size=2), split).phases(0)
    assert len(list(pairs.batches)) == 1
