"""Trains the original model of a configuration, and the models retrained without the forget set."""

from collections.abc import Sequence
from functools import partial

from cujax import cli
from cujax.experiments.run import Run
from cujax.experiments.units import run_units
from cujax.training.predict import accuracy


def train(run: Run) -> None:
    """Trains and saves each model that does not exist yet, and prints its accuracies."""
    for name, checkpoint in {
        "original": run.original(),
        **{f"retrained {n}": c for n, c in enumerate(run.retrained())},
    }.items():
        answers = run.answers(checkpoint)
        figures = {"forget": answers.forget, "retain": answers.retain, "test": answers.test}
        print(f"{name:<12}", *(f"{part} {accuracy(predictions):.4f}" for part, predictions in figures.items()))
    print(f"Checkpoints and metrics: {run.workdir}")


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, trains, and returns the exit status."""
    return cli.main(
        train,
        configs=cli.CONFIGS,
        description=__doc__,
        arguments=arguments,
        command=["train"],
        units=partial(run_units, unlearned=False),
    )
