"""Computed results as self-describing JSON files: kind, schema, version of the computation, and a digest over everything.

A changed digit, a lost key or a file of another kind is rejected, so that damaged data never becomes a reported value.
"""

import hashlib
import json
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from etils.epath import Path

from cujax.sharding import is_first_host

_HEADER = "cujax"


class RecordError(ValueError):
    """Raised if a stored result is damaged, or is something else."""


class Kind(NamedTuple):
    """The kind of content in a result file.

    Attributes:
        name: "evidence", "trials", ...
        schema: Version of the layout; increased when keys change.
        computed_by: Version of the computation; increased when the same inputs would give other values.
    """

    name: str
    schema: int
    computed_by: int = 1


def json_digest(content: Any) -> str:
    """SHA-256 over plain data, in hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_whole(path: Path, text: str) -> Path:
    """Writes a text file completely or not at all, even if other processes write it too."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(text, "utf-8")
    return temporary.replace(path)


def write_record(path: Path, kind: Kind, content: Any) -> Path:
    """Writes plain data with its header; creates the folder.

    Raises:
        ValueError: if the content has NaN or infinity.
    """
    content = json.loads(json.dumps(content, allow_nan=False))
    header = dict(kind._asdict())
    header["digest"] = json_digest([header, content])
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, json.dumps({_HEADER: header, "content": content}, indent=2) + "\n")


def read_record(path: Path, kind: Kind) -> Any:
    """The content of a file that `write_record` wrote; None if a different version of the code computed it.

    Raises:
        RecordError: if it is damaged or of another kind; the message names the file and the fix.
    """
    remedy = f"delete {path} and run the same command again: it is computed again"
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise RecordError(f"{path} cannot be read ({error}): it is damaged; {remedy}.") from error
    if not isinstance(stored, dict) or not isinstance(header := stored.get(_HEADER), dict) or "content" not in stored:
        raise RecordError(f"{path} contains no cujax results with a digest: it is damaged or older than 0.2; {remedy}.")
    described = {name: value for name, value in header.items() if name != "digest"}
    if header.get("digest") != json_digest([described, stored["content"]]):
        raise RecordError(f"{path} does not match its digest: it was changed after it was written; {remedy}.")
    if header.get("name") != kind.name:
        raise RecordError(f"{path} holds {header.get('name')!r}, not {kind.name!r}; {remedy}.")
    return stored["content"] if described == kind._asdict() else None


def kept_record(path: Path, kind: Kind, compute: Callable[[], Any]) -> Any:
    """The content of a file; if it does not exist, or older code computed it, it is computed now and stored there.

    With several hosts, only the first writes.

    Raises:
        RecordError: as `read_record`.
    """
    found = read_record(path, kind) if path.is_file() else None
    if found is None:
        found = json.loads(json.dumps(compute()))
        if is_first_host():
            write_record(path, kind, found)
    return found
