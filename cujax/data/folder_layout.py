"""Determines which files of a folder are images, and their class and part: `CLASS/IMAGE`, or the same below train and test.

Nothing is skipped silently: skipped files are counted and named, with the reason.
"""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SHOWN = 5
# The names of the parts of a data set.
PARTS = {
    "train": {"train", "training"},
    "test": {"test", "testing"},
    "held-out": {"holdout", "heldout"},
    "validation": {"val", "valid", "validation", "eval", "evaluation", "dev"},
}
_PART_NAMES = "train (or training) and test (or testing, holdout, val, valid, validation)"
# Words for a part of a data set that do not say which part it is.
_UNCLEAR_PARTS = {
    *("learn", "learning", "fit", "check", "checking", "verify", "verification", "unseen", "seen", "predict", "pred"),
    *("query", "gallery", "support", "probe", "fold", "part", "split", "set", "half"),
}


@dataclass
class LeftOut:
    """Files that are not read, by reason."""

    paths: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: str, reason: str) -> None:
        """Records a path and the reason why it is not read."""
        self.paths[reason].append(path)

    def sentences(self) -> tuple[str, ...]:
        """One sentence per reason: how many files, and an example."""
        return tuple(
            f"{paths[0]}: {reason}" if len(paths) == 1 else f"{len(paths)} files or folders, such as {paths[0]}: {reason}"
            for reason, paths in ((reason, sorted(paths)) for reason, paths in sorted(self.paths.items()))
        )


@dataclass(frozen=True)
class Layout:
    """The image files of a folder.

    Attributes:
        train: Path below the folder and label of each training image, in a pseudorandom order derived from the path.
        test: The same for the test images; None if the folder has no separate ones.
        class_names: Names of the class folders: sorted as text, or numerically if all are numbers.
        left_out: What is not read, and why, in sentences.
    """

    train: list[tuple[str, int]]
    test: list[tuple[str, int]] | None
    class_names: tuple[str, ...]
    left_out: tuple[str, ...]


def find_images(root: Path) -> Layout:
    """Lists the images of a folder, without reading them.

    Hidden files and folders, and what archives and notebooks leave behind, are skipped. A link to something that is read
    anyway is skipped; other links are followed, but only one of several that lead to the same file.

    Raises:
        ValueError: if the layout of the folder is not known; the message says what to do.
    """
    left_out = LeftOut()
    train_root, test_root = _parts(root, left_out)
    class_names = _class_names(train_root, root, left_out)
    if test_root is None:
        _refuse_parts_without_classes(root, class_names)
    label_of = {composed(name): label for label, name in enumerate(class_names)}
    if test_root is not None:
        test_names = _class_names(test_root, root, left_out)
        surplus = sorted(name for name in test_names if composed(name) not in label_of)
        if surplus:
            raise ValueError(
                f"{test_root} has the class folders {surplus[:_SHOWN]}, which {train_root} does not have; both must be laid "
                "out as CLASS/IMAGE, with the same classes."
            )
    _refuse_parts_as_classes(train_root, class_names, left_out)
    linked: dict[str, str] = {}
    train = _listed(train_root, root, label_of, left_out, linked)
    if test_root is None and len(class_names) == 1:
        raise ValueError(
            f"{root} has one class folder, {class_names[0]!r}, but a classifier needs at least 2. If the classes are "
            f"the folders in it, give {train_root / class_names[0]}/ as the source."
        )
    test = None if test_root is None else _listed(test_root, root, label_of, left_out, linked)
    return Layout(train, test, class_names, left_out.sentences())


def in_order[Name: str](names: Iterable[Name]) -> tuple[Name, ...]:
    """Names in alphabetical order, or in numerical order if all are integers.

    >>> in_order(["10", "9", "0"])
    ('0', '9', '10')
    """
    names = list(names)
    if all(re.fullmatch(r"[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def is_hidden(name: str) -> bool:
    """Whether a name belongs to a file or folder that is not data: hidden, or left by an archiver or a file manager.

    >>> [is_hidden(name) for name in (".ipynb_checkpoints", "._7.png", "__MACOSX", "7.png")]
    [True, True, True, False]
    """
    return name.startswith(".") or name in ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN") or name in _LITTER


_LITTER = ("Thumbs.db", "desktop.ini", "Desktop.ini")
_HIDDEN = "hidden, or left by an archiver, a notebook or a file manager"


def composed(name: str) -> str:
    """A name in Unicode's composed form: file systems may store the same name in two forms."""
    return unicodedata.normalize("NFC", name)


def _parts(root: Path, left_out: LeftOut) -> tuple[Path, Path | None]:
    """The folders of the training and test images; the folder itself and None if it is not divided."""
    folders = [path for path in _folders(root) if not _holds_images(path)]
    by_part: dict[str, list[Path]] = {part: [] for part in PARTS}
    for path in folders:
        part = _part_named(path.name)
        if part is not None and any(_folders(path)):
            by_part[part].append(path)
    for part, paths in by_part.items():
        if len(paths) > 1:
            found = ", ".join(sorted(path.name for path in paths))
            raise ValueError(
                f"{root} has several folders of {part} images: {found}; keep one of them there. The expected names are "
                f"{_PART_NAMES}."
            )
    if not by_part["train"]:
        held_out = [path.name for paths in by_part.values() for path in paths]
        if held_out and len(held_out) == len(folders) == len(list(_folders(root))):
            raise ValueError(
                f"{root} has the folders {held_out} of held-out images, but no folder of training images; the expected "
                f"names are {_PART_NAMES}, each laid out as CLASS/IMAGE."
            )
        return root, None
    train = by_part["train"][0]
    test = next((path for paths in by_part.values() for path in paths if path != train), None)
    flat = [
        path.name for path in _folders(root) if _part_named(path.name) not in (None, "train") and not any(_folders(path))
    ]
    if test is None and flat:
        raise ValueError(
            f"{root / flat[0]} has no class folders; lay the images out as CLASS/IMAGE as in {train}, or move the folder "
            "away; a fifth of each class is then held out for testing."
        )
    if test is None:
        _refuse_class_as_part(root, train, folders)
    for path in _folders(root):
        if path not in (train, test):
            left_out.add(f"{path.name}/", f"a folder next to {train.name}" + (f" and {test.name}" if test else ""))
    return train, test


def words(name: str) -> list[str]:
    """The words of a name, in lower case.

    >>> words("TrainImages_2"), words("testX")
    (['train', 'images'], ['test', 'x'])
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return re.findall(r"[a-z]+", spaced.lower())


def _spellings(name: str) -> set[str]:
    """The words of a name without what says that it holds images, and neighbouring words as one.

    >>> sorted(_spellings("Held_out")), sorted(_spellings("TrainImages2") & _spellings("traindata"))
    (['held', 'heldout', 'out'], ['train'])
    """
    short = [re.sub(r"(?<=.)(images?|imgs?|data|set)$", "", word) for word in words(name)]
    return {*short, *map("".join, pairwise(short))}


def _part_named(name: str) -> str | None:
    """The part of a data set that a folder's name says, if any."""
    spellings = _spellings(name)
    return next((part for part, names in PARTS.items() if spellings & names), None)


def _folders(root: Path) -> Iterator[Path]:
    """The subfolders of a folder, without hidden and left-over ones."""
    return (path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not is_hidden(name)


def _holds_images(folder: Path) -> bool:
    """Whether there are images in the folder itself."""
    return any(_is_image(path.name) for path in folder.iterdir())


def _class_names(part_root: Path, root: Path, left_out: LeftOut) -> tuple[str, ...]:
    names = []
    loose = 0
    for path in sorted(part_root.iterdir()):
        name = path.relative_to(root).as_posix()
        if is_hidden(path.name):
            left_out.add(name + "/" * path.is_dir(), _HIDDEN)
        elif not path.is_dir():
            loose += _is_image(path.name)
            if part_root == root or _is_image(path.name):
                left_out.add(name, "in no class folder")
        elif (target := _link_within(path, root)) is not None:
            left_out.add(name, f"a link to {target}, which is read there")
        else:
            names.append(path.name)
    if not names:
        also = f" It contains {loose} images itself; if its name is a class, give the folder above it." if loose else ""
        raise ValueError(f"{part_root} has no class folders; lay the images out as CLASS/IMAGE.png or .jpg.{also}")
    return in_order(names)


def _refuse_class_as_part(root: Path, train: Path, folders: Sequence[Path]) -> None:
    """A folder such as train_station is no part if one without a part's name is laid out as it is."""
    inner = {path.name for path in _folders(train)}
    alike = [path.name for path in folders if path != train and inner & {below.name for below in _folders(path)}]
    if alike and len(words(train.name)) > 1:
        raise ValueError(
            f"{root} has the folder {train.name}, which is named like a folder of training images, and {alike[0]} with the "
            f"same subfolders, which is not named like a part of a data set. If they are parts, name them {_PART_NAMES}; if "
            f"they are classes, rename {train.name}."
        )


def _refuse_parts_without_classes(root: Path, class_names: Sequence[str]) -> None:
    """Folders named as different parts, and nothing else, are no classes."""
    parts = {_part_named(name) for name in class_names}
    if len(parts) > 1 and None not in parts:
        raise ValueError(
            f"the folders of {root} are {list(class_names)[:_SHOWN]}, which are names of parts, but they have no class "
            "folders; put the images of each class into a folder of its own: train/CLASS/IMAGE and test/CLASS/IMAGE."
        )


def _refuse_parts_as_classes(train_root: Path, class_names: Sequence[str], left_out: LeftOut) -> None:
    """Two folders with the same class folders are parts of one data set, whatever their names, unless these are few."""
    inside = {}
    for name in class_names:
        if _holds_images(train_root / name):
            return
        inside[name] = {path.name for path in _folders(train_root / name)}
    shared = set.intersection(*inside.values()) if len(inside) > 1 else set()
    alike = len(shared) > 1 and all(inner == shared for inner in inside.values())
    if len(shared) > max(1, len(class_names)) or (alike and all(map(_is_part, class_names))):
        raise ValueError(
            f"the folders {list(class_names)[:_SHOWN]} of {train_root} contain no images themselves, but the same folders "
            f"{list(in_order(shared))[:_SHOWN]}: they look like parts of a data set, not like classes. Name the parts "
            f"{_PART_NAMES}; if they are the classes, put their images into them directly."
        )
    if alike:
        for name in (f"{name}/{inner}" for name in class_names for inner in shared):
            left_out.add(
                name,
                (
                    "not read as a class: its images belong to the class of the folder above; if it is a class, name the "
                    "folders above train and test"
                ),
            )


def _is_part(name: str) -> bool:
    return _part_named(name) is not None or bool(_spellings(name) & _UNCLEAR_PARTS)


def _link_within(path: Path, root: Path) -> str | None:
    """The target of a link, if it is a place below the root that is read anyway."""
    if not path.is_symlink():
        return None
    target, base = path.resolve(), root.resolve()
    if not target.is_relative_to(base):
        return None
    below = target.relative_to(base)
    return None if any(map(is_hidden, below.parts)) else below.as_posix()


def _listed(
    part_root: Path, root: Path, label_of: dict[str, int], left_out: LeftOut, linked: dict[str, str]
) -> list[tuple[str, int]]:
    """Each image file's path below `root` and its label, in a pseudorandom order derived from the path."""
    found = []
    for path in _folders(part_root):
        label = label_of.get(composed(path.name))
        if label is not None and _link_within(path, root) is None:
            found += [(name, label) for name in _files(path, root, left_out, (path.resolve(),), linked)]
    if not found:
        raise ValueError(f"{part_root} has no images (.png, .jpg) in its class folders.")
    return sorted(found, key=lambda entry: hashlib.sha256(entry[0].encode("utf-8", "surrogateescape")).digest())


def _files(folder: Path, root: Path, left_out: LeftOut, above: tuple[Path, ...], linked: dict[str, str]) -> Iterator[str]:
    """The image files below a class folder, as paths below the root.

    Args:
        folder: Where to look.
        root: The root.
        left_out: Receives what is not read.
        above: The folders that lead here, the folder itself last, without links.
        linked: The files that were reached by links, by their own place; receives further ones.
    """
    by_link = above[-1] != root.resolve() / folder.relative_to(root)
    for path in sorted(Path(entry.path) for entry in os.scandir(folder)):
        name = path.relative_to(root).as_posix()
        target = _link_within(path, root)
        if is_hidden(path.name):
            left_out.add(name + "/" * path.is_dir(), _HIDDEN)
        elif target is not None:
            left_out.add(name, "a link to something that is read in its own place")
        elif path.is_dir():
            resolved = path.resolve()
            if resolved in above:
                left_out.add(name, "a link to a folder that contains it")
            else:
                yield from _files(path, root, left_out, (*above, resolved), linked)
        elif not _is_image(path.name):
            left_out.add(name, f"a {path.suffix or 'nameless'} file; only {', '.join(_SUFFIXES)} are read")
        elif (by_link or path.is_symlink()) and linked.setdefault(str(path.resolve()), name) != name:
            left_out.add(name, "a link to a file that is read through another link")
        else:
            yield name
