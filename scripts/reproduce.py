"""Repeats what the papers of the methods say, each method at a setting with which it does so here.

    uv run scripts/reproduce.py --task digits_class                              # a few minutes on two cores
    TFDS_DATA_DIR=... uv run scripts/reproduce.py --task fashion_mnist_class     # an hour
    uv run scripts/reproduce.py --task digits_class --methods scrub --seeds 0

A task is a file of configs/reproductions. The figures go to docs/results/reproductions/METHOD.json, the table to
docs/results/reproductions.md, method by method. What is complete is kept: the same command goes on where it was stopped.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from cujax.cli import keep_compilations, notify
from cujax.experiments.reproductions import Reproductions, reached
from cujax.progress import silent
from cujax.reports.reproduction_page import write_page
from cujax.storage.preemption import Interruption

ROOT = Path(__file__).parents[1]
TASKS, FIGURES = ROOT / "configs" / "reproductions", ROOT / "docs" / "results" / "reproductions"


@dataclass(frozen=True)
class Arguments:
    """What to repeat.

    Attributes:
        task: A file of configs/reproductions.
        methods: Which methods; all of the file where none is named.
        seeds: Seeds of originals, retrained models and methods.
        figures: The folder for the figures; the page beside it (FOLDER.md) gets the table, where there is one.
    """

    task: str = "digits_class"
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    figures: Path = FIGURES


def keep(folder: Path, task: str, method: str, entry: dict[str, Any]) -> None:
    """Writes the figures of a method on a task, and leaves those on other tasks as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{method}.json"
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(dict(sorted((kept | {task: entry}).items())), indent=1) + "\n", "utf-8")


def main(arguments: Arguments) -> int:
    """Repeats, keeps and shows the figures; the exit status is 1 if a cell failed."""
    keep_compilations()
    interruption, failed = Interruption(), False
    with interruption.handled():
        task = Reproductions.read(TASKS / f"{arguments.task}.py")
        for method, entry in task.figures(arguments.methods, arguments.seeds, silent, notify, interruption):
            keep(arguments.figures, task.name, method, entry)
            failed = failed or any("failed" in row for row in entry["seeds"].values())
            print(f"{method:<29} {'reached' if reached(entry) else 'not reached'}", flush=True)
            page = arguments.figures.with_suffix(".md")
            if page.is_file():
                write_page(page, arguments.figures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
