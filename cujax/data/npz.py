"""A user's own images, or other inputs, as one .npz file of plain arrays."""

import zipfile
from pathlib import Path

import jax
import numpy as np

from cujax.data.folder_layout import in_order
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
from cujax.data.npz_inputs import checked_inputs, finite_float32, holds_inputs
from cujax.data.npz_names import unread
from cujax.progress import Progress


def _read(data: Data, progress: Progress) -> Source:
    del progress
    path = Path(data.source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"data file {path} does not exist; write one with "
            f"np.savez('{path.name}', images=..., labels=...), images [n, H, W] or [n, H, W, C]; "
            "inputs=... for tables and series."
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
            "Python objects are rejected, because reading them can run code: convert them, ids with .astype(str)."
        ) from error
    skipped = unread(str(path), arrays)
    others = holds_inputs(arrays)
    if others and "images" in arrays:
        raise ValueError(
            f"{path} contains both images and inputs; give only one of the two, and further arrays as inputs/NAME."
        )
    if others and data.layout != "nhwc":
        raise ValueError(
            f"data.layout is {data.layout}, which applies only to images, but {path} contains inputs; leave out "
            "--data.layout."
        )
    missing = [name for name in ("images", "labels") if name not in arrays and not (others and name == "images")]
    if missing:
        raise ValueError(f"{path} holds {sorted(arrays)}, but no {' and no '.join(missing)}; both are needed.")
    where = str(path)
    has_test = holds_inputs(arrays, "test_") if others else "test_images" in arrays
    kind = "inputs" if others else "images"
    if has_test and "test_labels" not in arrays:
        raise ValueError(f"{path} holds test_{kind}, but no test_labels.")
    alone = [name for name in ("test_labels", "test_ids", "test_subjects") if name in arrays]
    if not has_test and alone:
        raise ValueError(f"{path} holds {alone[0]}, but no test_{kind}; give both, or neither.")
    labels, names = _numbered(where, [arrays[name] for name in ("labels", "test_labels")[: 1 + has_test]])
    everything = _checked_images(where, arrays, "", labels[0], data.layout)
    if has_test:
        train, test = everything, _checked_images(where, arrays, "test_", labels[1], data.layout)
        kinds = [jax.tree.map(lambda rows: f"{rows.shape[1:]} {rows.dtype}", part.images) for part in (train, test)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{path}: {kind} and test_{kind} must have the same shape and dtype, but are {kinds[0]} and {kinds[1]}."
            )
        shared = sorted(set(train.ids.tolist()) & set(test.ids.tolist()))
        if shared:
            raise ValueError(
                f"{path}: {len(shared)} ids are in both ids and test_ids, such as {shared[:5]}; an image must not be in "
                "both parts. Remove these rows from one part or, if the images differ, give them different ids."
            )
        if train.subjects is not None and test.subjects is not None:
            both = np.intersect1d(train.subjects, test.subjects).tolist()
            if both:
                raise ValueError(
                    f"{path}: {len(both)} subjects are in both subjects and test_subjects, such as {both[:5]}; a subject "
                    "must not be in both parts. Remove its rows from one part."
                )
    else:
        train, test = hold_out_fifth(everything)
    if not others:
        _refuse_without_content(f"{path}: images", train)
    classes = len(names) or int(max(train.labels.max(), test.labels.max(initial=0))) + 1
    without_images = np.setdiff1d(np.arange(min(classes, len(train) + 1)), train.labels)
    if len(without_images):
        raise ValueError(
            f"{path}: the labels go up to {classes - 1}, but no training image has label {without_images[0]}; number the "
            "classes 0, 1, 2, ... without a gap, as np.unique(labels, return_inverse=True)[1] does."
        )
    if others:
        mean = std = np.zeros(0, np.float32)
    elif train.images.dtype == np.uint8:
        mean, std = pixel_statistics(train)
    else:
        channels = train.images.shape[3]
        mean, std = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    names = names or tuple(str(label) for label in range(classes))
    return Source(path.name, content_digest(train, test), train, test, names, mean, std, skipped=skipped)


def _numbered(where: str, parts: list[np.ndarray]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """The labels of each part as numbers, and the names of the classes; no names if the labels are numbers.

    Integers may be stored as floats, and classes as text, booleans or one-hot.
    """
    if all(part.dtype.kind in "SU" for part in parts):
        texts = [_texts(f"{where}: labels", part) for part in parts]
        names = in_order(set(texts[0].ravel().tolist()))
        unknown = sorted(set(texts[-1].ravel().tolist()) - set(names))
        if unknown:
            raise ValueError(
                f"{where}: test_labels contains {unknown[:5]}, which labels does not contain; use the same classes in both."
            )
        number = {name: label for label, name in enumerate(names)}
        return [np.array([number[name] for name in part.ravel().tolist()]).reshape(part.shape) for part in texts], names
    return [_plain(part) for part in parts], ()


def _plain(labels: np.ndarray) -> np.ndarray:
    """Labels as integers if their meaning is clear: one-hot, boolean, or integers stored as floats."""
    if labels.dtype.kind == "b" and labels.ndim == 1:
        return labels.astype(np.int64)
    one_hot = labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "bifu"
    if one_hot and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        return labels.argmax(axis=1)
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels % 1 == 0).all() and (abs(labels) < 2**31).all():
        return labels.astype(np.int64)
    return labels


def _texts(where: str, values: np.ndarray) -> np.ndarray:
    """Text, or UTF-8 bytes, as text."""
    if values.dtype.kind != "S":
        return values.astype(str)
    try:
        return np.array([value.decode() for value in values.ravel().tolist()]).reshape(values.shape)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} contains bytes that are not UTF-8 ({error.object!r}); store them as text.") from error


def _checked_images(where: str, arrays: dict[str, np.ndarray], prefix: str, labels: np.ndarray, layout: str) -> Images:
    """Images (or other inputs), labels and ids of a user's file, after checking them."""
    if f"{prefix}images" in arrays:
        images = _channels_last(f"{where}: {prefix}images", arrays[f"{prefix}images"], labels, layout)
        images = images if images.dtype == np.uint8 else _preprocessed(f"{where}: {prefix}images", images)
        n, each = len(images), "for each image"
    else:
        images = checked_inputs(where, arrays, prefix)
        n, each = len(jax.tree.leaves(images)[0]), "for each row"
    if labels.shape != (n,):
        column = f"; give {prefix}labels[:, 0]" if labels.shape == (n, 1) else ""
        raise ValueError(
            f"{where}: {prefix}labels must be [{n}] integers, one {each}, but is {labels.shape} {labels.dtype}{column}."
        )
    labels = checked_labels(f"{where}: {prefix}labels", labels)
    given = arrays.get(f"{prefix}ids")
    numbered = numbered_ids(prefix.rstrip("_") or "train", n)
    ids = numbered if given is None else _checked_ids(f"{where}: {prefix}ids", given, n)
    subjects = arrays.get(f"{prefix}subjects")
    if subjects is not None:
        if subjects.shape != (n,) or subjects.dtype.kind not in "iuSU":
            raise ValueError(
                f"{where}: {prefix}subjects must be [{n}] texts or integers, one {each}, but is {subjects.shape} "
                f"{subjects.dtype}."
            )
        subjects = _texts(f"{where}: {prefix}subjects", subjects)
    return Images(images, labels, ids, subjects)


# More on the last axis, after at most 4 on the first, are pixels of a row.
_MOST_CHANNELS = 16


def _channels_last(where: str, images: np.ndarray, labels: np.ndarray, layout: str) -> np.ndarray:
    """The images of a file as `[n, H, W, C]`."""
    if images.ndim == 3:
        images = images[..., None] if layout == "nhwc" else images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        side = round(images.shape[1] ** 0.5) if images.ndim == 2 else 0
        rows = f"; if they are rows of pixels, give images.reshape(-1, {side}, {side})" * (side * side > 0)
        raise ValueError(
            f"{where} must be [n, H, W] or [n, H, W, C] and not empty, but the shape is {images.shape}"
            f"{rows if side and side * side == images.shape[1] else ''}."
        )
    if len(images) != len(labels) == images.shape[-1]:
        raise ValueError(
            f"{where} has the shape {images.shape}, whose last axis counts the {len(labels)} labels; give "
            "np.moveaxis(images, -1, 0)."
        )
    first, *inner, last = images.shape[1:]
    sides = {"nhwc": (*inner, last), "nchw": (first, *inner)}[layout]
    channels, other = {"nhwc": (first, last), "nchw": (last, first)}[layout]
    looks_square = min(sides) > 4 and max(sides) <= 4 * min(sides)
    many_channels = layout == "nhwc" and first <= 4 and last > _MOST_CHANNELS
    if many_channels or (channels in (1, 3, 4) and other > 4 and looks_square):
        if layout == "nhwc":
            raise ValueError(
                f"{where} has the shape {images.shape}, which looks like [n, C, H, W], PyTorch's order, and would be read "
                f"as images of {other} channels. Give --data.layout nchw, or store images.transpose(0, 2, 3, 1); if the "
                "last axis really counts channels, store the array as inputs, not as images."
            )
        raise ValueError(
            f"{where} has the shape {images.shape}, which looks like [n, H, W, C], but data.layout is nchw; leave it out."
        )
    return images if layout == "nhwc" else np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _preprocessed(where: str, images: np.ndarray) -> np.ndarray:
    """Float images as float32, after checking whether they are preprocessed."""
    if not np.issubdtype(images.dtype, np.floating):
        way_out = "store them as uint8"
        if images.dtype.kind == "b":
            way_out = "give images.astype(np.uint8) * 255"
        elif images.dtype.kind in "iu" and images.min() >= 0:
            largest = int(images.max())
            way_out = "give images.astype(np.uint8)" if largest <= 255 else "give (images // 257).astype(np.uint8)"
            way_out += f" (the largest value is {largest})"
        raise ValueError(
            f"{where} must be uint8 (0 to 255) or float (already preprocessed), but is {images.dtype}; {way_out}."
        )
    narrow = finite_float32(where, images, "images")
    mean, std = float(narrow.mean(dtype=np.float64)), float(narrow.std(dtype=np.float64))
    if abs(mean) > _LARGEST_MEAN or not _SMALLEST_STD < std < _LARGEST_STD:
        raise ValueError(
            f"{where} are float, which is taken as preprocessed, but their values go from {narrow.min():g} to "
            f"{narrow.max():g} (mean {mean:.3g}, standard deviation {std:.3g}), far from mean 0 and deviation 1. Store "
            "pixels of 0 to 255 as uint8, which is normalised here, or normalise them: (images - images.mean()) / "
            "images.std()."
        )
    return narrow


# Pixels in [0, 1] and any usual normalisation lie within; raw pixels, decibels and counts do not.
_LARGEST_MEAN = 3.0
_SMALLEST_STD = 0.01
_LARGEST_STD = 4.0


def _refuse_without_content(where: str, images: Images) -> None:
    """Raises ValueError if most images are of one colour each, or all are equal."""
    digests = images.pixel_digests.tolist()
    constant = digests.count("")
    if 2 * constant > len(images):
        raise ValueError(
            f"{where}: {constant} of {len(images)} training images have only one colour each, so there is nothing to learn "
            "from them; check how they were stored."
        )
    if len(images) > 1 and len(set(digests)) == 1:
        raise ValueError(f"{where}: all {len(images)} training images have the same pixels; check how they were stored.")


def _checked_ids(where: str, ids: np.ndarray, n: int) -> np.ndarray:
    if ids.shape != (n,):
        raise ValueError(f"{where} must be [{n}], one for each image, but is {ids.shape}.")
    if ids.dtype.kind == "f":
        bad = np.flatnonzero(~(np.isfinite(ids) & (ids % 1 == 0) & (abs(ids) < 2**53)))
        if len(bad):
            raise ValueError(
                f"{where} are floats, and row {bad[0]} is {ids[bad[0]]}, which is not a whole number below 2**53, so two "
                "different ids may become equal; store integers or text."
            )
        ids = ids.astype(np.int64)
    ids = _texts(where, ids)
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise ValueError(f"{where} must be unique, but {unique[counts > 1][:5].tolist()} occur more than once.")
    malformed = [row for row, name in enumerate(ids.tolist()) if not name or name != name.strip() or {*name} & {*"\r\n"}]
    if malformed:
        raise ValueError(
            f"{where} must not be empty, contain line breaks, or begin or end with spaces, but row {malformed[0]} is "
            f"{str(ids[malformed[0]])!r}."
        )
    return ids


READER = Reader(lambda data: data.source.endswith(".npz"), _read)
