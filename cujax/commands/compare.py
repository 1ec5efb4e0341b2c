"""Compares unlearning methods with each other and with models retrained from scratch, for every request and seed.

Without flags, it compares all methods with their default settings, on class 5 of scikit-learn's digits and with one seed.
For meaningful figures, tune the methods first (cujax tune), and pass --settings, several --seeds and --retrained 3 or more.
Each method runs once for each request and seed, in a folder of its own. Run the same command again to resume an interrupted
comparison. Exit status 1 if a run failed; the others are complete.
"""

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from cujax import cli
from cujax.cli import notify, parse_setup
from cujax.experiments.compare import Comparison, ComparisonRun, prepare_comparison


def compare(run: ComparisonRun) -> None:
    """Computes the cells, writes the tables, prints the shortest of them, and fails if a cell did."""
    from cujax.reports.comparison_report import tabulate, terminal_table, write_comparison  # after the flags: it is slow

    found = tabulate(run.run())
    paths = write_comparison(run.workdir, found)
    for word in found["tables"]:
        Console().print(terminal_table(word, found))
    notify(f"Tables and figures: {', '.join(map(str, paths))}")
    if run.failures:
        raise ValueError(f"{len(run.failures)} of the runs failed: {'; '.join(run.failures)}")


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, compares, and returns the exit status."""
    return cli.main(
        compare,
        configs=cli.CONFIGS,
        description=__doc__,
        arguments=arguments,
        parse=partial(parse_setup, Comparison),
        prepare=prepare_comparison,
        command=["compare"],
        units=ComparisonRun.units,
    )
