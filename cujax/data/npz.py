"""A user's own images as one .npz file of plain arrays."""

import zipfile
from pathlib import Path

import numpy as np

from cujax.data.images import (
    Data,
    Images,
    Reader,
    Source,
    TooLargeError,
    check_memory,
    checked_labels,
    content_digest,
    hold_out_fifth,
    numbered_ids,
    pixel_statistics,
)
from cujax.progress import Progress


def _read(data: Data, progress: Progress) -> Source:
    del progress
    path = Path(data.source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"data file {path} does not exist; write one with "
            f"np.savez('{path.name}', images=..., labels=...), images [n, H, W] or [n, H, W, C]."
        )
    try:
        with zipfile.ZipFile(path) as contents:
            check_memory(str(path), sum(member.file_size for member in contents.infolist()), data)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except TooLargeError:
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
        train, test = hold_out_fifth(everything)
    classes = int(max(train.labels.max(), test.labels.max(initial=0))) + 1
    without_images = np.setdiff1d(np.arange(min(classes, len(train) + 1)), train.labels)
    if len(without_images):
        raise ValueError(
            f"{path}: the labels go up to {classes - 1}, but no training image has label {without_images[0]}; "
            "number the classes 0, 1, 2, ... without a gap."
        )
    if train.images.dtype == np.uint8:
        mean, std = pixel_statistics(train)
    else:
        channels = train.images.shape[3]
        mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    names = tuple(str(label) for label in range(classes))
    return Source(path.name, content_digest(train, test), train, test, names, mean, std)


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
                f"{bad[:5].tolist()}; fix or leave out these images."
            )
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise ValueError(
            f"{where}: {prefix}images must be uint8 (0 to 255) or float (already preprocessed), but is {images.dtype}."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{where}: {prefix}labels must be [{len(images)}] integers, one an image, but is {labels.shape} {labels.dtype}."
        )
    labels = checked_labels(f"{where}: {prefix}labels", labels)
    ids = arrays.get(f"{prefix}ids")
    ids = numbered_ids(prefix.rstrip("_") or "train", len(images)) if ids is None else ids.astype(str)
    if ids.shape != labels.shape:
        raise ValueError(f"{where}: {prefix}ids must be [{len(images)}], one an image, but is {ids.shape}.")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise ValueError(f"{where}: {prefix}ids must be unique, but {unique[counts > 1][:5].tolist()} recur.")
    if any("\n" in name or name != name.strip() or not name for name in ids.tolist()):
        raise ValueError(f"{where}: {prefix}ids must not be empty, hold line breaks or begin or end with spaces.")
    return Images(images, labels, ids)


READER = Reader(lambda data: data.source.endswith(".npz"), _read)
