"""Trains the original model of a configuration, and the models retrained without what is to be forgotten."""

if __name__ == "__main__":
    import interrupted  # noqa: F401


import sys
from pathlib import Path

from cujax.cli import main
from cujax.experiments.run import Run
from cujax.training.predict import accuracy


def train(run: Run) -> None:
    """Trains and saves each model that is not there yet, and prints its accuracies."""
    for name, checkpoint in {
        "original": run.original(),
        **{f"retrained {n}": c for n, c in enumerate(run.retrained())},
    }.items():
        answers = run.answers(checkpoint)
        figures = {"forget": answers.forget, "retain": answers.retain, "test": answers.test}
        print(f"{name:<12}", *(f"{part} {accuracy(predictions):.4f}" for part, predictions in figures.items()))
    print(f"Checkpoints and metrics: {run.workdir}")


if __name__ == "__main__":
    sys.exit(main(train, configs=Path(__file__).parents[1] / "configs", description=__doc__))
