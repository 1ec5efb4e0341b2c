"""A run's folder: whose it is, which process uses it, and the progress of what is unfinished."""

import fcntl
import json
import os
import socket
import weakref
from collections.abc import Callable
from os import PathLike
from typing import Any

from etils.epath import Path

from cujax.sharding import is_first_host
from cujax.storage.checkpoints import (
    remove_leftovers,
)

# Takes a sentence that a person should read.
Notify = Callable[[str], None]

_LOCK = ".lock"


class Lock:
    """The right of one process to a folder, held until this is collected; the system drops it when the process ends."""

    def __init__(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)


# Runs of one process may share a folder: they take turns.
_held: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


def lock(workdir: PathLike[str]) -> Lock | None:
    """Takes a folder for this process; None for one in a bucket (gs://), which cannot be locked.

    Raises:
        BlockingIOError: if another process has it; the message names the process.
    """
    if "://" in str(workdir):
        return None
    path = Path(workdir).resolve() / _LOCK
    held = _held.get(path)
    if held is not None and path.exists():
        return held
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode().strip() or "another process"
        os.close(descriptor)
        raise BlockingIOError(
            f"workdir {workdir} is in use by {holder}; wait for it or stop it, or give another folder with --workdir."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held[path] = taken = Lock(descriptor)
    return taken


def claim(directory: PathLike[str], identity: dict[str, Any], files: dict[str, str]) -> Lock | None:
    """Makes a folder the home of one configuration, or checks that it is, and locks it.

    What a killed process left half written is removed.

    Args:
        directory: The folder.
        identity: What tells the configuration from others; plain data, kept in `config.json`.
        files: Text files to write beside it, by name.

    Raises:
        FileExistsError: if the folder holds another configuration, or something else.
        BlockingIOError: if another process uses it.
        OSError: if it cannot be written.
    """
    workdir = Path(directory)
    config = workdir / "config.json"
    ours = config.is_file() or (workdir / _LOCK).is_file()
    if not ours and workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise FileExistsError(
            f"workdir {workdir} is not empty and holds no run of cujax; give another folder with --workdir."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        taken = lock(workdir)
        if config.is_file():
            _compare(workdir, json.loads(config.read_text("utf-8")), identity)
        else:
            for name, text in {**files, config.name: json.dumps(identity, indent=2) + "\n"}.items():
                write_whole(workdir / name, text)
    except (FileExistsError, BlockingIOError):
        raise
    except OSError as error:
        raise OSError(
            f"workdir {workdir} cannot be written ({error}); restore access or free space, or give another folder with "
            "--workdir."
        ) from error
    for folder in (workdir / "checkpoints", *(workdir / "progress").glob("*")):
        remove_leftovers(folder)
    return taken


def write_whole(path: Path, text: str) -> Path:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    return temporary.replace(path)


def kept_json(path: Path, compute: Callable[[], Any]) -> Any:
    """The plain data that a file holds; where there is none, what is computed now, which the first host keeps there."""
    if not path.is_file():
        found = compute()
        if not is_first_host():
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found, indent=2) + "\n")
    return json.loads(path.read_text("utf-8"))


def _compare(workdir: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    earlier, now = _flat(earlier), _flat(now)
    differing = [
        f"  {name}: {earlier.get(name)} there, {now.get(name)} now"
        for name in sorted(earlier.keys() | now.keys())
        if earlier.get(name) != now.get(name)
    ]
    if differing:
        raise FileExistsError(
            f"workdir {workdir} holds a run of another configuration:\n" + "\n".join(differing) + "\n"
            f"Give this one a folder of its own, such as --workdir {workdir}-2."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else key).items()
    }
