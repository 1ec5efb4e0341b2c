"""Trains a classifier, makes it forget, compares it with models retrained from scratch, and reports."""

import sys
from pathlib import Path

from rich.console import Console

from cujax.cli import main
from cujax.experiment import Run
from cujax.report import make_report, summary, terminal_table, write_report


def unlearn(run: Run) -> None:
    """Original, retrained and unlearned model, each saved as soon as it is complete; then the report."""
    original, retrained, unlearned = run.original(), run.retrained(), run.unlearned()
    made = make_report(run, original, retrained, unlearned)
    _, page = write_report(run.workdir, made)
    console = Console()
    console.print(terminal_table(made["report"]))
    console.print(summary(made["report"]), highlight=False)
    console.print(f"Checkpoints, metrics and report: {run.workdir}; open {page}", highlight=False)


if __name__ == "__main__":
    sys.exit(main(unlearn, configs=Path(__file__).parents[1] / "configs", description=__doc__))
