"""Metrics of a run as JSON lines, and as TensorBoard events if asked for."""

import json
import os
from types import TracebackType
from typing import Any, Self

from etils.epath import Path

from cujax.sharding import is_first_host


class MetricsFile:
    """Writes one JSON object a line; started anew each time it is opened. Of several hosts only the first writes.

    Args:
        path: The file; its folder is made.
        tensorboard: Also write TensorBoard events, into a folder of the file's name without its ending.

    Raises:
        ModuleNotFoundError: if TensorBoard events are asked for and tensorboardX is not installed.
    """

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        if not is_first_host():
            path, tensorboard = Path(os.devnull), False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(path.with_suffix("")))

    def __call__(self, record: dict[str, Any]) -> None:
        """Writes one record; its "step" or "check" is the step of its other values."""
        self._file.write(json.dumps(record) + "\n")
        if self._events is not None:
            prefix = "check" if "check" in record else "step"
            for name, value in record.items():
                if name != prefix:
                    self._events.add_scalar(f"{prefix}/{name}", float(value), record[prefix])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()
