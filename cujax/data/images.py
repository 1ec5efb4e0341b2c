"""Labelled images in memory or on disk, or other inputs in memory: how they are selected, and code that readers share."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from cujax._ranges import Count, NotNegative, Pixels, ProportionBelowOne, Seed, check_fields
from cujax.data.decoding import ImageFiles, check_background
from cujax.progress import Progress

DIGITS = "digits"


DEFAULT_DATA_DIR = "~/tensorflow_datasets"


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled samples of one split.

    Attributes:
        images: `[n, H, W, C]` uint8, or float32 if already preprocessed; or the files, if they do not fit in memory. For
            inputs that are not images, a pytree of arrays `[n, ...]` as the network takes them.
        labels: `[n]` int32.
        ids: `[n]` str, unique: the same image has the same id in every run.
        subjects: `[n]` str, the subject of each sample; None if unknown.
    """

    images: Any
    labels: np.ndarray
    ids: np.ndarray
    subjects: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def pixel_digests(self) -> np.ndarray:
        """`[n]` str: the `pixel_digest` of each image, or the digest of each sample of other inputs."""
        files = self.images
        if isinstance(files, np.ndarray) and files.ndim == 4:
            return np.array([pixel_digest(image) for image in files], str)
        if not isinstance(files, ImageFiles):
            leaves = list(map(np.asarray, jax.tree.leaves(files)))
            return np.array([sample_digest([leaf[row] for leaf in leaves]) for row in range(len(self))], str)
        if files.digests is not None:
            return files.digests
        return np.array([pixel_digest(files.read(np.array([row]))[0]) for row in range(len(self))], str)

    def take(self, indices: np.ndarray) -> "Images":
        """The rows at `indices`."""
        inputs = jax.tree.map(lambda rows: rows[indices], self.images)
        subjects = None if self.subjects is None else self.subjects[indices]
        return Images(inputs, self.labels[indices], self.ids[indices], subjects)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set.

    Attributes:
        name: Its name, or the file it came from.
        version: Identifies its content: a version, or a digest.
        train: Training images.
        test: Test images.
        class_names: Name of each class; their number is the number of classes.
        mean: `[C]` float32, subtracted from pixels scaled to [0, 1]; zeros if images are preprocessed, `[0]` if the inputs
            are not images.
        std: `[C]` float32, by which the difference is divided, or `[0]`.
        redrawn_ids: Ids of the training images whose labels were redrawn (label noise).
        skipped: What was left out, and why.
        root: The folder to which ids are relative paths; None if they are not paths.
    """

    name: str
    version: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    redrawn_ids: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    root: str | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def are_images(self) -> bool:
        """Whether the inputs are images."""
        return len(self.mean) > 0

    @property
    def input_shapes(self) -> Any:
        """Shapes and dtypes of one row as a network takes it: a tree of `jax.ShapeDtypeStruct` `[1, ...]`."""

        def of_one(rows: Any) -> jax.ShapeDtypeStruct:
            kept = np.uint8 if isinstance(rows, ImageFiles) else rows.dtype
            return jax.ShapeDtypeStruct((1, *rows.shape[1:]), np.float32 if self.are_images else kept)

        return jax.tree.map(of_one, self.train.images)

    @property
    def input_words(self) -> str:
        """Describes a row in messages, for example "images [8, 8, 1]"."""
        shapes = self.input_shapes
        if self.are_images:
            return f"images {list(shapes.shape[1:])}"
        named = jax.tree_util.tree_flatten_with_path(shapes)[0]
        return "inputs " + ", ".join(f"{jax.tree_util.keystr(path)}{list(one.shape[1:])}" for path, one in named)


@dataclass(frozen=True)
class Data:
    """Which images to train on.

    Attributes:
        source: Either "digits" (scikit-learn's 8x8 digits, no download); or the name of a TFDS data set, such as "cifar10"
            or "fashion_mnist" (NAME/CONFIG if it has several configurations); or a path, which must contain a "/". A path
            leads to an .npz file with images (or inputs, for tables and series), labels and optionally ids, test_images,
            test_labels and test_ids; to a folder of images, CLASS/IMAGE.png (or .jpg), or train/CLASS/... and
            test/CLASS/...; or to the binary archive of CIFAR (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz).
        data_dir: Folder of the TFDS data sets (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets).
        limit: Use only the first training images, up to this number. Images that are skipped or held out for testing do not
            count, and the test images do not depend on the limit.
        label_noise: Fraction of the training labels that are replaced with a random other class. A model can only memorise
            such labels, so there is something to forget. Test labels are not changed.
        label_noise_seed: Seed of the label noise.
        image_size: For a folder of images: scale and crop each image to a square with sides of this many pixels. Needed if
            sizes differ.
        background: For a folder of images: the background colour for transparent images, such as white, black or #808080.
        layout: For an .npz file: "nhwc", or "nchw" for images [n, C, H, W] as in PyTorch.
        skip_bad: For a folder of images: skip images that cannot be used, and list them, instead of stopping.
        memory_gb: The maximum memory for decoded images, in 10^9 bytes. A larger folder of images is decoded batch by batch;
            larger data of other kinds is rejected.
    """

    source: str = DIGITS
    data_dir: str | None = None
    limit: Count | None = None
    label_noise: ProportionBelowOne = 0.0
    label_noise_seed: Seed = 0
    image_size: Pixels | None = None
    background: str = field(default="white", metadata={"since": "0.2"})
    layout: Literal["nhwc", "nchw"] = field(default="nhwc", metadata={"since": "0.2"})
    skip_bad: bool = False
    memory_gb: NotNegative = 4.0

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        check_background(self.background)
        if not self.source.strip():
            raise ValueError("data.source is empty; give the name of a data set, or a path with a / in it.")


# Per-channel mean and standard deviation of the training pixels in [0, 1], as commonly used.
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}


def content_digest(train: Images, test: Images) -> str:
    """Identifies the content of images in memory: "sha256" and the first 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in (train, test):
        for path, leaf in jax.tree_util.tree_flatten_with_path(part.images)[0]:
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        digest.update(part.labels.tobytes() + "\n".join(part.ids).encode())
        digest.update(b"" if part.subjects is None else "\n".join(part.subjects).encode())
    return f"sha256 {digest.hexdigest()[:16]}"


def pixel_digest(pixels: np.ndarray) -> str:
    """Identifies the pixels of an image: a digest over shape, dtype and values; "" for an image of a single colour."""
    if (pixels == pixels[0, 0]).all():
        return ""
    head = f"{pixels.shape} {pixels.dtype} ".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()


def sample_digest(leaves: Sequence[np.ndarray]) -> str:
    """Identifies the inputs of a sample, over all of their arrays; "" if all values are equal."""
    if all((leaf == np.ravel(leaf)[0]).all() for leaf in leaves if leaf.size):
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        digest.update(f"{leaf.shape} {leaf.dtype} ".encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def checked_labels(where: str, labels: np.ndarray, num_classes: int | None = None) -> np.ndarray:
    """Labels as int32.

    Raises:
        ValueError: if they are not integers, or one is negative, too large for int32, or not a class; names the row.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        first = ""
        if np.issubdtype(labels.dtype, np.floating) and (fractions := np.flatnonzero(labels % 1 != 0)).size:
            first = f"; row {fractions[0]} is {labels[fractions[0]]}"
        raise ValueError(f"{where} must be integers, but is {labels.dtype}{first}; number the classes 0, 1, 2, ...")
    for rows, rule in (
        (np.flatnonzero(labels < 0), "must count classes from 0"),
        (np.flatnonzero(labels > np.iinfo(np.int32).max - 1), "must number the classes 0, 1, 2, ... without a gap"),
        (np.flatnonzero(labels >= (num_classes or np.inf)), f"must be below {num_classes}, the number of classes"),
    ):
        if len(rows):
            raise ValueError(f"{where} {rule}, but row {rows[0]} is {labels[rows[0]]}.")
    return labels.astype(np.int32)


class TooLargeError(ValueError):
    """Data that would take more memory than it may."""


def check_memory(where: str, n_bytes: int, data: Data) -> None:
    """Raises TooLargeError if decoded images take more memory than `data.memory_gb`."""
    if n_bytes > data.memory_gb * 1e9:
        raise TooLargeError(
            f"{where} takes {n_bytes / 1e9:.2f} GB in memory, more than the {data.memory_gb:g} GB allowed. Allow more with "
            "--data.memory-gb if the machine (and the GPU or TPU) has enough, use fewer images with --data.limit if it is "
            "a TFDS data set, or export it as a folder of images (CLASS/*.png), which is decoded batch by batch."
        )


def numbered_ids(prefix: str, n: int) -> np.ndarray:
    """`[n]` str: ids for images that have none, such as "train_00017"."""
    return np.array([f"{prefix}_{row:05d}" for row in range(n)])


def rows_of_some_subjects(subjects: np.ndarray, fraction: float, *, salt: str = "") -> np.ndarray:
    """All rows of those subjects whose names have the lowest SHA-256, about this fraction of the rows, `[k]`.

    Args:
        subjects: `[n]` str.
        fraction: Fraction of the rows; subjects that would exceed it are not chosen, unless none would be chosen at all.
        salt: A different salt gives a different choice.

    >>> rows_of_some_subjects(np.array(["a", "a", "b", "c", "c", "d"]), 0.34).tolist()
    [2, 5]
    """
    names, counts = np.unique(subjects, return_counts=True)
    order = np.argsort([hashlib.sha256(f"{salt}{name}".encode()).hexdigest() for name in names.tolist()])
    chosen: list[int] = []
    for number in order.tolist():
        if counts[[*chosen, number]].sum() <= fraction * len(subjects):
            chosen.append(number)
    return np.flatnonzero(np.isin(subjects, names[chosen or order[:1].tolist()]))


def hold_out_fifth(images: Images) -> tuple[Images, Images]:
    """Turns every fifth image of each class, in order, into a test image; of 2 to 4 images, the last.

    If subjects are known, all samples of about a fifth of them become test samples: each subject is in only one part.
    """
    is_test = np.zeros(len(images), bool)
    if images.subjects is not None:
        is_test[rows_of_some_subjects(images.subjects, 0.2, salt="test ")] = True
        return images.take(np.flatnonzero(~is_test)), images.take(np.flatnonzero(is_test))
    for label in np.unique(images.labels):
        rows = np.flatnonzero(images.labels == label)
        is_test[rows[4::5] if len(rows) >= 5 else rows[1:][-1:]] = True
    return images.take(np.flatnonzero(~is_test)), images.take(np.flatnonzero(is_test))


def pixel_statistics(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of uint8 images in memory, for pixels in [0, 1]."""
    pixels = np.asarray(images.images).reshape(-1, images.images.shape[-1])
    mean = pixels.mean(axis=0, dtype=np.float64) / 255
    std = pixels.std(axis=0, dtype=np.float64) / 255
    return mean.astype(np.float32), np.maximum(std, 1e-6).astype(np.float32)


class Reader(NamedTuple):
    """Reads one kind of data.

    Attributes:
        matches: Whether it reads what `data.source` names; looks at the name, not at the content.
        read: Reads it. Raises ValueError or FileNotFoundError, with a message that a user can act on.
    """

    matches: Callable[[Data], bool]
    read: Callable[[Data, Progress], Source]
