"""Sources of labelled images with stable ids: the embedded digits, TFDS data sets, CIFAR's archives, a user's own images.

Out of scope: preparing or downloading data (scripts/prepare_data.py).
"""

import hashlib
import math
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cujax.data.cifar import is_cifar_archive, read_cifar
from cujax.data.folders import FolderPart, ImageFiles, read_folder
from cujax.progress import Progress, silent

DIGITS = "digits"
DEFAULT_DATA_DIR = "~/tensorflow_datasets"


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one split.

    Attributes:
        images: `[n, H, W, C]` uint8, or float32 if already preprocessed; or the files, where they do not fit in memory.
        labels: `[n]` int32.
        ids: `[n]` str, unique: the same image has the same id in every run.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Images":
        """The rows at `indices`."""
        return Images(self.images[indices], self.labels[indices], self.ids[indices])


@dataclass(frozen=True, eq=False)
class Source:
    """A data set.

    Attributes:
        name: Its name, or the file it came from.
        version: What identifies its content: a version, or a digest.
        train: Training images.
        test: Test images.
        class_names: Name of each class; their number is the number of classes.
        mean: `[C]` float32, subtracted from pixels scaled to [0, 1]; zeros if images are preprocessed.
        std: `[C]` float32, by which the difference is divided.
        redrawn_ids: Ids of the training images whose labels were redrawn (label noise).
        skipped: Images that could not be used and were left out, and why.
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

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class Data:
    """Which images to learn from.

    Attributes:
        source: "digits" (scikit-learn's 8x8 digits, no download), the name of a TFDS data set ("fashion_mnist",
            "cifar10"), or a path (with a "/" in it): to an .npz file with images, labels and optionally ids, test_images,
            test_labels, test_ids; to a folder of images, CLASS/*.png or *.jpg, or train/CLASS/... beside test/CLASS/...;
            or to CIFAR's binary archive (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz).
        data_dir: Where TFDS data sets lie (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets).
        limit: Take only the first so many training images.
        label_noise: Fraction of the training labels that is redrawn among the other classes, so that there is
            something to memorise, and so to forget. Test labels stay clean.
        label_noise_seed: Seed of that draw.
        image_size: Folder of images: scale and crop each to a square of so many pixels. Needed where sizes differ.
        skip_bad: Folder of images: leave out images that cannot be used, and list them, instead of stopping.
        memory_gb: The most memory (in 10^9 bytes) that decoded images may take. A larger folder of images is decoded
            batch by batch instead; other data is refused.
    """

    source: str = DIGITS
    data_dir: str | None = None
    limit: int | None = None
    label_noise: float = 0.0
    label_noise_seed: int = 0
    image_size: int | None = None
    skip_bad: bool = False
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"label_noise must be a fraction in [0, 1), but is {self.label_noise}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 image, but is {self.limit}.")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, but is {self.image_size}.")
        if not self.memory_gb >= 0:
            raise ValueError(f"memory_gb must not be negative, but is {self.memory_gb}.")


# Per-channel mean and standard deviation of the training pixels in [0, 1], as commonly used.
_NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}
_ALIASES = {"svhn": "svhn_cropped", "fashion-mnist": "fashion_mnist"}


def load_source(data: Data, progress: Progress = silent) -> Source:
    """Reads the images that `data` describes.

    Raises:
        ValueError: if images or labels are malformed (rank, NaN, labels out of range, repeated ids), or a TFDS data set
            is prepared in a format that cannot be read without TensorFlow, or data that cannot be streamed is larger than
            the memory it may take.
        FileNotFoundError: if the file or the prepared data set is not there.
    """
    path = Path(data.source).expanduser()
    if data.source == DIGITS:
        source = _digits()
    elif data.source.endswith(".npz"):
        source = _npz(path, data)
    elif is_cifar_archive(path):
        source = _cifar(path)
    elif "/" in data.source:
        source = _folder(path, data, progress)
    else:
        source = _tfds(data, progress)
    if data.limit is not None:
        source = replace(source, train=source.train.take(np.arange(min(data.limit, len(source.train)))))
    return _with_label_noise(source, data.label_noise, data.label_noise_seed)


def _with_label_noise(source: Source, fraction: float, seed: int) -> Source:
    """Redraws a fraction of the training labels uniformly among the other classes."""
    if fraction == 0:
        return source
    rng = np.random.default_rng(seed)
    n, classes = len(source.train), source.num_classes
    redrawn = np.sort(rng.choice(n, size=round(fraction * n), replace=False))
    labels = source.train.labels.copy()
    labels[redrawn] = (labels[redrawn] + rng.integers(1, classes, size=len(redrawn))) % classes
    return replace(
        source,
        train=replace(source.train, labels=labels),
        redrawn_ids=tuple(source.train.ids[redrawn].tolist()),
    )


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Images(pixels, bunch.target.astype(np.int32), _numbered("digits", len(pixels)))
    train, test = _hold_out_fifth(everything)
    names = tuple(str(digit) for digit in range(10))
    mean, std = _pixel_statistics(train)
    return Source(DIGITS, f"scikit-learn {version('scikit-learn')}", train, test, names, mean, std)


def _cifar(path: Path) -> Source:
    archive = read_cifar(path)
    train, test = (
        Images(images, labels, _numbered(split, len(images)))
        for split, images, labels in (
            ("train", archive.train_images, archive.train_labels),
            ("test", archive.test_images, archive.test_labels),
        )
    )
    mean, std = (np.array(values, np.float32) for values in _NORMALIZATION[archive.name])
    return Source(archive.name, _content_digest(train, test), train, test, archive.class_names, mean, std)


def _folder(path: Path, data: Data, progress: Progress) -> Source:
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist or is not a folder. Give a folder of images (CLASS/*.png or *.jpg), an .npz file, "
            "CIFAR's binary archive, or the name of a TFDS data set, which has no '/' in it."
        )
    found = read_folder(
        path,
        image_size=data.image_size,
        limit=data.limit,
        skip_bad=data.skip_bad,
        memory_bytes=data.memory_gb * 1e9,
        progress=progress,
    )

    def images(part: FolderPart) -> Images:
        return Images(part.images, part.labels, part.ids)

    train = images(found.train)
    train, test = _hold_out_fifth(train) if found.test is None else (train, images(found.test))
    version = f"sha256 {found.digest[:16]}" + (f", {data.image_size} pixels" if data.image_size else "")
    name = path.resolve().name
    return Source(name, version, train, test, found.class_names, found.mean, found.std, skipped=found.skipped)


def _npz(path: Path, data: Data) -> Source:
    if not path.is_file():
        raise FileNotFoundError(
            f"data file {path} does not exist; write one with "
            f"np.savez('{path.name}', images=..., labels=...), images [n, H, W] or [n, H, W, C]."
        )
    try:
        with zipfile.ZipFile(path) as contents:
            _check_memory(str(path), sum(member.file_size for member in contents.infolist()), data)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _TooLargeError:
        raise
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as plain arrays ({error}). It must be a .npz of number and string arrays; arrays of "
            "Python objects are refused, because reading them can run code: convert them, ids with .astype(str)."
        ) from error
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise ValueError(f"{path} holds {sorted(arrays)}, but no {' and no '.join(missing)}; both are needed.")
    everything = _checked_images(str(path), arrays, "")
    if "test_images" in arrays:
        train, test = everything, _checked_images(str(path), arrays, "test_")
        if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
            raise ValueError(
                f"{path}: images and test_images must have one shape and dtype, but are "
                f"{train.images.shape[1:]} {train.images.dtype} and {test.images.shape[1:]} {test.images.dtype}."
            )
    else:
        train, test = _hold_out_fifth(everything)
    classes = int(max(train.labels.max(), test.labels.max(initial=0))) + 1
    without_images = np.setdiff1d(np.arange(min(classes, len(train) + 1)), train.labels)
    if len(without_images):
        raise ValueError(
            f"{path}: the labels go up to {classes - 1}, but no training image has label {without_images[0]}; "
            "number the classes 0, 1, 2, ... without a gap."
        )
    if train.images.dtype == np.uint8:
        mean, std = _pixel_statistics(train)
    else:
        channels = train.images.shape[3]
        mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    names = tuple(str(label) for label in range(classes))
    return Source(path.name, _content_digest(train, test), train, test, names, mean, std)


def _content_digest(train: Images, test: Images) -> str:
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(np.asarray(part.images).tobytes() + part.labels.tobytes() + "\n".join(part.ids).encode())
    return f"sha256 {digest.hexdigest()[:16]}"


class _TooLargeError(ValueError):
    """Data that would take more memory than it may."""


def _check_memory(where: str, n_bytes: int, data: Data) -> None:
    if n_bytes > data.memory_gb * 1e9:
        raise _TooLargeError(
            f"{where} takes {n_bytes / 1e9:.2f} GB in memory, more than the {data.memory_gb:g} GB it may. Allow more with "
            "--data.memory-gb where the machine (and the GPU or TPU) has it, take fewer images with --data.limit if it is a "
            "TFDS data set, or export it as a folder of images (CLASS/*.png), which is decoded batch by batch."
        )


def _checked_images(where: str, arrays: dict[str, np.ndarray], prefix: str) -> Images:
    """Images, labels and ids of a user's file, after saying what is wrong with them."""
    if f"{prefix}labels" not in arrays:
        raise ValueError(f"{where} holds {prefix}images, but no {prefix}labels.")
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{where}: {prefix}images must be [n, H, W] or [n, H, W, C] and not empty, but the shape is {images.shape}."
        )
    if np.issubdtype(images.dtype, np.floating):
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if len(bad):
            raise ValueError(
                f"{where}: {prefix}images holds NaN or infinity in {len(bad)} images, the first at rows "
                f"{bad[:5].tolist()}; mend or leave out these images."
            )
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise ValueError(
            f"{where}: {prefix}images must be uint8 (0 to 255) or float (already preprocessed), but is {images.dtype}."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{where}: {prefix}labels must be [{len(images)}] integers, one an image, but is {labels.shape} {labels.dtype}."
        )
    if labels.min() < 0:
        raise ValueError(f"{where}: {prefix}labels must count classes from 0, but row {labels.argmin()} is {labels.min()}.")
    ids = arrays.get(f"{prefix}ids")
    ids = _numbered(prefix.rstrip("_") or "train", len(images)) if ids is None else ids.astype(str)
    if ids.shape != labels.shape:
        raise ValueError(f"{where}: {prefix}ids must be [{len(images)}], one an image, but is {ids.shape}.")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise ValueError(f"{where}: {prefix}ids must be unique, but {unique[counts > 1][:5].tolist()} recur.")
    if any("\n" in name or name != name.strip() or not name for name in ids.tolist()):
        raise ValueError(f"{where}: {prefix}ids must not be empty, hold line breaks or begin or end with spaces.")
    return Images(images, labels.astype(np.int32), ids)


def _tfds(data: Data, progress: Progress) -> Source:
    import absl.logging
    import tensorflow_datasets as tfds

    absl.logging.set_verbosity(absl.logging.ERROR)
    name = _ALIASES.get(data.source, data.source)
    data_dir = Path(data.data_dir or os.environ.get("TFDS_DATA_DIR", DEFAULT_DATA_DIR)).expanduser()
    prepare = f"uv run --extra prepare scripts/prepare_data.py {name} --data-dir {data_dir}"
    builders = sorted(data_dir.glob(f"{name}/**/dataset_info.json"), key=_version_key)
    if not builders:
        raise FileNotFoundError(
            f"data set {name!r} is not in {data_dir}. If it lies elsewhere, name the folder with --data.data-dir or "
            f"TFDS_DATA_DIR. If it is nowhere yet, prepare it once, with network:\n  {prepare}\n"
            f"A folder of images in this directory is given as ./{data.source}. "
            "The embedded data set --data.source digits needs no download."
        )
    builder = tfds.builder_from_directory(builders[-1].parent)
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise ValueError(
            f"{builders[-1].parent} is prepared as {file_format and file_format.value}, which only TensorFlow can "
            f"read; cujax reads array_record. Prepare it again in another folder:\n  {prepare}-array_record"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise ValueError(
            f"data set {name!r} has the features {sorted(features)}, but an image and a class label are needed."
        )
    absent = [split for split in ("train", "test") if split not in builder.info.splits]
    if absent:
        raise ValueError(f"data set {name!r} has the splits {sorted(builder.info.splits)}, but no {absent[0]!r}.")
    shape = features["image"].shape
    if None in shape:
        raise ValueError(
            f"images of {name!r} are of different sizes {shape}; export it as a folder of images (CLASS/*.png) and bring "
            "them to one size with --data.image-size."
        )
    n_train = builder.info.splits["train"].num_examples
    n_images = min(data.limit or n_train, n_train) + builder.info.splits["test"].num_examples
    _check_memory(f"data set {name!r}", n_images * math.prod(shape), data)
    train = _read_tfds_split(builder, "train", data.limit, progress)
    test = _read_tfds_split(builder, "test", None, progress)
    if name in _NORMALIZATION:
        mean, std = (np.array(values, np.float32) for values in _NORMALIZATION[name])
    else:
        mean, std = _pixel_statistics(train)
    return Source(name, str(builder.info.version), train, test, tuple(features["label"].names), mean, std)


def _version_key(info: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", info.parent.name)]


def _read_tfds_split(builder: "object", split: str, limit: int | None, progress: Progress) -> Images:
    source = builder.as_data_source(split=split)  # type: ignore[attr-defined]
    n = len(source) if limit is None else min(limit, len(source))
    chunk = 1000
    images, labels, ids = [], [], []
    with progress(f"reading {split} images", n) as advance:
        for start in range(0, n, chunk):
            rows: Sequence[dict] = source.__getitems__(list(range(start, min(start + chunk, n))))
            images += [row["image"] for row in rows]
            labels += [row["label"] for row in rows]
            ids += [row["id"] for row in rows if "id" in row]
            advance(len(rows))
    names = np.array([name.decode() for name in ids]) if ids else _numbered(split, n)
    return Images(np.stack(images), np.array(labels, np.int32), names)


def _numbered(prefix: str, n: int) -> np.ndarray:
    return np.array([f"{prefix}_{row:05d}" for row in range(n)])


def _hold_out_fifth(images: Images) -> tuple[Images, Images]:
    """Every fifth image of each class, in order, becomes a test image."""
    is_test = np.zeros(len(images), bool)
    for label in np.unique(images.labels):
        is_test[np.flatnonzero(images.labels == label)[4::5]] = True
    return images.take(np.flatnonzero(~is_test)), images.take(np.flatnonzero(is_test))


def _pixel_statistics(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of uint8 images in memory, for pixels in [0, 1]."""
    pixels = np.asarray(images.images).reshape(-1, images.images.shape[-1])
    mean = pixels.mean(axis=0, dtype=np.float64) / 255
    std = pixels.std(axis=0, dtype=np.float64) / 255
    return mean.astype(np.float32), np.maximum(std, 1e-6).astype(np.float32)
