"""Tunes the settings of unlearning methods for a request, on validation data only, with equally many trials for each method.

Without flags, it tunes all methods with 12 trials each, for a request to forget class 5 of scikit-learn's digits. It writes
the chosen settings to a file for cujax compare --settings. Completed work is kept: run the same command again to resume, or
with more --trials to continue.
"""

from collections.abc import Sequence
from functools import partial

from cujax import cli
from cujax.cli import parse_setup
from cujax.experiments.tune import Tuning, TuningRun, chosen_in_words, prepare_tuning


def tune(run: TuningRun) -> None:
    """Runs the trials, and prints what was chosen and where it is stored."""
    path, found = run.run()
    print(f"{chosen_in_words(found)}\n{found['rule']}\nSettings for cujax compare --settings: {path}")
    if run.failures:
        raise ValueError(f"{len(run.failures)} methods were not tuned: {'; '.join(run.failures)}")


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, runs the trials, and returns the exit status."""
    return cli.main(
        tune,
        configs=cli.CONFIGS,
        description=__doc__,
        arguments=arguments,
        parse=partial(parse_setup, Tuning),
        prepare=prepare_tuning,
        command=["tune"],
        units=TuningRun.units,
    )
