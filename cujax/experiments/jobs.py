"""The units of a command, each computed once and stored on disk, by whichever process comes first.

Processes of one command, of several commands in one folder and of several machines divide the units through locks next to
the results; there is no coordinator.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etils import epath

from cujax.failures import Failure, attempt
from cujax.storage.locks import POLL_SECONDS, alone_now, read_note, remove_note, write_note
from cujax.storage.records import RecordError
from cujax.storage.workdir import Notify

# A unit that ended its process this often is not begun again by the same command.
_MOST_KILLED = 2


@dataclass(frozen=True)
class Unit:
    """Something that is computed once and stored.

    Attributes:
        title: The name shown to users, such as "class:5, scrub, seed 0".
        folder: Its folder.
        name: Identifies it in the folder.
        kept: Whether it is complete on disk.
        compute: Computes and stores it.
        needs: The units that must be complete before.
    """

    title: str
    folder: epath.Path
    name: str
    kept: Callable[[], bool]
    compute: Callable[[], object]
    needs: "tuple[Unit, ...]" = ()

    @property
    def is_complete(self) -> bool:
        """Whether it is complete on disk; a damaged record is not, and computing it reports what is wrong."""
        try:
            return self.kept()
        except RecordError:
            return False


def failure(unit: Unit, since: float) -> str | None:
    """Why a unit failed in the processes that began after some time; None if it did not."""
    note = read_note(unit.folder, unit.name)
    return note.failed if note.failed and note.at >= since else None


def is_settled(unit: Unit, since: float) -> bool:
    """Whether nothing is left to do for a unit: it is complete, or failed."""
    return unit.is_complete or failure(unit, since) is not None


def settle(unit: Unit, since: float, notify: Notify) -> bool:
    """Computes a unit if it can be computed now; returns whether it is settled.

    A unit cannot be computed while another process computes it, or before the units it needs are complete. A unit whose
    process was killed twice, or that needs a failed unit, is noted as failed.
    """
    if is_settled(unit, since):
        return True
    for need in unit.needs:
        if not need.is_complete:
            reason = failure(need, since)
            if reason is not None:
                write_note(unit.folder, unit.name, failed=f"{need.title} failed: {reason}")
            return reason is not None
    held = alone_now(unit.folder, unit.name)
    if held is None:
        return False
    with held:
        if not is_settled(unit, since):
            _compute(unit, notify)
    return True


def _compute(unit: Unit, notify: Notify) -> None:
    begun = read_note(unit.folder, unit.name).begun
    if begun >= _MOST_KILLED:
        found: object = Failure(
            f"its process was killed {begun} times, perhaps because the memory was full; use more memory or fewer --jobs, "
            "and run the same command again."
        )
    else:
        write_note(unit.folder, unit.name, begun=begun + 1)
        try:
            found = attempt(unit.compute)
        finally:
            remove_note(unit.folder, unit.name)
    if isinstance(found, Failure):
        write_note(unit.folder, unit.name, failed=found.reason)
        notify(f"FAILED {unit.title}: {found.reason}")


def work_through(units: Sequence[Unit], since: float, notify: Notify) -> None:
    """Computes units until all are complete or failed; waits for those that other processes compute.

    Args:
        units: The units in the order of computation; each after those that it needs.
        since: Failures noted before this time are retried.
        notify: Receives messages for the user.
    """
    left, waiting = list(units), False
    while left:
        still = [unit for unit in left if not settle(unit, since, notify)]
        if len(still) == len(left):
            if not waiting:
                notify(f"Waiting for other processes; tasks left: {len(left)}, the next is {left[0].title}.")
            waiting = True
            time.sleep(POLL_SECONDS)
        left = still


def failures(units: Sequence[Unit], since: float) -> list[str]:
    """The units that are not complete, with the reason, one sentence each."""
    reasons = ((unit, None if unit.is_complete else failure(unit, since)) for unit in units)
    return [f"{unit.title}: {reason}" for unit, reason in reasons if reason is not None]
