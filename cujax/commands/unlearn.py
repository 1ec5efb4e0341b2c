"""Trains a classifier, unlearns the requested samples, audits the result, and ends with a verdict.

Without flags, it forgets class 5 of scikit-learn's digits, which takes less than two minutes on two cores. The audit
compares the unlearned model with models retrained from scratch. Completed work is kept: run the same command again to resume
an interrupted run. To start from your own model, give --original.

Exit status: 0 if done, 1 if the computation failed, 2 for bad input, 3 if the verdict is not good enough (see --require),
130 or 143 if interrupted.
"""

import itertools
from collections.abc import Sequence

from cujax import cli
from cujax.experiments.audit import Audit
from cujax.experiments.jobs import Unit
from cujax.experiments.run import Run
from cujax.experiments.units import audit_units, run_units
from cujax.reports.verdict import exit_status


def unlearn(run: Run) -> int:
    """Original, retrained and unlearned model, each saved as soon as it is complete; the audit; then the report."""
    from cujax.reports.parts import report_on_parts  # after the flags: pictures are slow to import

    original, _, unlearned = run.original(), run.retrained(), run.unlearned()
    method = run.experiment.method
    report = report_on_parts(run, original, unlearned, run.workdir, audit=Audit.asked_for, method=method)
    return exit_status(report["verdict"], run.experiment.require)


def units(run: Run) -> list[Unit]:
    """The models of a run and of its audit."""
    audits = [audit_units(Audit.asked_for(part), part.experiment.method) for part in run.parts()]
    return [*run_units(run, unlearned=True), *itertools.chain(*audits)]


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, runs, and returns the exit status."""
    return cli.main(unlearn, configs=cli.CONFIGS, description=__doc__, arguments=arguments, command=["unlearn"], units=units)
