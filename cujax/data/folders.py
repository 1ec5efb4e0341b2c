"""Images in folders, one per class (`CLASS/*.png`, `*.jpg`): in memory, or decoded batch by batch if they do not fit.

Every file is read once before anything is computed, to find damaged files by name and to compute the pixels' mean and
standard deviation.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

import numpy as np

from cujax.data.decoding import BadImageError, ImageFiles, decode
from cujax.data.folder_layout import find_images
from cujax.data.images import Data, Images, Reader, Source, hold_out_fifth, pixel_digest
from cujax.progress import Progress

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class FolderPart:
    """Training or test images of a folder.

    Attributes:
        images: `[n, H, W, C]` uint8, or the files if they do not fit in memory.
        labels: `[n]` int32.
        ids: `[n]` str, paths relative to the folder.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Folder:
    """The result of `read_folder`.

    Attributes:
        train: Training images, in a pseudorandom order derived from their ids, so that the first n come from all classes.
        test: Test images; None if the folder has no separate ones.
        class_names: Names of the class folders: in alphabetical order, or in numerical order if all are numbers.
        mean: `[C]` float32 of the training pixels in [0, 1].
        std: `[C]` float32, likewise.
        digest: SHA-256, in hex, over the ids and contents of all files.
        skipped: What was skipped, and why.
    """

    train: FolderPart
    test: FolderPart | None
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    digest: str
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    """One file after reading: the digests of its content and pixels, and either its pixels or what is wrong with it.

    The digest of its pixels is "" if they are of a single colour.
    """

    name: str
    label: int
    digest: str
    pixel_digest: str
    pixels: np.ndarray | None
    shape: tuple[int, ...]
    sums: np.ndarray
    problem: str | None


def read_folder(
    root: Path,
    *,
    image_size: int | None,
    background: str,
    limit: int | None,
    skip_bad: bool,
    memory_bytes: float,
    progress: Progress,
) -> Folder:
    """Reads `root/CLASS/*.png|jpg`, or `root/train/CLASS/...` with test images in `root/test` or `root/val`.

    Args:
        root: The folder.
        image_size: Images are scaled so that the shorter side has this many pixels, then centre-cropped. If not given, all
            must have the same size.
        background: The background colour for transparent images.
        limit: Read only this many training images if none can be bad or become test images; otherwise all are read, and the
            limit is applied later.
        skip_bad: Skip images that cannot be used instead of rejecting the folder.
        memory_bytes: Images that need more memory than this when decoded stay on disk and are decoded batch by batch.
        progress: Shows progress.

    Raises:
        ValueError: if there are no class folders, a class has fewer than two training images, images cannot be used
            (and are not skipped), most are of one colour each or all are equal, or sizes differ and `image_size` is not
            given.
    """
    layout = find_images(root)
    if layout.test is None or skip_bad:
        limit = None
    listed = {"train": layout.train[:limit]}
    if layout.test is not None:
        listed["test"] = layout.test
    size = None if image_size is None else (image_size, image_size)
    first = _first_size(root, [name for names in listed.values() for name, _ in names])
    probe = size or first
    stream = sum(map(len, listed.values())) * probe[0] * probe[1] * 3 > memory_bytes

    files: dict[str, list[_File]] = {}
    for part, names in listed.items():
        with progress(f"reading {part} images", len(names)) as advance:
            files[part] = list(_read_all(root, names, size, background, keep_pixels=not stream, advance=advance))
    everything = [file for part in files.values() for file in part]
    usable = [file for file in everything if file.problem is None]
    channels = _usual([file.shape[2] for file in usable])
    shape = (*probe, channels) if size else _usual([file.shape for file in usable if file.shape[2] == channels])
    bad = {}
    for file in everything:
        if file.problem is not None:
            bad[file.name] = file.problem
        elif file.shape[2] != channels:
            bad[file.name] = "greyscale among colour images" if channels == 3 else "in colour among greyscale images"
    if bad and not skip_bad:
        shown = "".join(f"\n  {root / name}: {problem}" for name, problem in list(bad.items())[:_SHOWN])
        raise ValueError(
            f"{len(bad)} of {len(everything)} images in {root} cannot be used:{shown}\n"
            "Repair or remove them, or leave them out with --data.skip-bad."
        )
    good = {part: [file for file in found if file.name not in bad] for part, found in files.items()}
    for file in (file for part in good.values() for file in part):
        if file.shape != shape:
            raise ValueError(
                f"images in {root} have different sizes: most are {shape[0]}x{shape[1]}, but {file.name} is "
                f"{file.shape[0]}x{file.shape[1]}; resize them to one size with --data.image-size, such as {min(shape[:2])}."
            )
    _refuse_without_content(root, good["train"])
    counts = np.bincount([file.label for file in good["train"]], minlength=len(layout.class_names))
    if limit is None and counts.min() < 2:
        name = layout.class_names[int(counts.argmin())]
        raise ValueError(
            f"class folder {name} of {root} has {counts.min()} usable images (.png, .jpg), but a class needs at least 2: "
            "one to train on and one to test with. Add images or remove the folder."
            + "".join(f"\n  left out: {sentence}" for sentence in layout.left_out)
        )
    digest = hashlib.sha256("\n".join(f"{file.name} {file.digest}" for file in everything).encode()).hexdigest()
    pixels = len(good["train"]) * shape[0] * shape[1]
    total = np.sum([file.sums for file in good["train"]], axis=0)
    mean = total[0] / pixels
    std = np.sqrt(np.maximum(total[1] / pixels - mean**2, 0))

    def part_of(files: list[_File]) -> FolderPart:
        return _part(root, files, shape, stream=stream, resized=size is not None, background=background)

    return Folder(
        train=part_of(good["train"]),
        test=part_of(good["test"]) if "test" in good else None,
        class_names=layout.class_names,
        mean=mean.astype(np.float32),
        std=np.maximum(std, 1e-6).astype(np.float32),
        digest=digest,
        skipped=layout.left_out + tuple(f"{name}: {problem}" for name, problem in bad.items()),
    )


def _refuse_without_content(root: Path, files: list[_File]) -> None:
    """Raises ValueError if most images are of one colour each, or all are equal: they were not read as they look."""
    way_out = (
        "Check how some of them are read. If the drawing is white and only in the transparency, give --data.background "
        "black."
    )
    constant = [file.name for file in files if not file.pixel_digest]
    if 2 * len(constant) > len(files):
        raise ValueError(
            f"{len(constant)} of {len(files)} training images in {root} have only one colour each, such as {constant[0]}, "
            f"so there is nothing to learn from them. {way_out}"
        )
    if len(files) > 1 and len({file.pixel_digest for file in files}) == 1:
        raise ValueError(f"all {len(files)} training images in {root} have the same pixels, as {files[0].name}. {way_out}")


def _first_size(root: Path, names: Iterable[str]) -> tuple[int, int]:
    """Height and width of the first image that was decoded."""
    for name in names:
        try:
            height, width, _ = decode((root / name).read_bytes(), None).shape
        except (OSError, BadImageError):
            continue
        return height, width
    raise ValueError(f"no image in {root} can be read; are they PNG or JPEG files?")


def _read_all(
    root: Path,
    names: list[tuple[str, int]],
    size: tuple[int, int] | None,
    background: str,
    *,
    keep_pixels: bool,
    advance: Callable[[int], None],
) -> Iterator[_File]:
    def read(entry: tuple[str, int]) -> _File:
        name, label = entry
        digest, nothing = "", np.zeros((2, 1))
        try:
            content = (root / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            pixels = decode(content, size, background)
        except (OSError, BadImageError) as error:
            return _File(name, label, digest, "", None, (), nothing, str(error))
        scaled = pixels.astype(np.float64) / 255
        sums = np.stack([scaled.sum(axis=(0, 1)), (scaled**2).sum(axis=(0, 1))])
        kept = pixels if keep_pixels else None
        return _File(name, label, digest, pixel_digest(pixels), kept, pixels.shape, sums, None)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for some in batched(names, 256):
            yield from threads.map(read, some)
            advance(len(some))


def _usual[T](values: list[T]) -> T:
    """The most frequent value; the first of several."""
    return max(dict.fromkeys(values), key=values.count)


def _part(
    root: Path, files: list[_File], shape: tuple[int, ...], *, stream: bool, resized: bool, background: str
) -> FolderPart:
    ids = np.array([file.name for file in files])
    labels = np.array([file.label for file in files], np.int32)
    if not stream:
        return FolderPart(np.stack([file.pixels for file in files if file.pixels is not None]), labels, ids)
    paths = np.array([str(root / file.name) for file in files])
    digests = np.array([file.pixel_digest for file in files])
    return FolderPart(ImageFiles(paths, shape, resized, background, digests), labels, ids)  # type: ignore[arg-type]


def _read(data: Data, progress: Progress) -> Source:
    path = Path(data.source).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist or is not a folder. Give a folder of images (CLASS/*.png or *.jpg), an .npz file, "
            "CIFAR's binary archive, or the NAME or NAME/CONFIG of a TFDS data set that is prepared in --data.data-dir."
        )
    found = read_folder(
        path,
        image_size=data.image_size,
        background=data.background,
        limit=data.limit,
        skip_bad=data.skip_bad,
        memory_bytes=data.memory_gb * 1e9,
        progress=progress,
    )

    def images(part: FolderPart) -> Images:
        return Images(part.images, part.labels, part.ids)

    train = images(found.train)
    train, test = hold_out_fifth(train) if found.test is None else (train, images(found.test))
    version = f"sha256 {found.digest[:16]}" + (f", {data.image_size} pixels" if data.image_size else "")
    version += f", on {data.background}" if data.background != "white" else ""
    name = path.resolve().name
    return Source(
        name, version, train, test, found.class_names, found.mean, found.std, skipped=found.skipped, root=str(path)
    )


READER = Reader(lambda data: "/" in data.source, _read)
