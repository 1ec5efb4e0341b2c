"""Every forget sample once a pass, fresh retain samples each step, and pixels as documented."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.batch import IndexBatch, Rows
from cujax.data.batches import (
    DeviceImages,
    FlatRows,
    batches_of_all,
    gather,
    input_shapes,
    paired_batches,
    preprocess,
    to_device,
)
from cujax.data.images import Images
from cujax.sharding import data_mesh

FORGET, RETAIN = np.arange(100, 123, dtype=np.int32), np.arange(50, dtype=np.int32)
KEY = jax.random.key(3)


def one_pass(number, key=KEY, forget=FORGET, retain=RETAIN, **changes):
    options = {"forget_batch_size": 8, "retain_batch_size": 16, "retain_draws": 3} | changes
    return list(paired_batches(forget, retain, forget_pass=number, key=key, **options))


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("size", [1, 7, 8, 23, 40])
def test_every_row_comes_once_and_short_batches_are_filled_with_real_rows(size, key):
    batches = list(batches_of_all(FORGET, size, key))
    counted = np.concatenate([rows.indices[rows.mask] for rows in batches])
    assert sorted(counted) == FORGET.tolist()
    for rows in batches:
        assert rows.indices.shape == rows.mask.shape == (size,)
        assert set(rows.indices) <= set(FORGET)
    assert (counted.tolist() == FORGET.tolist()) == (key is None)


def test_every_forget_sample_is_used_in_every_pass():
    for number in range(3):
        batches = one_pass(number)
        assert len(batches) == 3 * 3
        for draw in range(3):
            rows = [batch.forget for batch in batches[draw::3]]
            assert sorted(np.concatenate([r.indices[r.mask] for r in rows])) == FORGET.tolist()
        for group in (batches[:3], batches[3:6], batches[6:]):
            assert len({tuple(batch.forget.indices) for batch in group}) == 1


def test_the_retain_stream_is_shuffled_and_goes_through_the_whole_set():
    stream = [batch.retain for batch in itertools.chain(*(one_pass(number) for number in range(10)))]
    assert all(rows.mask.all() for rows in stream)
    rounds = [np.concatenate([rows.indices for rows in stream[start : start + 3]]) for start in range(0, 90, 3)]
    for seen in rounds:
        assert len(set(seen)) == 48
    assert len({tuple(seen) for seen in rounds}) == len(rounds)
    assert set(np.concatenate(rounds)) == set(RETAIN)
    assert len(set(np.concatenate([rows.indices for rows in stream[:9]]))) > 3 * 16


def test_any_pass_can_be_drawn_without_those_before():
    for number in (0, 4):
        for first, again in zip(one_pass(number), one_pass(number), strict=True):
            np.testing.assert_array_equal(first.forget.indices, again.forget.indices)
            np.testing.assert_array_equal(first.retain.indices, again.retain.indices)
    orders = {
        tuple(np.concatenate([b.forget.indices for b in one_pass(*which)])) for which in ((0,), (1,), (0, jax.random.key(4)))
    }
    assert len(orders) == 3


def test_a_small_forget_set_is_one_batch():
    (batch,) = one_pass(0, forget=FORGET[:2], retain_draws=1)
    assert sorted(batch.forget.indices) == FORGET[:2].tolist()
    assert batch.forget.mask.all()


def test_a_retain_batch_larger_than_the_set_is_told():
    with pytest.raises(ValueError, match="retain_batch_size is 51, but the retain set has only 50 images"):
        one_pass(0, retain_batch_size=51)


def device_images(dtype=np.uint8, augmentation="none", size=8):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (20, size, size, 2)).astype(dtype)
    mean, std = jnp.array([0.2, 0.4], jnp.float32), jnp.array([0.5, 0.25], jnp.float32)
    return DeviceImages(jnp.asarray(images), jnp.arange(20, dtype=jnp.int32), mean, std, augmentation)


ROWS = Rows(np.array([3, 3, 17], np.int32), np.array([True, True, False]))


def test_pixels_are_normalised_per_channel():
    arrays = device_images()
    examples = jax.jit(preprocess)(arrays, ROWS, KEY)
    pixels = np.asarray(arrays.images, np.float64)[ROWS.indices] / 255
    np.testing.assert_allclose(examples.inputs, (pixels - [0.2, 0.4]) / [0.5, 0.25], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(examples.labels, [3, 3, 17])
    np.testing.assert_array_equal(examples.mask, ROWS.mask)
    assert examples.inputs.dtype == jnp.float32


def test_preprocessed_images_are_left_alone():
    arrays = device_images(np.float32)
    np.testing.assert_array_equal(preprocess(arrays, ROWS, KEY).inputs, arrays.images[ROWS.indices])


@pytest.mark.parametrize("mesh", [None, data_mesh()], ids=["one device", "eight"])
@pytest.mark.parametrize("shape", [(6, 4, 3), (5, 2), (7,), ()])
def test_rows_of_any_shape_are_stored_flat_and_gathered_whole(mesh, shape):
    rng = np.random.default_rng(1)
    stored, labels = rng.integers(0, 9, (20, *shape)).astype(np.int32), rng.integers(0, 3, 20).astype(np.int32)
    part = Images(stored, labels, np.array([f"s/{n}" for n in range(20)]))
    source = SimpleNamespace(mean=np.zeros(0, np.float32), std=np.zeros(0, np.float32))
    arrays = to_device(source, part, mesh)
    assert all(leaf.ndim <= 2 for leaf in jax.tree.leaves(arrays.images))
    assert isinstance(arrays.images, FlatRows) == (len(shape) > 1)
    assert input_shapes(arrays, 5) == jax.ShapeDtypeStruct((5, *shape), jnp.int32)
    rows = Rows(np.array([4, 0, 4, 19, 7, 8, 9, 3], np.int32), np.ones(8, bool))
    found = jax.jit(preprocess)(arrays, rows, KEY)
    np.testing.assert_array_equal(found.inputs, stored[rows.indices])
    np.testing.assert_array_equal(found.labels, labels[rows.indices])
    if len(shape) > 1:
        np.testing.assert_array_equal(arrays.images.whole, stored)
        assert (arrays.images.shape, arrays.images.dtype) == (stored.shape, stored.dtype)


def test_gathering_a_pair_gathers_both_sides():
    arrays = device_images()
    other = Rows(np.array([0, 5], np.int32), np.ones(2, bool))
    batch = jax.jit(gather)(arrays, IndexBatch(ROWS, other), KEY)
    np.testing.assert_allclose(batch.forget.inputs, preprocess(arrays, ROWS, KEY).inputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch.retain.labels, [0, 5])


@pytest.mark.parametrize("augmentation", ["crop", "crop_flip"])
def test_augmentation_gives_shifted_and_mirrored_crops_by_sample_and_key(augmentation):
    arrays = device_images(np.float32, augmentation)
    rows = Rows(np.full(64, 3, np.int32), np.ones(64, bool))
    augmented = np.asarray(jax.jit(preprocess)(arrays, rows, KEY).inputs)
    padded = np.pad(np.asarray(arrays.images[3]), [(1, 1), (1, 1), (0, 0)])
    crops = [padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    allowed = crops + ([crop[:, ::-1] for crop in crops] if augmentation == "crop_flip" else [])
    found = [next(n for n, crop in enumerate(allowed) if np.array_equal(crop, image)) for image in augmented]
    assert len(set(found)) > len(allowed) / 2
    np.testing.assert_array_equal(preprocess(arrays, rows, KEY).inputs, augmented)
    assert not np.array_equal(preprocess(arrays, rows, jax.random.key(9)).inputs, augmented)
