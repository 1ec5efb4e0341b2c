"""Locks for single models in a folder that several processes use, and notes on models that were begun or failed.

The system releases a lock when its process ends, however it ends. What remains is the note that the model was begun.
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
    """What is known about an incomplete model.

    Attributes:
        begun: How often it was begun by a process that neither completed it, nor failed, nor was interrupted.
        failed: Why it failed; "" if it did not.
        at: When the note was written, in seconds of the system's clock.
        by: The process that wrote it.
    """

    begun: int = 0
    failed: str = ""
    at: float = 0.0
    by: str = ""


def this_process() -> str:
    """This process and its machine, in words."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def has_locks(folder: PathLike[str]) -> bool:
    """Whether a folder supports locks; a bucket (gs://) does not."""
    return "://" not in str(folder)


def _lock(folder: PathLike[str], name: str) -> FileLock:
    """This process's single lock for a name; it is reentrant."""
    path = Path(folder).resolve() / _FOLDER / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, thread_local=False, is_singleton=True)


def alone(folder: PathLike[str], name: str) -> AbstractContextManager[Any]:
    """Context manager in which no other process makes the model with this name in the folder; waits for one that does.

    If several hosts compute together, only the first takes the lock. In a bucket, there is no lock.
    """
    if not has_locks(folder) or not is_first_host():
        return contextlib.nullcontext()
    return _lock(folder, name).acquire(poll_interval=POLL_SECONDS)


def alone_now(folder: PathLike[str], name: str) -> AbstractContextManager[Any] | None:
    """Like `alone`, but returns None immediately if another process has the lock."""
    if not has_locks(folder):
        return contextlib.nullcontext()
    try:
        return _lock(folder, name).acquire(timeout=0)
    except Timeout:
        return None


def held_by_others(folder: PathLike[str]) -> str:
    """The process that makes something in a folder; "" if none does."""
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
    """The note on a model; an empty one if there is none, or if it was truncated."""
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
