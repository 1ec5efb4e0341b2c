"""Reads the data that a configuration names. Each kind of data has its own reader, in its own file.

Out of scope: preparing or downloading data (cujax prepare-data).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cujax.data import cifar, digits, folders, npz, tfds
from cujax.data.class_labels import with_names
from cujax.data.images import Data, Images, Reader, Source, checked_labels
from cujax.progress import Progress, silent
from cujax.registry import Registry

# The first that matches reads; those that other packages register come before the two that take what is left.
_FIRST = {"digits": digits.READER, "npz": npz.READER, "cifar": cifar.READER}
_LAST = {"tfds": tfds.READER, "folder": folders.READER}
READERS: Registry[Reader] = Registry("data reader", "cujax.data", _FIRST | _LAST)


def _readers() -> Iterator[Reader]:
    for name in (*_FIRST, *READERS.others(), *_LAST):
        yield READERS.find(name)


def load_source(data: Data, progress: Progress = silent) -> Source:
    """Reads the images that `data` describes.

    Raises:
        ValueError: if images or labels are malformed (rank, NaN, labels out of range, repeated ids), a TFDS data set was
            prepared in a format that cannot be read without TensorFlow, or data that cannot be streamed exceeds the memory
            limit.
        FileNotFoundError: if the file or the prepared data set does not exist.
    """
    source = next(reader for reader in _readers() if reader.matches(data)).read(data, progress)
    source = replace(source, train=_checked(source, "training"), test=_checked(source, "test"))
    if data.limit is not None:
        source = _limited(source, data.limit)
    return _with_label_noise(source, data.label_noise, data.label_noise_seed)


def _checked(source: Source, part: str) -> Images:
    """A part whose labels are checked to be classes, whichever reader read them."""
    images = source.train if part == "training" else source.test
    return replace(images, labels=checked_labels(f"{source.name}: {part} labels", images.labels, source.num_classes))


def _limited(source: Source, limit: int) -> Source:
    """The first training images, with a note on classes that have none among them."""
    train = source.train.take(np.arange(min(limit, len(source.train))))
    missing = np.setdiff1d(source.train.labels, train.labels).tolist()
    if missing:
        names = with_names(missing, source.class_names)
        note = f"all training images of class {names}: none is among the first {limit}; shuffle the rows or raise the limit"
        source = replace(source, skipped=(*source.skipped, note))
    return replace(source, train=train)


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


__all__ = ["READERS", "Data", "Images", "Reader", "Source", "load_source"]
