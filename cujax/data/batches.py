"""How images are fed: a batch is an array of indices into images on the device, and every draw comes from one key.

Images that do not fit in memory are read from disk, a batch at a time, ahead of the step that takes them.
"""

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cujax.batch import Batch, Examples, IndexBatch, Rows
from cujax.data.decoding import ImageFiles
from cujax.data.images import Images, Source
from cujax.sharding import mesh_of, num_shards, own_shards, replicate, shard_own

Augmentation = Literal["none", "crop", "crop_flip"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("images", "labels", "mean", "std"),
    meta_fields=("augmentation",),
)
@dataclass(frozen=True)
class DeviceImages:
    """Images of one split on the device, not yet normalised.

    Attributes:
        images: `[n, H, W, C]` uint8, or float32 if already preprocessed. `[devices, n, H, W, C]` where each device holds
            only the rows that its part of a batch counts in.
        labels: `[n]` int32, or `[devices, n]`.
        mean: `[C]` float32 of pixels in [0, 1].
        std: `[C]` float32, likewise.
        augmentation: What is done to each image as it is drawn: "crop" pads it by an eighth of its side and crops at
            random, "crop_flip" mirrors it at random besides.
    """

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array
    augmentation: Augmentation = "none"

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the images are placed on; None for a single one."""
        return mesh_of(self.mean)


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images of one split on disk.

    Attributes:
        files: What decodes them, `[n, H, W, C]` uint8.
        labels: `[n]` int32.
        mean: As in `DeviceImages`.
        std: As in `DeviceImages`.
        augmentation: As in `DeviceImages`.
    """

    files: ImageFiles
    labels: np.ndarray
    mean: jax.Array
    std: jax.Array
    augmentation: Augmentation = "none"

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the images are placed on; None for a single one."""
        return mesh_of(self.mean)


ImageSet = DeviceImages | StreamedImages


def image_shape(images: ImageSet) -> tuple[int, ...]:
    """Height, width and channels of each image."""
    return (images.images if isinstance(images, DeviceImages) else images.files).shape[1:]


def to_device(source: Source, images: Images, mesh: Mesh | None = None) -> ImageSet:
    """Places the images of one split of a source on the device, as they are stored, unless they are streamed.

    With a mesh (`cujax.sharding.data_mesh`) every device has them all, and what is computed from them is spread over it.
    """
    mean, std = replicate((jnp.asarray(source.mean), jnp.asarray(source.std)), mesh)
    if isinstance(images.images, np.ndarray):
        pixels, labels = (images.images, images.labels) if mesh else map(jnp.asarray, (images.images, images.labels))
        return DeviceImages(replicate(pixels, mesh), replicate(labels, mesh), mean, std)
    return StreamedImages(images.images, images.labels, mean, std)


def placed(images: ImageSet, batches: Iterable[Any]) -> Iterator[tuple[DeviceImages, Any]]:
    """Each index batch (of `Rows`, or of a tree of them) with the images on the device that its indices count in.

    Of streamed images these are the rows of the batch alone, decoded by threads while earlier batches are computed; each
    host reads those of its own devices. What several devices cannot share equally, as a forget set smaller than a batch, is
    filled with rows of the same set, masked out.
    """
    mesh = images.mesh
    parts = num_shards(mesh)
    fill = functools.partial(jax.tree.map, lambda rows: _filled(rows, parts), is_leaf=_is_rows)
    if isinstance(images, DeviceImages):
        yield from ((images, fill(batch)) for batch in batches)
        return
    import grain

    files, labels, own = images.files, images.labels, own_shards(mesh)

    def fetch(batch: Any) -> tuple[np.ndarray, np.ndarray, Any]:
        leaves, structure = jax.tree.flatten(fill(batch), is_leaf=_is_rows)
        by_part = [rows.indices.reshape(parts, -1) for rows in leaves]
        indices = np.concatenate(by_part, axis=1)[own]
        ends = np.cumsum([part.shape[1] for part in by_part])
        positions = np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
        numbered = [Rows(np.tile(position, parts), rows.mask) for position, rows in zip(positions, leaves, strict=True)]
        pixels = files.read(indices.reshape(-1)).reshape(*indices.shape, *files.image_shape)
        return pixels, labels[indices], jax.tree.unflatten(structure, numbered)

    threads = os.cpu_count() or 1
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    for pixels, batch_labels, batch in grain.MapDataset.source(list(batches)).map(fetch).to_iter_dataset(ahead):
        stored = shard_own(pixels, mesh), shard_own(batch_labels, mesh)
        yield DeviceImages(*stored, images.mean, images.std, images.augmentation), batch


def _is_rows(node: Any) -> bool:
    return isinstance(node, Rows)


def _filled(rows: Rows, multiple: int) -> Rows:
    n_more = -len(rows.indices) % multiple
    return Rows(
        np.concatenate([rows.indices, np.resize(rows.indices, n_more)]),
        np.concatenate([rows.mask, np.zeros(n_more, bool)]),
    )


def preprocess(arrays: DeviceImages, rows: Rows, key: jax.Array) -> Examples:
    """The rows as a network takes them: augmented, float32, normalised per channel.

    Pure; compiled with what uses it. `key` is read where there is augmentation.
    """
    images, labels = (_take(stored, rows.indices, arrays.labels.ndim) for stored in (arrays.images, arrays.labels))
    if arrays.augmentation != "none":
        augment = functools.partial(_augment, flip=arrays.augmentation == "crop_flip")
        images = jax.vmap(augment)(images, jax.random.split(key, len(images)))
    if images.dtype == jnp.uint8:
        mean, std = arrays.mean[None, None, None, :], arrays.std[None, None, None, :]
        images = (images.astype(jnp.float32) * (1 / 255) - mean) / std
    return Examples(images, labels, jnp.asarray(rows.mask))


def examples_at(images: ImageSet, indices: np.ndarray) -> Examples:
    """The images at some indices as a network takes them, in one batch, not augmented."""
    rows = Rows(np.asarray(indices, np.int32), np.ones(len(indices), bool))
    arrays, rows = next(placed(replace(images, augmentation="none"), [rows]))
    return preprocess(arrays, rows, jax.random.key(0))


def _take(stored: jax.Array, indices: jax.Array | np.ndarray, n_axes: int) -> jax.Array:
    if n_axes == 1:
        return jnp.take(stored, indices, axis=0)
    by_device = jax.vmap(lambda own, rows: jnp.take(own, rows, axis=0))(stored, indices.reshape(len(stored), -1))
    return by_device.reshape(-1, *stored.shape[2:])


def _augment(image: jax.Array, key: jax.Array, *, flip: bool) -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    height, width, _ = image.shape
    pad = (height // 8, width // 8)
    offset = jax.random.randint(crop_key, (2,), 0, 2 * jnp.array(pad) + 1)
    padded = jnp.pad(image, [(pad[0], pad[0]), (pad[1], pad[1]), (0, 0)])
    cropped = jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)
    return jnp.where(jax.random.bernoulli(flip_key), cropped[:, ::-1], cropped) if flip else cropped


def gather(arrays: DeviceImages, index_batch: IndexBatch, key: jax.Array) -> Batch:
    """The `Batch` at some indices. Pure; compiled together with the step."""
    forget_key, retain_key = jax.random.split(key)
    return Batch(preprocess(arrays, index_batch.forget, forget_key), preprocess(arrays, index_batch.retain, retain_key))


def batches_of_all(rows: np.ndarray, batch_size: int, key: jax.Array | None = None) -> Iterator[Rows]:
    """Every row once, shuffled if a key is given, in batches of one static size.

    The last batch, if short, is filled with rows of the same set, masked out: they pass through the network, and its
    batch statistics, as real images do, and count in no loss.
    """
    order = np.asarray(rows if key is None else jax.random.permutation(key, rows), np.int32)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        n = len(indices)
        yield Rows(np.concatenate([indices, np.resize(order, batch_size - n)]), np.arange(batch_size) < n)


def paired_batches(
    forget: np.ndarray,
    retain: np.ndarray,
    *,
    forget_batch_size: int,
    retain_batch_size: int,
    retain_draws: int,
    forget_pass: int,
    key: jax.Array,
) -> Iterator[IndexBatch]:
    """The index batches of one pass of Algorithm 1 over the forget set.

    Every forget row comes once a pass, in fresh order; each forget batch is repeated `retain_draws` times (the paper's
    omega), each time beside the next batch of a shuffled stream over the whole retain set, which goes on from pass to
    pass and is shuffled anew each time around.

    Args:
        forget: Indices of the forget set.
        retain: Indices of the retain set.
        forget_batch_size: Rows of each forget batch; a smaller forget set is one batch.
        retain_batch_size: Rows of each retain batch.
        retain_draws: Retain batches for each forget batch.
        forget_pass: The number of the pass, from 0.
        key: The run's key; the same key gives the same batches, wherever one begins.

    Raises:
        ValueError: if the retain batch is larger than the retain set.
    """
    check_retain_batch_size(retain_batch_size, len(retain))
    forget_key, retain_key = jax.random.split(key)
    forget_batch_size = min(forget_batch_size, len(forget))
    forget_batches = list(batches_of_all(forget, forget_batch_size, jax.random.fold_in(forget_key, forget_pass)))
    draws_per_round = len(retain) // retain_batch_size
    draw = forget_pass * len(forget_batches) * retain_draws
    order, in_round = retain, -1
    for forget_rows in forget_batches:
        for _ in range(retain_draws):
            if draw // draws_per_round != in_round:
                in_round = draw // draws_per_round
                order = np.asarray(jax.random.permutation(jax.random.fold_in(retain_key, in_round), retain), np.int32)
            start = draw % draws_per_round * retain_batch_size
            retain_rows = Rows(order[start : start + retain_batch_size], np.ones(retain_batch_size, bool))
            yield IndexBatch(forget_rows, retain_rows)
            draw += 1


def check_retain_batch_size(retain_batch_size: int, n_retain: int) -> None:
    """Raises ValueError if the retain batch is larger than the retain set."""
    if retain_batch_size > n_retain:
        raise ValueError(
            f"retain_batch_size is {retain_batch_size}, but the retain set has only {n_retain} images; "
            f"make it at most {n_retain}."
        )
