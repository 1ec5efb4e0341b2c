"""A run's folder: which run owns it, which process uses it, and the progress of unfinished work."""

import contextlib
import json
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any

from etils.epath import Path
from filelock import FileLock, Timeout

from cujax.storage.locks import alone_now, held_by_others, this_process
from cujax.storage.orbax import UNFINISHED, remove_leftovers
from cujax.storage.records import write_whole

# Receives a message for the user.
Notify = Callable[[str], None]

_MOVE_AWAY = "restore it from a copy, or give another folder with --workdir"
# What a run may leave whose folder was deleted while it wrote; progress says itself whose it is.
_LEFT_BEHIND = {"progress", "metrics", ".jobs"}
_CONFIG, _LOCK, _HOLDER = "config.json", ".lock", ".lock-holder"
# How long the lock is waited for: another process that only begins to share the folder has it for an instant.
_PATIENCE_SECONDS = 1.0


# Runs of one process may share a folder: they take turns. The system drops a lock when its process ends.
_held: weakref.WeakValueDictionary[Path, FileLock] = weakref.WeakValueDictionary()


def lock(workdir: PathLike[str]) -> FileLock | None:
    """Locks a folder for this process until the result is collected; None for a bucket (gs://), which has no locks.

    Raises:
        BlockingIOError: if another process has the lock, or makes something in the folder; the message names the process.
    """
    if "://" in str(workdir):
        return None
    path = Path(workdir).resolve() / _LOCK
    held = _held.get(path)
    if held is not None and path.exists():
        return held
    taken, holder = FileLock(path, timeout=_PATIENCE_SECONDS, thread_local=False), path.with_name(_HOLDER)
    try:
        taken.acquire()
        named = held_by_others(path.parent)
    except Timeout:
        named = (holder.read_text("utf-8").strip() if holder.is_file() else "") or "another process"
    if named:
        taken.release()
        raise BlockingIOError(
            f"workdir {workdir} is in use by {named}; wait for it or stop it, or give another folder with --workdir."
        )
    write_whole(holder, f"{this_process()}\n")
    _held[path] = taken
    return taken


def is_claimed(workdir: PathLike[str]) -> bool:
    """Whether a folder belongs to a run."""
    return (Path(workdir) / _CONFIG).is_file()


def check_there(workdir: PathLike[str]) -> None:
    """Raises OSError if a claimed folder no longer exists."""
    if "://" not in str(workdir) and not is_claimed(workdir):
        raise gone(workdir)


def gone(workdir: PathLike[str]) -> FileNotFoundError:
    """The error for a folder that existed when the run began."""
    return FileNotFoundError(
        f"workdir {workdir} was deleted or moved while it was in use; restore it and run the same command again."
    )


def claim(
    directory: PathLike[str],
    identity: dict[str, Any],
    files: dict[str, str],
    normalised: Callable[[dict[str, Any]], dict[str, Any]] = lambda described: described,
    *,
    shared: bool = False,
) -> FileLock | None:
    """Assigns a folder to one configuration, or checks that it belongs to it, and locks it.

    Half-written files of a killed process are removed, unless another process may be writing them.

    Args:
        directory: The folder.
        identity: Identifies the configuration; plain data, stored in `config.json`.
        files: Text files to write next to it, by name.
        normalised: Converts what an earlier release may have written to the form of this release.
        shared: Whether other processes may also work in the folder: it is then locked only until its configuration is
            written, and each model while it is made (`cujax.storage.locks`).

    Raises:
        ValueError: if `config.json` is damaged.
        FileExistsError: if the folder contains another configuration, or something else.
        BlockingIOError: if another process uses it, and it is not to be shared.
        OSError: if it cannot be written.
    """
    workdir = Path(directory)
    config = workdir / _CONFIG
    # Listed once: another process may be making the folder.
    there = {path.name for path in workdir.iterdir()} if workdir.is_dir() else set()
    is_other = there - _LEFT_BEHIND and not there & {_CONFIG, _LOCK}
    if is_other or (workdir.exists() and not workdir.is_dir()):
        raise FileExistsError(
            f"workdir {workdir} is not empty and does not contain a cujax run; give another folder with --workdir."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        taken = None if shared else lock(workdir)
        with _first_to_write(config) if shared else contextlib.nullcontext():
            if config.is_file():
                _compare(workdir, normalised(_read_config(config)), identity)
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
    for leftover in (workdir / "checkpoints").glob(f"*{UNFINISHED}*"):
        _remove_unfinished(workdir, leftover.name.partition(UNFINISHED)[0])
    for begun in (workdir / "progress").glob("*"):
        _remove_unfinished(workdir, begun.name)
    return taken


def _first_to_write(config: Path) -> AbstractContextManager[Any]:
    """The folder's lock, for processes that share it and start at the same time; no lock if nothing is to be written."""
    if config.is_file() or "://" in str(config):
        return contextlib.nullcontext()
    return FileLock(config.parent.resolve() / _LOCK, timeout=60 * _PATIENCE_SECONDS)


def _remove_unfinished(workdir: Path, name: str) -> None:
    """Removes half-written files of a model, unless another process is making it now."""
    held = alone_now(workdir, name)
    if held is not None:
        with held:
            remove_leftovers(workdir / "checkpoints", name)
            remove_leftovers(workdir / "progress" / name)


def _read_config(config: Path) -> dict[str, Any]:
    try:
        found = json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} cannot be read ({error}): it is damaged; {_MOVE_AWAY}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{config} does not hold a configuration: it is damaged; {_MOVE_AWAY}.")
    return found


def _compare(workdir: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    earlier, now = _flat(earlier), _flat(now)
    differing = [
        f"  {name}: {earlier.get(name)} there, {now.get(name)} now"
        for name in sorted(earlier.keys() | now.keys())
        if earlier.get(name) != now.get(name)
    ]
    if differing:
        raise FileExistsError(
            f"workdir {workdir} contains a run of another configuration:\n" + "\n".join(differing) + "\n"
            f"Give this run its own folder, such as --workdir {workdir}-2."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else key).items()
    }
