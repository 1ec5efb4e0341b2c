"""Names of the arrays in a user's .npz file: which are read, and what a name like one of these means."""

from collections.abc import Collection

from cujax.data.folder_layout import PARTS, words
from cujax.data.npz_inputs import holds_inputs

_READ = ("images", "inputs", "labels", "ids", "subjects")
_ROWS = {"images", "image", "imgs", "img", "inputs", "input", "features", "data", "pixels", "x"}
_ALIKE = {
    "labels": {"labels", "label", "targets", "target", "y"},
    "ids": {"ids", "id", "image ids", "image id", "sample ids", "sample id"},
    "subjects": {"subjects", "subject", "subject ids", "subject id"},
}


def unread(where: str, names: Collection[str]) -> tuple[str, ...]:
    """Sentences about the arrays of a file that are not read.

    Raises:
        ValueError: if a name is like one that would be read, and that one is missing; the message gives it.
    """
    others = [name for name in sorted(names) if not _is_read(name)]
    rows = "inputs" if holds_inputs(names) else "images"
    meant = {name: key for name in others if (key := _key_like(name, rows)) and not _holds(names, key)}
    if meant:
        renamed = ", ".join(f"{name} to {key}" for name, key in meant.items())
        raise ValueError(f"{where} contains {', '.join(meant)}, which is not read; rename {renamed}, or remove it.")
    return tuple(f"{name} in {where}: {_reason(name)}" for name in others)


def _is_read(name: str) -> bool:
    return name.removeprefix("test_") in _READ or holds_inputs([name]) or holds_inputs([name], "test_")


def _holds(names: Collection[str], key: str) -> bool:
    return any(name == key or name.startswith(f"{key}/") for name in names)


def _key_like(name: str, rows: str) -> str | None:
    """The array that a name means, if it is like one.

    >>> _key_like("X_test", "images"), _key_like("imageIds", "images"), _key_like("mean", "images")
    ('test_images', 'ids', None)
    """
    found = words(name)
    prefix = "test_" if PARTS["test"] & {*found} else ""
    kind = " ".join(word for word in found if word not in PARTS["test"] | PARTS["train"])
    key = next((key for key, alike in ({rows: _ROWS} | _ALIKE).items() if kind in alike), None)
    return key and prefix + key


def _reason(name: str) -> str:
    if " ".join(words(name)) in ("class names", "label names"):
        return f"class names are read from labels that are text; store {name}[labels] as labels"
    return f"the arrays that are read are {', '.join(_READ)}, and those of the test part, such as test_images"
