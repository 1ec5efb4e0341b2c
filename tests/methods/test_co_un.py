"""CoUn, and InfoNCE, against NumPy float64."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
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
    counted,
    float64,
    forward,
    label_of,
    leaves,
    log_softmax,
    record,
    take,
)

from cujax.batch import Rows
from cujax.losses import info_nce
from cujax.methods import CoUn
from cujax.methods.co_un import TwoViews
from cujax.sharding import data_mesh, replicate, shard


def reference(rows, others, temperature):
    def unit(z):
        norms = np.linalg.norm(z, axis=1, keepdims=True)
        return np.divide(z, norms, out=np.zeros_like(z), where=norms > 0)

    similarity = unit(rows) @ unit(others).T / temperature
    return -np.mean(np.diag(log_softmax(similarity)))


def views(seed, n=6, d=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, n, d)).astype(np.float32)


def central_differences(loss, at, step=1e-6):
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(at)]).astype(np.float64)
    gradient = np.zeros_like(flat)
    for i in range(len(flat)):
        moved = flat.copy()
        moved[i] += step
        above = loss(as_tree(moved, at))
        moved[i] -= 2 * step
        gradient[i] = (above - loss(as_tree(moved, at))) / (2 * step)
    return as_tree(gradient, at)


def as_tree(flat, like):
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [part.reshape(leaf.shape) for part, leaf in zip(np.split(flat, ends), leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient(seed, temperature):
    rows, others = views(seed)
    found = info_nce(rows, others, temperature=temperature)
    np.testing.assert_allclose(found, reference(*np.float64([rows, others]), temperature), rtol=1e-5)
    gradients = jax.grad(lambda pair: info_nce(*pair, temperature=temperature))((rows, others))
    expected = central_differences(lambda pair: reference(*pair, temperature), (np.float64(rows), np.float64(others)))
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("rubbish", [0.0, np.nan, np.inf])
def test_rows_that_do_not_count_change_nothing_whatever_they_hold(rubbish):
    rows, others = views(0)
    mask = np.array([True, True, False, True, False, True])
    both = jax.value_and_grad(info_nce, argnums=(0, 1))
    expected, wanted = both(rows[mask], others[mask])
    rows[~mask], others[~mask] = rubbish, rubbish
    value, gradients = both(rows, others, mask)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, of_counted in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient[mask], of_counted, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(gradient[~mask], 0)


def test_no_rows_and_no_length_are_no_loss_and_no_nan():
    rows, others = views(0)
    both = jax.value_and_grad(info_nce, argnums=(0, 1))
    value, gradients = both(rows, others, np.zeros(6, bool))
    assert value == 0
    np.testing.assert_array_equal(gradients, 0)
    value, gradients = both(np.zeros_like(rows), others)
    np.testing.assert_allclose(value, np.log(6), rtol=1e-6)
    np.testing.assert_array_equal(gradients, 0)
    rows[1], others[4] = 0, 0
    value, gradients = both(rows, others)
    np.testing.assert_allclose(value, reference(*np.float64([rows, others]), 0.1), rtol=1e-5)
    assert np.isfinite(gradients).all()
    assert not gradients[0][1].any()
    assert not gradients[1][4].any()
    assert gradients[0][0].all()


def test_devices_share_the_rows():
    mesh = data_mesh()
    rows, others = views(0, n=16)
    mask = np.arange(16) % 5 > 0

    @jax.jit
    def both(rows, others, mask, temperature):
        return jax.value_and_grad(info_nce, argnums=(0, 1))(rows, others, mask, temperature=temperature)

    value, gradients = both(*shard((rows, others, mask), mesh), replicate(0.3, mesh))
    expected, wanted = both(rows, others, mask, 0.3)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(value, reference(*np.float64([rows, others])[:, mask], 0.3), rtol=1e-5)
    np.testing.assert_allclose(gradients, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("shapes_unchecked")
def test_what_does_not_fit_is_named():
    rows, others = views(0)
    for temperature in (0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"temperature must be positive, but is {temperature}"):
            info_nce(rows, others, temperature=temperature)
    with pytest.raises(ValueError, match="same width, but have 4 and 3"):
        info_nce(rows, others[:, :3])
    with pytest.raises(ValueError, match=r"view rows must be \[batch, width\]"):
        info_nce(rows, others[:4])


def test_the_step_minimises_both():
    method = CoUn(
        learning_rate=0.3, batch_size=4, contrastive_weight=0.7, temperature=0.5, augmentation="none", weight_decay=0.01
    )
    recorder = record(method)
    (phase,) = recorder.phases(0)
    state, batches = take(recorder.state, phase)
    params, descend = float64(recorder.state.params), Descent(method)
    for rows in batches:
        x, labels = X[counted(rows)], label_of(rows)

        def loss(params, x=x, labels=labels):
            embedding, logits = forward(params, x)
            cross_entropy = -np.mean(log_softmax(logits)[np.arange(len(x)), labels])
            return cross_entropy + 0.7 * reference(embedding, embedding, 0.5)

        params = descend(params, central_differences(loss, params))
    assert_close(state.params, params)
    np.testing.assert_array_equal(np.sort(np.concatenate([counted(rows) for rows in batches])), SPLIT.retain.indices)


def test_both_views_are_one_batch_in_train_mode():
    recorder = record(CoUn())
    (phase,) = recorder.phases(0)
    rows = next(iter(phase.batches))
    MODES.clear()
    jax.eval_shape(lambda state: phase.step(state, phase.prepare(IMAGES, rows, KEY)), recorder.state)
    assert MODES == [True]


def test_images_to_forget_are_never_looked_at_and_the_original_is_left_alone():
    before = float64(ORIGINAL)
    broken = dataclasses.replace(IMAGES, images=IMAGES.images.at[SPLIT.forget.indices].set(jnp.nan))
    everything = dataclasses.replace(LOOP, retain_tolerance=2.0, stop_early=False)
    found, expected = (
        CoUn(max_passes=2, batch_size=3, augmentation="crop_flip")(
            MODEL, ORIGINAL, SPLIT, key=KEY, loop=dataclasses.replace(everything, images=images)
        )
        for images in (broken, IMAGES)
    )
    assert expected.history.step == 4
    assert all(np.isfinite(leaf).all() for leaf in leaves(found.params))
    chex.assert_trees_all_equal(found.variables, expected.variables)
    chex.assert_trees_all_equal(float64(ORIGINAL), before)


def test_views_are_two_and_of_the_same_samples():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 16, 16, 1)).astype(np.float32)
    arrays = IMAGES.__class__(jnp.asarray(images), IMAGES.labels, jnp.zeros(1), jnp.ones(1))
    rows = Rows(np.arange(8, dtype=np.int32), np.ones(8, bool))
    pair = jax.jit(TwoViews("crop"))(arrays, rows, KEY)
    np.testing.assert_array_equal(pair.forget.labels, pair.retain.labels)
    assert (np.abs(pair.forget.inputs - pair.retain.inputs).max(axis=(1, 2, 3)) > 0).sum() > 4
    plain = TwoViews("none")(arrays, rows, KEY)
    chex.assert_trees_all_equal(plain.forget, plain.retain)
    np.testing.assert_array_equal(plain.forget.inputs, images[:8])
    assert TwoViews("crop") == TwoViews("crop") != TwoViews("crop_flip")


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("contrastive_weight", -1.0), ("augmentation", "mirror")])
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        CoUn(**{name: value})
