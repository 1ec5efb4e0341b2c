"""Lists of ids in files written by editors, spreadsheets and file managers, and the samples that they name."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np

from cujax.data.folder_layout import composed
from cujax.data.images import Source

_COLUMNS = ("id", "ids", "image_id", "sample_id", "path", "file", "filename", "file_name", "image")
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods; .xls
_SHOWN = 5


def read_ids(path: Path, is_id: "Matcher") -> list[str]:
    """Reads the ids in a file, without repetitions: one per line, in a .csv or .tsv with a header, or in a .json list.

    Args:
        path: The file.
        is_id: Decides whether a cell names a sample, for tables without a header.

    Raises:
        ValueError: if it is a spreadsheet, is not UTF-8, has no ids, is a table in which no single column has the ids, or
            JSON that is no list of ids.
        FileNotFoundError: if it does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file of ids {path} does not exist; write one id per line.")
    text = _decoded(path)
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        lines = _column(path, text, is_id)
    else:
        lines = _json_list(path, text) if kind == ".json" else _without_header(re.split(r"\r\n|\n|\r", text), is_id)
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise ValueError(f"{path} contains no ids; write one id per line.")
    return ids


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(_SPREADSHEETS):
        raise ValueError(
            f"{path} is not text but a spreadsheet, or another archive; save it as CSV (UTF-8) and give that file."
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ValueError(f"{path} is not UTF-8 but UTF-16, as some editors on Windows write it; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}) but probably Latin-1 or Windows-1252; "
            "save it as UTF-8."
        ) from error


def _without_header(lines: list[str], is_id: "Matcher") -> list[str]:
    """Lines without a first one that is the name of a column."""
    first = next((row for row, line in enumerate(lines) if line.strip()), None)
    if first is None or _unquoted(lines[first]).lower() not in _COLUMNS or is_id(lines[first].strip()):
        return lines
    return lines[first + 1 :]


def _json_list(path: Path, text: str) -> list[str]:
    try:
        found = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not JSON ({error}); write a list of ids, ["a", "b"].') from error
    if not isinstance(found, list) or not all(type(name) in (str, int) for name in found):
        raise ValueError(f'{path} must be a list of ids, ["a", "b"], but holds other values; keep only that list.')
    return [str(name) for name in found]


def _unquoted(name: str) -> str:
    """A text without spaces and one pair of quotes around it."""
    name = name.strip()
    return name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" else name


def _column(path: Path, text: str, is_id: "Matcher") -> list[str]:
    """The cells of the column with the ids."""
    separator = re.match(r'"?sep=([,;\t|])"?[ ,;\t]*(\r\n|\r|\n|$)', text)
    text = text[separator.end() :] if separator else text
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = separator[1] if separator else max(",;\t", key=first.count)
    lines = io.StringIO(re.sub(r"\r\n?", "\n", text))
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path} is not a table ({error}); write one id per line in a .txt file.") from error
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0]]
    if any(map(is_id, header)):
        raise ValueError(
            f"the first row of {path} is {header}, which names a sample; add a header above it, with a column named id."
        )
    known = [name for name in _COLUMNS if name in [cell.lower() for cell in header]]
    if len(header) > 1 and not known:
        raise ValueError(f"{path} has the columns {header}, but none is named id; rename the column with the ids to id.")
    at = [cell.lower() for cell in header].index(known[0]) if known else 0
    short = next((number for number, row in enumerate(rows[1:], 2) if len(row) <= at or not row[at].strip()), None)
    if short is not None:
        raise ValueError(f"row {short} of {path} has no {header[at]}: {rows[short - 1]}; complete or remove it.")
    return [row[at] for row in rows[1:]]


class Matcher:
    """Finds the sample that a text names: by its id, or by its path as a file manager shows it."""

    def __init__(self, ids: np.ndarray, root: str | None = None) -> None:
        """Takes the ids of the samples (`[n]` str) and, if they are paths, the folder to which they are relative."""
        self._row_of = {name: row for row, name in enumerate(ids.tolist())}
        self._composed: dict[str, list[int]] = {}
        for name, row in self._row_of.items():
            self._composed.setdefault(composed(name), []).append(row)
        self._root = None if root is None else Path(root).expanduser()

    def __call__(self, name: str) -> bool:
        """Whether a text names a sample."""
        return self.row(name) is not None

    def row(self, name: str) -> int | None:
        """The row of the sample that a text names; None if there is none, or several."""
        if name in self._row_of:
            return self._row_of[name]
        for spelled in self._spellings(name):
            rows = self._composed.get(composed(spelled), [])
            if len(rows) == 1:
                return rows[0]
        return None

    def _spellings(self, name: str) -> Iterator[str]:
        """Possible spellings of the id if the text is a path: in another Unicode form, quoted, with a drive, absolute."""
        yield name
        yield _unquoted(name)
        if self._root is None:
            return
        path = name.strip("\"'")
        path, address = path.removeprefix("file://"), path
        yield path
        decoded = [unquote(path)] if path != address else []
        for slashed in (path, path.replace("\\", "/"), *decoded):
            yield str(PurePosixPath(slashed))
            parts = PurePosixPath(slashed).parts
            roots = (self._root, self._root.absolute(), self._root.resolve())
            for base in {*roots, *(Path(root.name) for root in roots)}:
                if parts[: len(base.parts)] == base.parts and len(parts) > len(base.parts):
                    yield "/".join(parts[len(base.parts) :])

    def like(self, names: Sequence[str]) -> str:
        """Example ids, including those with the same endings as the given ones."""
        ends = {PurePosixPath(name.replace("\\", "/")).name for name in names[:_SHOWN]}
        similar = [name for name in self._row_of if PurePosixPath(name).name in ends][:2]
        shown = similar or list(self._row_of)[:1]
        return " or ".join(map(repr, shown))


def rows_of_file(path: Path, source: Source) -> np.ndarray:
    """The rows of `source.train` that a file names, `[k]` integer.

    Raises:
        ValueError: if the file cannot be read, or ids do not exist or belong to test images.
        FileNotFoundError: if the file does not exist.
    """
    matcher = Matcher(source.train.ids, source.root)
    wanted = read_ids(path, matcher)
    found = [matcher.row(name) for name in wanted]
    unknown = [name for name, row in zip(wanted, found, strict=True) if row is None]
    is_test = Matcher(source.test.ids, source.root)
    held_out = [name for name in unknown if is_test(name)]
    if held_out:
        raise ValueError(
            f"{len(held_out)} of the {len(wanted)} ids in {path} are test images of {source.name}, on which no model is "
            f"trained here: {', '.join(held_out[:_SHOWN])}. Remove them from the list. If the model is imported and was "
            "trained on them, give other test images (test_images in an .npz file, or a folder named test); these then "
            "become training images."
        )
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the {len(wanted)} ids in {path} do not exist in {source.name}: "
            f"{', '.join(map(repr, unknown[:_SHOWN]))}; its ids look like {matcher.like(unknown)}."
        )
    return np.array(list(dict.fromkeys(found)), int)


def hashed_id(name: str) -> str:
    """The hashed form of an id: "sha256:" and its SHA-256 in hex; an id that is already hashed is returned unchanged."""
    return name if is_hashed(name) else f"{_HASHED}{hashlib.sha256(name.encode()).hexdigest()}"


def is_hashed(name: str) -> bool:
    """Whether a stored id is hashed."""
    return name.startswith(_HASHED)


_HASHED = "sha256:"


def is_among(ids: np.ndarray, stored: Sequence[str]) -> np.ndarray:
    """Which ids (`[n]` str) are among stored ones, in plain or hashed form: `[n]` bool.

    >>> is_among(np.array(["a", "b"]), ["b"]), is_among(np.array(["a", "b"]), [hashed_id("a")])
    (array([False,  True]), array([ True, False]))
    """
    known = set(stored)
    hashed = any(map(is_hashed, known))
    return np.array([name in known or (hashed and hashed_id(name) in known) for name in ids.tolist()], bool)
