"""Fine-tuning on the forget set: its course against float64, what it counts, and what it leaves alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_function
from cujax.audit.relearning import relearn
from cujax.data.batches import DeviceImages
from cujax.model import Variables


def apply(params, model_state, images, *, train, key):
    embedding = images.reshape(images.shape[0], -1)
    state = {"calls": model_state["calls"] + 1} if train else model_state
    return (embedding, embedding @ params), state


MODEL = from_function(lambda key, images: (jnp.zeros((4, 3)), {"calls": jnp.int32(0)}), apply)
N = 48
FORGET = np.arange(6, 46)


def make_images():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N)
    pixels = 0.7 * np.eye(3, 4)[labels] + 0.5 * rng.normal(size=(N, 4))
    return DeviceImages(
        jnp.asarray(pixels.reshape(N, 2, 2, 1), jnp.float32), jnp.asarray(labels, jnp.int32), jnp.zeros(1), jnp.ones(1)
    )


IMAGES = make_images()


def variables(weights):
    return Variables(jnp.asarray(weights, jnp.float32), {"calls": jnp.int32(0)})


FRESH = np.random.default_rng(1).normal(size=(4, 3))


def course(weights, steps):
    """Accuracies on the forget set before and after each step of gradient descent with momentum, and the weights."""
    x, y = np.asarray(IMAGES.images, np.float64).reshape(N, 4)[FORGET], np.asarray(IMAGES.labels)[FORGET]
    weights, velocity = np.array(weights, np.float64), np.zeros((4, 3))
    accuracies = [np.mean((x @ weights).argmax(1) == y)]
    for _ in range(steps):
        p = np.exp(x @ weights)
        gradient = x.T @ (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
        velocity = 0.9 * velocity + gradient
        weights = weights - 0.01 * velocity
        accuracies.append(np.mean((x @ weights).argmax(1) == y))
    return accuracies, weights


def test_the_course_agrees_with_gradient_descent_in_float64():
    # A forget set of less than a batch: every step is on all of it.
    expected, _ = course(FRESH, 40)
    found = relearn(MODEL, variables(FRESH), IMAGES, FORGET, 1.1, at_most=38)
    assert found.steps == (*range(21), 25, 30, 35, 38)
    np.testing.assert_allclose(found.accuracies, [expected[step] for step in found.steps], atol=1e-6)
    assert expected[20] > expected[0] + 0.1


def test_the_steps_are_counted_until_the_target_is_reached():
    expected, _ = course(FRESH, 20)
    target = expected[0] + 0.1
    first = next(step for step, value in enumerate(expected) if value >= target)
    assert 2 < first < 20
    found = relearn(MODEL, variables(FRESH), IMAGES, FORGET, target)
    assert found.steps_to_regain == first
    assert found.has_regained
    assert found.steps == tuple(range(first + 1))
    assert found.target == target
    assert found.accuracies[-1] >= target > max(found.accuracies[:-1])


def test_a_model_that_still_knows_the_set_needs_no_step():
    _, trained = course(FRESH, 400)
    found = relearn(MODEL, variables(trained), IMAGES, FORGET, course(trained, 0)[0][0])
    assert (found.steps, found.steps_to_regain, found.has_regained) == ((0,), 0, True)


def test_a_model_that_is_nearer_to_knowing_the_set_needs_fewer_steps():
    target = course(FRESH, 60)[0][60]
    _, nearer = course(FRESH, 12)
    steps = [relearn(MODEL, variables(start), IMAGES, FORGET, target).steps_to_regain for start in (FRESH, nearer)]
    assert 0 < steps[1] < steps[0]


@pytest.mark.parametrize("at_most", [1, 7, 23, 120])
def test_so_many_steps_are_made_at_most_and_the_target_counts_as_missed(at_most):
    found = relearn(MODEL, variables(FRESH), IMAGES, FORGET, 1.1, at_most=at_most)
    assert max(found.steps) == found.steps_to_regain == at_most
    assert not found.has_regained
    assert len(found.accuracies) == len(found.steps)


def test_accuracy_is_looked_at_less_often_later_on():
    found = relearn(MODEL, variables(FRESH), IMAGES, FORGET, 1.1, at_most=150)
    assert found.steps == (*range(20), *range(20, 100, 5), 100, 120, 140, 150)


def test_the_variables_passed_in_are_not_changed():
    given = variables(FRESH)
    before = jax.tree.map(np.array, given)
    relearn(MODEL, given, IMAGES, FORGET, 1.1, at_most=5)
    np.testing.assert_array_equal(given.params, before.params)
    assert int(given.model_state["calls"]) == 0


def test_the_same_input_gives_the_same_course_also_over_several_batches():
    indices = np.concatenate([np.arange(N), np.arange(N)])  # more than a batch of 64
    first, again = (relearn(MODEL, variables(FRESH), IMAGES, indices, 1.1, at_most=9) for _ in range(2))
    assert first == again


def test_images_outside_the_forget_set_are_never_looked_at():
    poisoned = replace(IMAGES, images=IMAGES.images.at[:6].set(jnp.nan).at[46:].set(jnp.nan))
    clean, same = (relearn(MODEL, variables(FRESH), images, FORGET, 1.1, at_most=6) for images in (IMAGES, poisoned))
    assert clean == same


def test_a_single_image_is_learned():
    found = relearn(MODEL, variables(np.zeros((4, 3))), IMAGES, FORGET[np.asarray(IMAGES.labels)[FORGET] == 2][:1], 1.0)
    assert found.accuracies[0] == 0.0
    assert found.has_regained
    assert found.steps_to_regain == 1


def test_divergence_at_once_ends_the_course_without_an_error():
    found = relearn(MODEL, variables(np.full((4, 3), 3e38) * [1, -1, 1]), IMAGES, FORGET, 1.1, at_most=20)
    assert found.steps == (0,)
    assert found.diverged
    assert not found.has_regained
