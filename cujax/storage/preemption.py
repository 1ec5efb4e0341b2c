"""Ctrl-C and SIGTERM as exceptions: immediately, or after the next step if a loop can save its progress first."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Preempted(BaseException):
    """Raised if the process was asked to end (SIGTERM), as on a preempted machine."""


class Interruption:
    """Whether the run was asked to end. A second request is not postponed."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._postponing = False

    @property
    def asked(self) -> bool:
        """Whether a request waits for `raise_if_asked`."""
        return self._asked is not None

    def raise_if_asked(self) -> None:
        """Raises a postponed interruption.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Preempted: after SIGTERM.
        """
        if self._asked is not None:
            raise KeyboardInterrupt if self._asked == signal.SIGINT else Preempted

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Context manager in which a first request only sets `asked`; it is raised on exit, if not before."""
        before, self._postponing = self._postponing, True
        try:
            yield
        finally:
            self._postponing = before
        self.raise_if_asked()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Context manager that handles both signals. It does nothing outside the main thread, which Python requires."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        again, self._asked = self.asked, number
        if again or not self._postponing:
            self.raise_if_asked()
