"""Chooses the settings of methods for a request: as many trials for each, judged on validation data alone.

Without flags: every method, 10 trials, class 5 of scikit-learn's digits. It ends with a file of settings that
scripts/compare.py takes, and what is complete is kept: the same command continues, and with more --trials goes on.
"""

if __name__ == "__main__":
    import interrupted  # noqa: F401


import sys
from functools import partial
from pathlib import Path

from cujax.cli import main, parse_setup
from cujax.experiments.tune import Tuning, TuningRun, chosen_in_words, prepare_tuning


def tune(run: TuningRun) -> None:
    """Makes the trials, and says what was chosen and where it is."""
    path, found = run.run()
    print(f"{chosen_in_words(found)}\n{found['rule']}\nSettings for scripts/compare.py --settings: {path}")


if __name__ == "__main__":
    configs = Path(__file__).parents[1] / "configs"
    sys.exit(main(tune, configs=configs, description=__doc__, parse=partial(parse_setup, Tuning), prepare=prepare_tuning))
