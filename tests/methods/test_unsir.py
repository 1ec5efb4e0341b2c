"""UNSIR against NumPy float64: the noise, the phase that impairs, and the one that repairs."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CLASS_SPLIT,
    IMAGES,
    KEY,
    LOOP,
    MODEL,
    MODES,
    ORIGINAL,
    SPLIT,
    Descent,
    X,
    assert_close,
    backward,
    backward_to_pixels,
    counted,
    cross_entropy_gradient,
    float64,
    forward,
    label_of,
    leaves,
    log_softmax,
    part,
    record,
    take,
)

from cujax.methods import Unsir

START = float64(ORIGINAL.params)
TWO_CLASSES = dataclasses.replace(
    CLASS_SPLIT, forget=part([0, 3, 1, 4]), retain=part([2, 5, 8]), forgotten_classes=(0, 1), absent_classes=(0, 1)
)


def noise_of(method, split, key=KEY, images=IMAGES):
    return method.learn_noise(MODEL, ORIGINAL, split, key, dataclasses.replace(LOOP, images=images))


def loss_for(images, labels):
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    return -log_softmax(forward(START, x)[1])[np.arange(len(x)), labels]


@pytest.mark.parametrize(("split", "labels"), [(CLASS_SPLIT, [0, 0, 0, 0]), (TWO_CLASSES, [0, 1, 0, 1])])
def test_noise_maximises_the_loss_of_the_class_that_it_is_labelled_with(split, labels):
    """Trap: noise labelled with another class."""
    noise, cost = noise_of(Unsir(noise_batch_size=4), split)
    np.testing.assert_array_equal(noise.labels, labels)
    start = jax.random.normal(KEY, noise.inputs.shape)
    assert (loss_for(noise.inputs, labels) > loss_for(start, labels)).all()
    assert (cost.steps, cost.samples) == (0, 40 * 4)
    assert cost.flops > 0


@pytest.mark.parametrize(("steps", "tolerance"), [(1, 1e-5), (3, 1e-5), (40, 1e-3)])
def test_noise_is_forty_steps_of_adam(steps, tolerance, monkeypatch):
    if steps != 40:
        monkeypatch.setattr("cujax.methods.unsir._NOISE_STEPS", steps)
    noise, _ = noise_of(Unsir(noise_batch_size=4), CLASS_SPLIT)
    images = {"noise": np.asarray(jax.random.normal(KEY, noise.inputs.shape), np.float64)}
    settings = dataclasses.replace(Unsir(), learning_rate=0.1)
    descend = Descent(settings)
    for _ in range(steps):
        x = images["noise"].reshape(4, -1)
        d_x = backward_to_pixels(START, x, np.exp(log_softmax(forward(START, x)[1])) - np.eye(3)[[0] * 4])
        gradient = {"noise": (-d_x / 4 + 0.1 * 2 * x / 4).reshape(images["noise"].shape)}
        images = descend(images, gradient)
    np.testing.assert_allclose(noise.inputs, images["noise"], rtol=tolerance, atol=tolerance)


def test_both_phases_each_with_an_optimiser_of_its_own():
    method = Unsir(learning_rate=0.02, repair_learning_rate=0.05, batch_size=4, noise_batch_size=2, weight_decay=0.01)
    recorder = record(method, CLASS_SPLIT)
    impair, repair = (phase._replace(batches=list(phase.batches)) for phase in recorder.phases(0))
    noise, _ = noise_of(method, CLASS_SPLIT, jax.random.split(KEY, 4)[1])
    seen = np.asarray(noise.inputs, np.float64).reshape(2, -1)

    def union_gradient(params, rows):
        x = np.concatenate([seen, X[counted(rows)]])
        return cross_entropy_gradient(params, x, np.concatenate([noise.labels, label_of(rows)]))

    params = START
    first, second = Descent(method), Descent(dataclasses.replace(method, learning_rate=0.05))
    state = recorder.state
    for _ in range(2):
        state, _ = take(state, impair, impair.batches)
        for rows in impair.batches:
            params = first(params, union_gradient(params, rows))
        state, _ = take(state, repair, repair.batches)
        for rows in repair.batches:
            params = second(params, cross_entropy_gradient(params, X[counted(rows)], label_of(rows)))
        assert_close(state.params, params)
    for phase in (impair, repair):
        rows = np.sort(np.concatenate([counted(rows) for rows in phase.batches]))
        np.testing.assert_array_equal(rows, CLASS_SPLIT.retain.indices)


def test_some_retain_samples_of_each_class_are_used():
    recorder = record(Unsir(retain_per_class=1, noise_batch_size=1), CLASS_SPLIT)
    rows = [
        np.concatenate([counted(rows) for rows in phase.batches]) for number in range(2) for phase in recorder.phases(number)
    ]
    assert len({tuple(sorted(some)) for some in rows}) == 1
    np.testing.assert_array_equal(np.sort(IMAGES.labels[rows[0]]), [1, 2])


def test_images_to_forget_are_never_looked_at():
    broken = dataclasses.replace(IMAGES, images=IMAGES.images.at[CLASS_SPLIT.forget.indices].set(jnp.nan))
    method = Unsir(noise_batch_size=4)
    chex.assert_trees_all_equal(noise_of(method, CLASS_SPLIT, images=broken)[0], noise_of(method, CLASS_SPLIT)[0])
    everything = dataclasses.replace(LOOP, retain_tolerance=2.0, stop_early=False)
    found, expected = (
        method(MODEL, ORIGINAL, CLASS_SPLIT, key=KEY, loop=dataclasses.replace(everything, images=images))
        for images in (broken, IMAGES)
    )
    assert expected.history.step == 2
    assert all(np.isfinite(leaf).all() for leaf in leaves(found.params))
    chex.assert_trees_all_equal(found.variables, expected.variables)


def test_noise_and_retain_rows_are_one_batch_in_train_mode():
    recorder = record(Unsir(noise_batch_size=4), CLASS_SPLIT)
    phase = recorder.phases(0)[0]
    rows = next(iter(phase.batches))
    MODES.clear()
    jax.eval_shape(lambda state: phase.step(state, phase.prepare(IMAGES, rows, KEY)), recorder.state)
    assert MODES == [True]


def test_noise_is_made_in_eval_mode_and_the_original_is_left_alone():
    jax.clear_caches()
    MODES.clear()
    before = float64(ORIGINAL)
    noise_of(Unsir(noise_batch_size=4), CLASS_SPLIT)
    assert MODES
    assert True not in MODES
    anything = dataclasses.replace(LOOP, retain_tolerance=1.0)
    result = Unsir(max_passes=2, noise_batch_size=4, batch_size=4)(MODEL, ORIGINAL, CLASS_SPLIT, key=KEY, loop=anything)
    chex.assert_trees_all_equal(float64(ORIGINAL), before)
    assert result.history.cost.samples >= 40 * 4
    assert np.isfinite(backward(float64(result.params), X, np.ones((12, 3)))["head"]["bias"]).all()


def test_samples_of_classes_that_stay_have_no_opposite():
    with pytest.raises(ValueError, match=r"unsir makes noise against whole classes.*another method"):
        Unsir()(MODEL, ORIGINAL, SPLIT, key=KEY, loop=LOOP)
    with pytest.raises(ValueError, match="noise_batch_size is 1, but 2 classes are to be forgotten"):
        Unsir(noise_batch_size=1).check(TWO_CLASSES)


@pytest.mark.parametrize(
    ("name", "value"), [("repair_learning_rate", 0.0), ("retain_per_class", 0), ("noise_batch_size", 0), ("max_passes", 0)]
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        Unsir(**{name: value})
