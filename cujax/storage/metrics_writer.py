"""Writes metrics of a run as JSON lines and, if requested, as TensorBoard events."""

import json
import math
import os
from types import TracebackType
from typing import Any, Self, TextIO

from etils.epath import Path

from cujax.sharding import is_first_host


class MetricsWriter:
    """Writes one JSON object per line, each immediately, so that a killed process has written everything it logged.

    With several hosts, only the first writes.

    Args:
        path: The file; its folder is created.
        tensorboard: Also write TensorBoard events, to a folder with the file's name without its suffix.
        keep: How many bytes of the existing file are kept; writing continues after them.

    Raises:
        ModuleNotFoundError: if TensorBoard events are requested but tensorboardX is not installed.
    """

    def __init__(self, path: Path, tensorboard: bool = False, keep: int = 0) -> None:
        if not is_first_host():
            path, tensorboard, keep = Path(os.devnull), False, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_after(path, keep)
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(path.with_suffix("")), purge_step=_last_step(path) + 1 if keep else 0)

    def __call__(self, record: dict[str, Any]) -> None:
        """Writes one record; its "step" or "check" is the step of its other values."""
        self._file.write(json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            prefix = "check" if "check" in record else "step"
            for name, value in record.items():
                if name != prefix and value is not None:
                    self._events.add_scalar(f"{prefix}/{name}", float(value), record[prefix])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _open_after(path: Path, keep: int) -> TextIO:
    """Opens the file for writing after its first `keep` bytes; nothing of these is ever written again."""
    if not keep:
        return path.open("w", encoding="utf-8")
    if "://" in str(path):  # objects in a bucket are written whole
        kept = path.read_text()[:keep]  # JSON in ASCII: as many characters as bytes
        file = path.open("w", encoding="utf-8")
        file.write(kept)
        return file
    os.truncate(path, keep)
    return path.open("a", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The value, or None, which JSON supports, for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _last_step(path: Path) -> int:
    record = json.loads(path.read_text("utf-8").splitlines()[-1])
    return record.get("step", record.get("check"))
