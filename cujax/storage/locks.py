"""Locks of single models in a folder that several processes work in, and notes on those that were begun or failed.

The system drops a lock when its process ends, however it ends; what remains is the note that something was begun.
"""

import contextlib
import json
import os
import socket
import time
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, NamedTuple

from etils.epath import Path
from filelock import FileLock, Timeout

from cujax.sharding import is_first_host
from cujax.storage.records import write_whole

_FOLDER = ".jobs"
POLL_SECONDS = 0.5


class Note(NamedTuple):
    """What is known of a model that is not complete.

    Attributes:
        begun: How often it was begun by a process that did not end it: neither complete, nor failed, nor interrupted.
        failed: Why it failed; "" where it did not.
        at: When the note was written, seconds of the system's clock.
        by: Which process wrote it.
    """

    begun: int = 0
    failed: str = ""
    at: float = 0.0
    by: str = ""


def this_process() -> str:
    """The process and its machine, in words."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def has_locks(folder: PathLike[str]) -> bool:
    """Whether a folder can hold locks; a bucket (gs://) cannot."""
    return "://" not in str(folder)


def _lock(folder: PathLike[str], name: str) -> FileLock:
    """The one lock of this process for a name; it may be taken within itself."""
    path = Path(folder).resolve() / _FOLDER / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, thread_local=False, is_singleton=True)


def alone(folder: PathLike[str], name: str) -> AbstractContextManager[Any]:
    """Within, no other process makes what has this name in the folder; one that does is waited for.

    Of several hosts that compute together the first alone takes the lock. In a bucket there is none.
    """
    if not has_locks(folder) or not is_first_host():
        return contextlib.nullcontext()
    return _lock(folder, name).acquire(poll_interval=POLL_SECONDS)


def alone_now(folder: PathLike[str], name: str) -> AbstractContextManager[Any] | None:
    """As `alone`, but None at once if another process has the lock."""
    if not has_locks(folder):
        return contextlib.nullcontext()
    try:
        return _lock(folder, name).acquire(timeout=0)
    except Timeout:
        return None


def held_by_others(folder: PathLike[str]) -> str:
    """Which process makes something in a folder; "" if none does."""
    for path in Path(folder).glob(f"{_FOLDER}/*.lock"):
        name = path.name.removesuffix(".lock")
        held = alone_now(folder, name)
        if held is None:
            return read_note(folder, name).by or "another process"
        held.__exit__(None, None, None)
    return ""


def _note(folder: PathLike[str], name: str) -> Path:
    return Path(folder) / _FOLDER / f"{name}.json"


def read_note(folder: PathLike[str], name: str) -> Note:
    """The note on a model; an empty one where there is none, or it was cut short."""
    try:
        return Note(**json.loads(_note(folder, name).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return Note()


def write_note(folder: PathLike[str], name: str, *, begun: int = 0, failed: str = "") -> None:
    """Writes the note on a model."""
    path = _note(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(Note(begun, failed, time.time(), this_process())._asdict()) + "\n")


def remove_note(folder: PathLike[str], name: str) -> None:
    """Removes the note on a model, if there is one."""
    _note(folder, name).unlink(missing_ok=True)
