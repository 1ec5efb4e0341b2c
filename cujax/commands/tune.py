"""Chooses the settings of methods for a request: as many trials for each, judged on validation data alone.

Without flags: every method, 10 trials, class 5 of scikit-learn's digits. It ends with a file of settings that
cujax compare takes, and what is complete is kept: the same command continues, and with more --trials goes on.
"""

from collections.abc import Sequence
from functools import partial

from cujax import cli
from cujax.cli import parse_setup
from cujax.experiments.tune import Tuning, TuningRun, chosen_in_words, prepare_tuning


def tune(run: TuningRun) -> None:
    """Makes the trials, and says what was chosen and where it is."""
    path, found = run.run()
    print(f"{chosen_in_words(found)}\n{found['rule']}\nSettings for cujax compare --settings: {path}")
    if run.failures:
        raise ValueError(f"{len(run.failures)} methods were not tuned: {'; '.join(run.failures)}")


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, makes the trials, and returns the exit status."""
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
