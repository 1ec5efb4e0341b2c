"""Progress as a function that is passed in: silent in libraries and tests, bars on a terminal in scripts."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

Advance = Callable[..., None]


class Progress(Protocol):
    """Called as `with progress("training", total) as advance`, then `advance(n, note)` for each n done."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]: ...


@contextlib.contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    """Shows nothing."""
    del description, total
    yield lambda n=1, note="": None


@contextlib.contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """A bar with the time left and a short note, on stderr, so that what a script prints can be piped."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<21}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(description, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            shown.update(task, advance=n, note=note)

        yield advance
