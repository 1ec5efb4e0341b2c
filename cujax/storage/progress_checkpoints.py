"""The progress of unfinished models on disk: checkpoints from which a killed run resumes."""

import contextlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from types import TracebackType
from typing import Any, Self

import jax
from etils.epath import Path

from cujax.model import PyTree
from cujax.sharding import is_first_host
from cujax.storage.checkpoints import CheckpointError, from_plain, installed_versions, load_progress, save_progress, to_plain
from cujax.storage.preemption import Interruption
from cujax.storage.workdir import Notify, gone, is_claimed

_KEPT = 2
_STEPS_ON_SEVERAL_HOSTS = 500


class ProgressCheckpointer:
    """A resume point on disk: the last two states of an unfinished model, each a checkpoint, written by a thread.

    A loop never waits for the disk, except when the process was asked to end. While one state is being written, no other
    is due. Several hosts must make the same decisions, so with them only steps count, each state is waited for, and a host
    that is asked to end does so immediately.

    Args:
        directory: The folder of the states, one subfolder each, named by the number of steps.
        metrics: The model's metrics file; every record in it is written immediately.
        identity: Digest of the configuration; states of other configurations are not used.
        steps: Save a state after this many steps; None: steps do not count.
        seconds: Save a state after this many seconds; None: time does not count.
        interruption: Says when the process was asked to end.
        notify: Receives messages for the user.
    """

    def __init__(
        self,
        directory: PathLike[str],
        metrics: PathLike[str],
        identity: str,
        *,
        steps: int | None,
        seconds: float | None,
        interruption: Interruption,
        notify: Notify,
    ) -> None:
        self._directory, self._metrics, self._identity = Path(directory), Path(metrics), identity
        self._every_steps, self._every_seconds = steps, seconds
        self._interruption, self._tell = interruption, notify
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._writing: Future[None] | None = None
        self._kept_at, self._kept_steps, self._steps = time.monotonic(), 0, 0
        self._runs = 0
        self._claimed = is_claimed(self._directory.parents[1])
        self._found = self._newest()

    def _newest(self) -> tuple[Path, dict[str, jax.Array], dict[str, Any]] | None:
        """The newest intact state. Damaged states are reported and removed, since they would block new ones."""
        for path in reversed(self._states()):
            try:
                arrays, metadata = load_progress(path)
                record = metadata.record
                if record["identity"] != self._identity:
                    raise CheckpointError(f"{path} is the progress of another configuration.")
                if self._metrics_bytes() < record["metrics_bytes"]:
                    raise CheckpointError(f"{path} is ahead of {self._metrics}, which was truncated.")
            except (CheckpointError, KeyError) as error:
                self._tell(f"progress at step {int(path.name)} cannot be used and is skipped: {error}")
                if is_first_host():
                    path.rmtree()
                continue
            there, here = _place(record["devices"], metadata.versions), _place(jax.device_count(), installed_versions())
            if there != here:
                self._tell(
                    f"the progress of {self._directory.name} was made on {there}; this run uses {here}: the last bits may "
                    "differ from those of an uninterrupted run."
                )
            return path, arrays, record
        return None

    def _states(self) -> list[Path]:
        return sorted(path for path in self._directory.glob("*") if path.name.isdigit())

    def _metrics_bytes(self) -> int:
        return self._metrics.stat().length if self._metrics.exists() else 0

    @property
    def metrics_bytes(self) -> int:
        """How much of the metrics file belongs to the state that was found; 0 if there is none."""
        return 0 if self._found is None else self._found[2]["metrics_bytes"]

    def resume(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """As in `cujax.training.resume.ResumePoint`. Of a method that runs several loops, only the first is kept.

        Raises:
            CheckpointError: if the state found does not have the names and shapes of `like`.
        """
        self._runs += 1
        if self._found is None or self._runs > 1:
            return None
        path, arrays, record = self._found
        self._kept_steps = int(path.name)
        self._tell(f"{self._directory.name} resumes from step {self._kept_steps}.")
        return from_plain(arrays, like, str(path)), record

    def due(self, steps: int) -> bool:
        """As in `cujax.training.resume.ResumePoint`.

        Raises:
            OSError: if the state before could not be written.
        """
        self._steps = steps
        together = jax.process_count() > 1
        if self._runs > 1 or together:
            self._interruption.raise_if_asked()
        if self._runs > 1:
            return False
        if together:
            return steps - self._kept_steps >= (self._every_steps or _STEPS_ON_SEVERAL_HOSTS)
        if self._interruption.asked:
            return True
        if self._writing is not None:
            if not self._writing.done():
                return False
            self._check_home()
            self._writing.result()
        by_steps = self._every_steps is not None and steps - self._kept_steps >= self._every_steps
        return by_steps or (self._every_seconds is not None and time.monotonic() - self._kept_at >= self._every_seconds)

    def keep(self, tree: PyTree, record: dict[str, Any]) -> None:
        """As in `cujax.training.resume.ResumePoint`.

        Raises:
            KeyboardInterrupt: after the state was written, if Ctrl-C was pressed.
            Preempted: likewise, after SIGTERM.
            OSError: if the folder of the run was deleted or moved.
        """
        self._check_home()
        record = record | {
            "identity": self._identity,
            "metrics_bytes": self._metrics_bytes(),
            "devices": jax.device_count(),
        }
        self._kept_at, self._kept_steps = time.monotonic(), self._steps
        self._writing = self._writer.submit(self._write, self._steps, to_plain(tree), record)
        if self._interruption.asked or jax.process_count() > 1:
            self._writing.result()
            self._interruption.raise_if_asked()

    def _check_home(self) -> None:
        """Raises FileNotFoundError if the folder of the run no longer exists."""
        home = self._directory.parents[1]
        # A write that was under way may have made an empty folder again.
        if not home.exists() or (self._claimed and not is_claimed(home)):
            raise gone(home)

    def raise_if_interrupted(self) -> None:
        """As in `cujax.training.resume.ResumePoint`."""
        self._interruption.raise_if_asked()

    def _write(self, steps: int, arrays: dict[str, Any], record: dict[str, Any]) -> None:
        save_progress(self._directory / f"{steps:09d}", arrays, record)
        if is_first_host():
            for old in self._states()[:-_KEPT]:
                old.rmtree()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.shutdown()

    def remove(self) -> None:
        """Removes all states, once the finished model is on disk."""
        self._writer.shutdown()
        remove_progress(self._directory)


def remove_progress(directory: Path) -> None:
    """Removes the progress of a complete model, and its folder if no other model is in progress."""
    if is_first_host() and directory.exists():
        directory.rmtree()
        # Not by etils, which removes what another process writes there meanwhile.
        with contextlib.suppress(OSError):
            os.rmdir(directory.parent)  # noqa: PTH106


def _place(devices: int, versions: dict[str, str]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{devices} device{'s' * (devices != 1)} with {packages}"
