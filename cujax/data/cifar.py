"""CIFAR-10 and CIFAR-100 from their original binary archives, without TensorFlow and without unpickling."""

import tarfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cujax.data.images import NORMALIZATION, Data, Images, Reader, Source, content_digest, numbered_ids
from cujax.progress import Progress

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Layout:
    """The record format of one of the two: label bytes, of which the last counts, then red, green and blue planes."""

    name: str
    train: tuple[str, ...]
    test: str
    class_names: str
    label_bytes: int


_LAYOUTS = (
    _Layout("cifar10", tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1),
    _Layout("cifar100", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
)


@dataclass(frozen=True, eq=False)
class CifarArchive:
    """The content of an archive: images `[n, 32, 32, 3]` uint8, labels `[n]` int32, and class names."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def is_cifar_archive(path: Path) -> bool:
    """Whether a path is a .tar.gz file, or a folder with an unpacked one."""
    if path.name.endswith((".tar.gz", ".tgz")):
        return True
    return path.is_dir() and any((path / layout.test).is_file() for layout in _LAYOUTS)


def read_cifar(path: Path) -> CifarArchive:
    """Reads cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, or the folder that it unpacks to.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if a file is missing, truncated, or has labels out of range, or if the archive is the one with pickles.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"CIFAR archive {path} does not exist; give cifar-10-binary.tar.gz or cifar-100-binary.tar.gz."
        )
    if path.is_dir():
        return _read([file.name for file in path.iterdir()], lambda name: (path / name).read_bytes(), path)
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}

            def read(name: str) -> bytes:
                file = archive.extractfile(members[name])
                assert file is not None
                return file.read()

            return _read(members, read, path)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as a .tar.gz archive ({error}); it is truncated or damaged.") from error


def _read(files: Collection[str], read: Callable[[str], bytes], path: Path) -> CifarArchive:
    layout = next((layout for layout in _LAYOUTS if layout.test in files), None)
    if layout is None:
        pickles = any(name.startswith("data_batch") or name in ("train", "test") for name in files)
        raise ValueError(
            f"{path} holds {sorted(files)[:8]}, which is not the binary version of CIFAR"
            + (" but the one for Python, whose pickles are never opened" if pickles else "")
            + "; give cifar-10-binary.tar.gz or cifar-100-binary.tar.gz."
        )
    missing = [name for name in (*layout.train, layout.class_names) if name not in files]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; unpack or download it again.")
    names = tuple(line for line in read(layout.class_names).decode().splitlines() if line)
    train = [_records(read(name), layout, len(names), f"{path}: {name}") for name in layout.train]
    test_images, test_labels = _records(read(layout.test), layout, len(names), f"{path}: {layout.test}")
    return CifarArchive(
        layout.name,
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        test_images,
        test_labels,
        names,
    )


def _records(content: bytes, layout: _Layout, classes: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    length = layout.label_bytes + _PIXELS
    if not content or len(content) % length:
        raise ValueError(f"{where} has {len(content)} bytes, not a multiple of {length}: it is truncated or damaged.")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    labels = records[:, layout.label_bytes - 1].astype(np.int32)
    if labels.max() >= classes:
        raise ValueError(
            f"{where}: record {labels.argmax()} has label {labels.max()}, but there are {classes} classes: it is damaged."
        )
    planes = records[:, layout.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _read_source(data: Data, progress: Progress) -> Source:
    del progress
    archive = read_cifar(Path(data.source).expanduser())
    train, test = (
        Images(images, labels, numbered_ids(split, len(images)))
        for split, images, labels in (
            ("train", archive.train_images, archive.train_labels),
            ("test", archive.test_images, archive.test_labels),
        )
    )
    mean, std = (np.array(values, np.float32) for values in NORMALIZATION[archive.name])
    return Source(archive.name, content_digest(train, test), train, test, archive.class_names, mean, std)


READER = Reader(lambda data: is_cifar_archive(Path(data.source).expanduser()), _read_source)
