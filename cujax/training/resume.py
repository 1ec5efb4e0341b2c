"""What a loop needs to resume after it was killed. What is saved, where and how often, is decided outside the loop.

A run is a chain of passes, phases and batches, all functions of its key, so a position and the arrays at it are enough.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from cujax.model import PyTree


@dataclass(frozen=True, order=True)
class Position:
    """The progress of a run; earlier positions compare as less.

    Attributes:
        passes: Number of completed passes (in training: epochs).
        phases: Number of completed phases of the current pass.
        batches: Number of completed batches of the current phase.
    """

    passes: int = 0
    phases: int = 0
    batches: int = 0


class ResumePoint(Protocol):
    """Saves the progress of a run."""

    def resume(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The last saved progress, with the structure and placement of `like`; None for a new run. Called once."""

    def due(self, steps: int) -> bool:
        """Whether to save now. Called after each compiled call, with the number of steps so far."""

    def keep(self, tree: PyTree, record: dict[str, Any]) -> None:
        """Saves arrays and plain data. The arrays are copied before this returns, so they may then be donated."""

    def raise_if_interrupted(self) -> None:
        """Raises a requested interruption (Ctrl-C, SIGTERM) if there is no progress to save first."""


class _NoResumePoint:
    def resume(self, like: PyTree) -> None:
        del like

    def due(self, steps: int) -> bool:
        del steps
        return False

    def keep(self, tree: PyTree, record: dict[str, Any]) -> None:
        del tree, record

    def raise_if_interrupted(self) -> None:
        pass


NO_RESUME_POINT: ResumePoint = _NoResumePoint()
