"""Runs the units of a command on a Dask cluster, one per task: Dask assigns them to workers, and replaces lost workers."""

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cujax.experiments.jobs import Unit
from cujax.progress import Progress
from cujax.storage.locks import alone, write_note
from cujax.storage.workdir import Notify

_CONNECT_SECONDS = 20


@dataclass(frozen=True)
class Command:
    """What a cluster worker needs to recreate the units of a command; all of it can be pickled.

    Attributes:
        arguments: Its command line.
        parse: Returns the setup that the arguments describe.
        prepare: Prepares a setup for computation.
        units: Returns the units of a prepared setup.
        folder: The folder to which its relative paths refer.
    """

    arguments: tuple[str, ...]
    parse: Callable[[Sequence[str]], Any]
    prepare: Callable[[Any], Any]
    units: Callable[[Any], Sequence[Unit]]
    folder: str


# A worker reads the data of a command once; its threads take turns.
_prepared: dict[tuple[tuple[str, ...], str], dict[str, Unit]] = {}
_turn = threading.Lock()


def _key(unit: Unit) -> str:
    return f"{unit.folder}/{unit.name}"


def compute_unit(command: Command, key: str, *needs: object) -> None:
    """Computes a unit in a cluster worker, once its dependencies are complete; its errors are those of the task."""
    del needs
    there = Path(command.folder).is_dir()  # where only a bucket is shared, paths are absolute
    with _turn, contextlib.chdir(command.folder) if there else contextlib.nullcontext():
        known = command.arguments, command.folder
        if known not in _prepared:
            setup = replace(command.parse(command.arguments), cluster=None, worker=True)
            ready = command.prepare(setup)
            _prepared[known] = {_key(unit): unit for unit in command.units(ready)}
        unit = _prepared[known][key]
        with alone(unit.folder, unit.name):
            if not unit.is_complete:
                unit.compute()


def check_cluster(address: str) -> None:
    """Raises ValueError if Dask is not installed, or an address is invalid."""
    if importlib.util.find_spec("distributed") is None:
        raise ValueError(f"cluster {address} needs Dask: run the command as uv run --extra cluster ...")
    if "://" not in address:
        raise ValueError(f"cluster is {address}, but must be the address of a scheduler, such as tcp://127.0.0.1:8786.")


def run_on_cluster(address: str, command: Command, units: Sequence[Unit], progress: Progress, notify: Notify) -> None:
    """Computes the incomplete units on a cluster and waits for them; failures are noted next to the units.

    Args:
        address: Address of the scheduler.
        command: The command that the units belong to.
        units: The units, each after those that it needs.
        progress: Shows how many are complete.
        notify: Receives messages for the user.

    Raises:
        OSError: if the scheduler is not reached.
    """
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise OSError(
            f"cluster {address} cannot be reached ({error}); start a scheduler there, or give its address."
        ) from error
    left = [unit for unit in units if not unit.is_complete]
    tasks: dict[str, Any] = {}
    with contextlib.closing(client), progress("computed", len(units)) as advance:
        advance(len(units) - len(left))
        for unit in left:
            needs = [tasks[_key(need)] for need in unit.needs if _key(need) in tasks]
            tasks[_key(unit)] = client.submit(compute_unit, command, _key(unit), *needs, pure=False, retries=1)
        by_task = {tasks[_key(unit)]: unit for unit in left}
        try:
            for task in as_completed(by_task):
                unit = by_task[task]
                advance()
                if task.status == "error":
                    reason = f"{type(task.exception()).__name__}: {task.exception()}"
                    write_note(unit.folder, unit.name, failed=reason)
                    notify(f"FAILED {unit.title}: {reason}")
        except BaseException:
            client.cancel(list(by_task))
            raise
