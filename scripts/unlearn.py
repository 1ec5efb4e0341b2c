"""Trains a classifier, makes it forget, compares it with models retrained from scratch, and reports.

Without flags: scikit-learn's digits forget class 5, in less than a minute on two cores. What is complete is kept, so the
same command continues an interrupted run. Start from a model of your own with --original.
"""

import sys
from pathlib import Path

from cujax.cli import main
from cujax.experiments.run import Run
from cujax.reports.run_report import report_on


def unlearn(run: Run) -> None:
    """Original, retrained and unlearned model, each saved as soon as it is complete; then the report."""
    report_on(run, run.original(), run.retrained(), run.unlearned(), run.workdir)


if __name__ == "__main__":
    sys.exit(main(unlearn, configs=Path(__file__).parents[1] / "configs", description=__doc__))
