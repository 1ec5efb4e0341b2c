"""What a loop needs to be taken up where it was killed. A loop asks; what is kept, where and how often, is decided outside.

A run is a chain of passes, phases and batches, all functions of its key, so a position and the arrays there are enough.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from cujax.model import PyTree


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come; earlier positions are less.

    Attributes:
        passes: Passes (of training: epochs) that are done.
        phases: Phases done of the pass after those.
        batches: Batches done of the phase after those.
    """

    passes: int = 0
    phases: int = 0
    batches: int = 0


class ResumePoint(Protocol):
    """Keeps where a run stands."""

    def resume(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """What was kept last, in the structure and placement of `like`; None where the run starts anew. Called once."""

    def due(self, steps: int) -> bool:
        """Whether to keep now. Asked after each compiled call, with the number of steps made."""

    def keep(self, tree: PyTree, record: dict[str, Any]) -> None:
        """Keeps arrays and plain data. The arrays are copied before this returns; they may be donated then."""

    def raise_if_interrupted(self) -> None:
        """Raises what was asked for (Ctrl-C, SIGTERM), where there is no progress to keep first."""


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
