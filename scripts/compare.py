"""Compares methods: each on every request and seed, compared with models retrained from scratch.

Without flags: every method with its defaults, class 5 of scikit-learn's digits, one seed. Tune first (scripts/tune.py), and
give --settings, several --seeds and --retrained 3 or more for figures that mean something. Each cell has a folder of its own
and is computed once; the same command goes on where it was stopped. Exit status 1: a cell failed; the others are there.
"""

if __name__ == "__main__":
    import interrupted  # noqa: F401


import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from cujax.cli import main, notify, parse_setup
from cujax.experiments.compare import Comparison, ComparisonRun, prepare_comparison
from cujax.reports.comparison_report import tabulate, terminal_table, write_comparison


def compare(run: ComparisonRun) -> None:
    """Computes the cells, writes the tables, prints the shortest of them, and fails if a cell did."""
    found = tabulate(run.run())
    paths = write_comparison(run.workdir, found)
    for word in found["tables"]:
        Console().print(terminal_table(word, found))
    notify(f"Tables and pictures: {', '.join(map(str, paths))}")
    if run.failures:
        raise ValueError(f"{len(run.failures)} cells failed: {'; '.join(run.failures)}")


if __name__ == "__main__":
    configs = Path(__file__).parents[1] / "configs"
    reader = partial(parse_setup, Comparison)
    sys.exit(main(compare, configs=configs, description=__doc__, parse=reader, prepare=prepare_comparison))
