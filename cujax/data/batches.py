"""Batches of samples: a batch is an array of indices into arrays on the device, and every draw comes from one key.

Images that do not fit in memory are read from disk batch by batch, ahead of the step that uses them.
"""

import functools
import math
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
from cujax.model import PyTree
from cujax.sharding import mesh_of, num_shards, own_shards, replicate, shard_own

Augmentation = Literal["none", "crop", "crop_flip"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=("row_shape",))
@dataclass(frozen=True)
class FlatRows:
    """Rows with several axes, stored flat: a TPU copies an array with more axes in full before it gathers rows from it.

    Attributes:
        values: `[n, k]`.
        row_shape: Shape of a row; its product is k.
    """

    values: jax.Array | np.ndarray
    row_shape: tuple[int, ...]

    @classmethod
    def of(cls, stored: jax.Array | np.ndarray) -> "FlatRows":
        """The rows of an array `[n, ...]`."""
        return cls(stored.reshape(len(stored), math.prod(stored.shape[1:])), stored.shape[1:])

    @property
    def whole(self) -> jax.Array | np.ndarray:
        """The array `[n, ...]`."""
        return self.values.reshape(-1, *self.row_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array `[n, ...]`."""
        return len(self.values), *self.row_shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.values.dtype


def _is_stored(node: Any) -> bool:
    return isinstance(node, FlatRows)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("images", "labels", "mean", "std"),
    meta_fields=("augmentation",),
)
@dataclass(frozen=True)
class DeviceImages:
    """Samples of one split on the device: images that are not yet normalised, or other inputs as the network takes them.

    Attributes:
        images: `[n, H, W, C]` uint8, or float32 if already preprocessed; for other inputs, a pytree of arrays `[n, ...]`.
            Each array may be a `FlatRows`, as `to_device` stores it. `[devices, n, ...]` if each device has only the rows
            that the indices of its part of a batch refer to.
        labels: `[n]` int32, or `[devices, n]`.
        mean: `[C]` float32 of pixels in [0, 1]; `[0]` if the inputs are not images, which are neither normalised nor
            augmented.
        std: `[C]` float32, or `[0]`, likewise.
        augmentation: How each image is augmented when drawn: "crop" pads it by an eighth of its side and crops at random;
            "crop_flip" also mirrors it at random.
    """

    images: PyTree
    labels: jax.Array
    mean: jax.Array
    std: jax.Array
    augmentation: Augmentation = "none"

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the images are placed on; None for a single one."""
        return mesh_of(self.mean)

    @property
    def are_images(self) -> bool:
        """Whether the inputs are images, which are normalised (if uint8) and may be augmented."""
        return self.mean.size > 0


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images of one split on disk.

    Attributes:
        files: The files, which decode to `[n, H, W, C]` uint8.
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


def input_shapes(images: ImageSet, rows: int = 1) -> PyTree:
    """Shapes and dtypes of a batch of this many rows as a network takes it, a tree of `jax.ShapeDtypeStruct`."""
    if isinstance(images, StreamedImages):
        return jax.ShapeDtypeStruct((rows, *images.files.shape[1:]), jnp.float32)

    def of_rows(stored: jax.Array | FlatRows) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *stored.shape[1:]), jnp.float32 if images.are_images else stored.dtype)

    return jax.tree.map(of_rows, images.images, is_leaf=_is_stored)


def noise_like(key: jax.Array, inputs: PyTree) -> PyTree:
    """Standard normal noise with the shapes of inputs; zeros for non-float inputs, such as tokens and masks.

    Args:
        key: Key of the noise.
        inputs: Arrays, or their shapes and dtypes.
    """
    leaves, structure = jax.tree.flatten(inputs)
    keys = [key if number == 0 else jax.random.fold_in(key, number) for number in range(len(leaves))]
    noise = [
        jax.random.normal(own, leaf.shape) if is_float(leaf) else jnp.zeros(leaf.shape, leaf.dtype)
        for own, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noise)


def is_float(leaf: Any) -> bool:
    """Whether an array, or anything with a dtype, is of floating-point numbers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def check_float_inputs(images: ImageSet, what: str) -> None:
    """Raises ValueError, naming what a method does to inputs, if one of them is not floating-point."""
    if all(map(is_float, jax.tree.leaves(input_shapes(images)))):
        return
    raise ValueError(
        f"{what}, so all inputs must be floating-point numbers, but one of {input_shapes(images)} is not; choose another "
        "method."
    )


def to_device(source: Source, images: Images, mesh: Mesh | None = None) -> ImageSet:
    """Places the inputs of one split of a source on the device, as they are stored, unless they are streamed.

    With a mesh (`cujax.sharding.data_mesh`), every device has all of them, and computations on them are spread over it.
    """
    mean, std = replicate((jnp.asarray(source.mean), jnp.asarray(source.std)), mesh)
    if isinstance(images.images, ImageFiles):
        return StreamedImages(images.images, images.labels, mean, std)
    stored = jax.tree.map(lambda leaf: FlatRows.of(leaf) if leaf.ndim > 2 else leaf, images.images), images.labels
    inputs, labels = replicate(stored if mesh else jax.tree.map(jnp.asarray, stored), mesh)
    return DeviceImages(inputs, labels, mean, std)


def placed(images: ImageSet, batches: Iterable[Any]) -> Iterator[tuple[DeviceImages, Any]]:
    """Yields each index batch (of `Rows`, or a tree of them) with the images on the device that its indices refer to.

    For streamed images, these are only the rows of the batch, decoded by threads while earlier batches are computed; each
    host reads those of its own devices. Rows that several devices cannot share equally, such as a forget set smaller than a
    batch, are padded with masked rows of the same set.
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
        numbered = [
            replace(rows, indices=np.tile(position, parts)) for position, rows in zip(positions, leaves, strict=True)
        ]
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
    if not n_more:
        return rows
    return Rows(
        np.concatenate([rows.indices, np.resize(rows.indices, n_more)]),
        np.concatenate([rows.mask, np.zeros(n_more, bool)]),
        None if rows.values is None else np.resize(rows.values, len(rows.values) + n_more),
    )


def preprocess(arrays: DeviceImages, rows: Rows, key: jax.Array) -> Examples:
    """The rows as a network takes them: images augmented, float32, normalised per channel; other inputs unchanged.

    Pure; compiled together with its caller. `key` is used only for augmentation.

    Raises:
        ValueError: if augmentation is requested for inputs that are not images.
    """
    check_augmentation(arrays.augmentation, are_images=arrays.are_images)
    take = functools.partial(_take, indices=rows.indices, n_axes=arrays.labels.ndim)
    images, labels = jax.tree.map(take, (arrays.images, arrays.labels), is_leaf=_is_stored)
    if arrays.augmentation != "none":
        augment = functools.partial(_augment, flip=arrays.augmentation == "crop_flip")
        images = jax.vmap(augment)(images, jax.random.split(key, len(images)))
    if arrays.are_images and images.dtype == jnp.uint8:
        mean, std = arrays.mean[None, None, None, :], arrays.std[None, None, None, :]
        images = (images.astype(jnp.float32) * (1 / 255) - mean) / std
    return Examples(images, labels, jnp.asarray(rows.mask))


def check_augmentation(augmentation: Augmentation, *, are_images: bool) -> None:
    """Raises ValueError if augmentation is requested for inputs that are not images."""
    if augmentation != "none" and not are_images:
        raise ValueError(
            f"augmentation is {augmentation!r}, which works only for images [n, H, W, C], but the inputs are not images; "
            "make it 'none' (--training.augmentation none)."
        )


def examples_at(images: ImageSet, indices: np.ndarray) -> Examples:
    """The images at the given indices as a network takes them, in one batch, not augmented."""
    rows = Rows(np.asarray(indices, np.int32), np.ones(len(indices), bool))
    arrays, rows = next(placed(replace(images, augmentation="none"), [rows]))
    return preprocess(arrays, rows, jax.random.key(0))


def _take(stored: jax.Array | FlatRows, *, indices: jax.Array | np.ndarray, n_axes: int) -> jax.Array:
    if isinstance(stored, FlatRows):
        return jnp.take(stored.values, indices, axis=0).reshape(-1, *stored.row_shape)
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
    """The `Batch` at the given indices. Pure; compiled together with the step."""
    forget_key, retain_key = jax.random.split(key)
    return Batch(preprocess(arrays, index_batch.forget, forget_key), preprocess(arrays, index_batch.retain, retain_key))


def batches_of_all(rows: np.ndarray, batch_size: int, key: jax.Array | None = None) -> Iterator[Rows]:
    """Yields every row once, shuffled if a key is given, in batches of one static size.

    If the last batch is short, it is padded with masked rows of the same set: they pass through the network and its batch
    statistics like real images, but do not count in any loss.
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
    """Yields the index batches of one pass of Algorithm 1 over the forget set.

    Every forget row occurs once per pass, in a new order. Each forget batch is repeated `retain_draws` times (the paper's
    omega), each time with the next batch of a shuffled stream over the whole retain set. The stream continues from pass to
    pass and is reshuffled after each round.

    Args:
        forget: Indices of the forget set.
        retain: Indices of the retain set.
        forget_batch_size: Rows of each forget batch; a smaller forget set forms one batch.
        retain_batch_size: Rows of each retain batch.
        retain_draws: Retain batches for each forget batch.
        forget_pass: The number of the pass, from 0.
        key: The run's key; the same key gives the same batches, whichever pass a run starts from.

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
