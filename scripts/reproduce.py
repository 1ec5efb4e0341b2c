"""Reproduces what the papers of the methods say, each method with settings at which it does so here.

    uv run scripts/reproduce.py                                                # digits; a few minutes on two cores
    TFDS_DATA_DIR=... uv run scripts/reproduce.py --config fashion_mnist_class   # an hour
    uv run scripts/reproduce.py --methods scrub salun --seeds 0

--config names a file of configs/reproductions. The figures go to docs/results/reproductions/METHOD.json, the table to
docs/results/reproductions.md, method by method. Completed work is kept: the same command resumes where it stopped.
"""

if __name__ == "__main__":
    import interrupted  # noqa: F401


import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cujax.cli import DEFAULT_CONFIG, main, parse_setup, take_option
from cujax.experiments.reproductions import ReadyRepetition, Repetition, prepare_repetition, reached, read_reproductions
from cujax.reports.reproduction_page import write_page

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "results" / "reproductions"


def parse(arguments: Sequence[str], *, configs: Path, description: str) -> Repetition:
    """The setup of a command line, as in scripts/compare.py, except that --config names a file of configs/reproductions."""
    asked = parse_setup(Repetition, arguments, configs=configs, description=description)
    task, _ = take_option(arguments, "--config")
    _, by_method = read_reproductions(configs / f"{task or DEFAULT_CONFIG}.py")
    return replace(asked, by_method=by_method, seeds=asked.seeds or (0, 1, 2))


def keep(folder: Path, task: str, method: str, entry: dict[str, Any]) -> None:
    """Writes the figures of a method on a task, without changing those of other tasks and seeds."""
    path = folder / f"{method}.json"
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if task in kept and kept[task]["settings"] == entry["settings"]:
        entry["seeds"] = dict(sorted((kept[task]["seeds"] | entry["seeds"]).items()))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted((kept | {task: entry}).items())), indent=1) + "\n", "utf-8")


def reproduce(ready: ReadyRepetition) -> None:
    """Reproduces, stores and shows the figures, and fails if a cell did."""
    failed = []
    for method, entry in ready.figures():
        keep(FIGURES, ready.workdir.name, method, entry)
        write_page(FIGURES.with_suffix(".md"), FIGURES)
        print(f"{method:<29} {'reached' if reached(entry) else 'not reached'}", flush=True)
        failed += [f"{method}, seed {seed}" for seed, row in entry["seeds"].items() if "failed" in row]
    if failed:
        raise ValueError(f"cells failed: {'; '.join(failed)}")


if __name__ == "__main__":
    tasks = ROOT / "configs" / "reproductions"
    sys.exit(main(reproduce, configs=tasks, description=__doc__, parse=parse, prepare=prepare_repetition))
