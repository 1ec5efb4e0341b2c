"""Boundary shrink and expand against NumPy float64."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CLASS_SPLIT,
    CLASSES,
    IMAGES,
    KEY,
    LOOP,
    MODEL,
    MODES,
    ORIGINAL,
    SPLIT,
    Descent,
    Recorder,
    X,
    Y,
    assert_close,
    assert_follows,
    backward_to_pixels,
    counted,
    cross_entropy_gradient,
    float64,
    forward,
    label_of,
    log_softmax,
    part,
    record,
    take,
)

from cujax.batch import Examples
from cujax.methods import BoundaryExpand, BoundaryShrink
from cujax.methods.boundary import nearest_other_labels

START = float64(ORIGINAL.params)
HALF_RANGE = dataclasses.replace(IMAGES, std=jnp.array([0.25]))


def nearest(x, labels, classes, bound, params=START):
    """The answer, the own class and those left out excluded, one step of FGSM away."""
    d_logits = np.exp(log_softmax(forward(params, x)[1])) - np.eye(CLASSES)[labels]
    _, logits = forward(params, x + bound * np.sign(backward_to_pixels(params, x, d_logits)))
    allowed = classes[None, :] & (labels[:, None] != np.arange(CLASSES)[None, :])
    return np.where(allowed, logits, -np.inf).argmax(1)


@pytest.mark.parametrize("bound", [0.0, 0.4, 3.0])
def test_the_nearest_other_class_is_found_by_a_step_against_the_own(bound):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(200, 4)), rng.integers(0, 3, 200)
    classes = np.array([True, True, True])
    batch = Examples(jnp.asarray(x.reshape(200, 2, 2, 1), jnp.float32), jnp.asarray(labels, jnp.int32))
    found = np.asarray(nearest_other_labels(MODEL, ORIGINAL, batch, jnp.asarray(classes), jnp.array([bound])))
    np.testing.assert_array_equal(found, nearest(x, labels, classes, bound))
    assert (found != labels).all()
    assert len(np.unique(found)) == 3
    left = jnp.array([True, False, True])
    assert 1 not in np.asarray(nearest_other_labels(MODEL, ORIGINAL, batch, left, jnp.array([bound])))


def test_the_bound_decides():
    x, labels = np.random.default_rng(1).normal(size=(200, 4)), np.zeros(200, int)
    everything = np.ones(3, bool)
    assert (nearest(x, labels, everything, 0.0) != nearest(x, labels, everything, 3.0)).any()


def test_boundary_shrink_goes_to_the_nearest_class_that_stays_by_a_bound_in_pixels():
    split = dataclasses.replace(SPLIT, forget=part([0, 1, 2, 3, 4, 5]), retain=part([6, 7, 8]))
    method = BoundaryShrink(learning_rate=0.3, batch_size=2, weight_decay=0.01, bound=0.05)
    recorder = Recorder(HALF_RANGE)
    method(MODEL, ORIGINAL, split, key=KEY, loop=recorder)
    forget, everything = split.forget.indices, np.ones(3, bool)
    of_pixels, of_numbers = (nearest(X[forget], Y[forget], everything, bound) for bound in (0.05 / 0.25, 0.05))
    assert (of_pixels != of_numbers).any()

    def gradient(params, rows, step):
        x = X[counted(rows)]
        return cross_entropy_gradient(params, x, nearest(x, label_of(rows), everything, 0.05 / 0.25))

    assert_follows(method, gradient, recorder)


def test_the_original_answers_whatever_was_learned_since_and_fillers_count_in_nothing():
    split = dataclasses.replace(SPLIT, forget=part([0, 1, 2, 3, 4, 5]), retain=part([6, 7, 8]))
    method = BoundaryShrink(learning_rate=0.3, batch_size=4)
    recorder, everything = record(method, split), np.ones(3, bool)
    elsewhere = ORIGINAL.params | {"head": jax.tree.map(lambda leaf: -leaf, ORIGINAL.params["head"])}
    object.__setattr__(recorder, "state", dataclasses.replace(recorder.state, params=elsewhere))
    rows = split.forget.indices
    by_original, by_student = (nearest(X[rows], Y[rows], everything, 0.1, each) for each in (START, float64(elsewhere)))
    assert (by_original != by_student).any()

    def gradient(params, rows, step):
        x = X[counted(rows)]
        return cross_entropy_gradient(params, x, nearest(x, label_of(rows), everything, 0.1))

    _, batches = assert_follows(method, gradient, recorder)
    assert not batches[-1].mask.all()


def test_forgotten_classes_are_never_the_answer():
    two = dataclasses.replace(CLASS_SPLIT, forget=part([0, 3, 1, 4]), retain=part([2, 5]), forgotten_classes=(0, 1))
    method = BoundaryShrink(learning_rate=0.3, batch_size=4)
    recorder = record(method, two)

    def gradient(params, rows, step):
        return cross_entropy_gradient(params, X[counted(rows)], np.full(len(counted(rows)), 2))

    assert_follows(method, gradient, recorder)


def test_a_single_class_has_no_other_to_go_to():
    alone = dataclasses.replace(SPLIT, forget=part([0]), retain=part([3, 6]), retained_classes=(0,))
    with pytest.raises(ValueError, match="only class 0 is retained"):
        record(BoundaryShrink(), alone)


def test_the_retain_set_is_never_looked_at():
    for method in (BoundaryShrink(), BoundaryExpand()):
        (phase,) = record(method).phases(0)
        rows = np.sort(np.concatenate([counted(batch) for batch in phase.batches]))
        np.testing.assert_array_equal(rows, SPLIT.forget.indices)


def test_the_step_is_taken_in_eval_mode_and_learning_in_train_mode():
    jax.clear_caches()
    recorder = record(BoundaryShrink(batch_size=3))
    MODES.clear()
    take(recorder.state, recorder.phases(0)[0])
    assert sorted(MODES) == [False, False, True]


def test_boundary_expand_teaches_a_class_that_is_not_there():
    method = BoundaryExpand(learning_rate=0.3, batch_size=2, weight_decay=0.01)
    recorder = record(method)
    (phase,) = recorder.phases(0)
    state, batches = take(recorder.state, phase)
    params, descend = float64(recorder.state.params), Descent(method)
    np.testing.assert_array_equal(params["network"]["head"]["kernel"], START["head"]["kernel"])
    for rows in batches:
        network, shadow = params["network"], params["shadow"]
        x = X[counted(rows)]
        embedding, logits = forward(network, x)
        widened = np.concatenate([logits, embedding @ shadow["kernel"] + shadow["bias"]], axis=1)
        d = (np.exp(log_softmax(widened)) - np.eye(CLASSES + 1)[[CLASSES] * len(x)]) / len(x)
        back = d[:, :CLASSES] @ network["head"]["kernel"].T + d[:, CLASSES:] @ shadow["kernel"].T
        d_hidden = back * (1 - embedding**2)
        gradient = {
            "network": {
                "hidden": {"bias": d_hidden.sum(0), "kernel": x.T @ d_hidden},
                "head": {"bias": d[:, :CLASSES].sum(0), "kernel": embedding.T @ d[:, :CLASSES]},
            },
            "shadow": {"bias": d[:, CLASSES:].sum(0), "kernel": embedding.T @ d[:, CLASSES:]},
        }
        params = descend(params, gradient)
    assert_close(state.params, params)


def test_the_shadow_class_is_neither_judged_nor_returned():
    """Trap: the expanded class left in at evaluation."""
    anything = dataclasses.replace(LOOP, retain_tolerance=1.0, stop_early=False)
    method = BoundaryExpand(learning_rate=0.3, momentum=0.0, batch_size=3, max_passes=4)
    result = method(MODEL, ORIGINAL, CLASS_SPLIT, key=KEY, loop=anything)
    assert result.model == MODEL
    chex.assert_trees_all_equal_shapes_and_dtypes(result.params, ORIGINAL.params)
    last = next(check for check in result.history.checks if check.step == result.history.step)
    answers = forward(float64(result.params), X)[1].argmax(1)
    held_out = CLASS_SPLIT.validation.indices
    stays = held_out[Y[held_out] != 0]
    assert last.retain_accuracy == pytest.approx(np.mean(answers[stays] == Y[stays]))
    gone = [np.mean(answers[rows] == 0) for rows in (CLASS_SPLIT.forget.indices, held_out[Y[held_out] == 0])]
    assert last.forget_accuracy == pytest.approx(max(gone))
    assert len(result.history.checks) == 5


@pytest.mark.parametrize("method", [BoundaryShrink, BoundaryExpand])
def test_the_original_is_left_alone(method):
    before = float64(ORIGINAL)
    anything = dataclasses.replace(LOOP, retain_tolerance=2.0, stop_early=False)
    result = method(learning_rate=0.3, batch_size=3, max_passes=1)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=anything)
    chex.assert_trees_all_equal(float64(ORIGINAL), before)
    assert (result.params["head"]["kernel"] != ORIGINAL.params["head"]["kernel"]).any()


@pytest.mark.parametrize(("name", "value"), [("bound", -0.1), ("learning_rate", 0.0)])
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        BoundaryShrink(**{name: value})
