"""Runs each method with settings at which it does what its paper says, from a configuration's table to stored figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import tyro
from etils import epath

from cujax.audit.key_metrics import Task
from cujax.data.images import Source
from cujax.experiments.compare import Comparison, ComparisonRun, prepare_comparison
from cujax.experiments.config import Experiment
from cujax.experiments.user_files import load_python_file
from cujax.methods.base import Method
from cujax.methods.registry import find_method, make_method
from cujax.methods.traits import reproduction_settings
from cujax.model import Model
from cujax.progress import Progress, silent
from cujax.storage.preemption import Interruption
from cujax.storage.workdir import Notify

# A class counts as taken out of the answers at this accuracy on its test images; a sample task is met at this distance from
# the retrained model's accuracy on the samples. Retained test accuracy may lie this far below the retrained model's.
MOST_LEFT = 0.01
MOST_APART = 0.02
MOST_LOST = 0.02


@dataclass(frozen=True)
class Reproduction:
    """What is reproduced from a method's paper.

    Attributes:
        published: The paper's own figures and their task, in words; "" if none are available.
        source: Where they are published.
        departs: How the settings differ from those of the authors' code.
        tried: What else was tried, if the aim was missed.
        settings: The settings; None for those defined with the method (its `reproduction`).
    """

    published: str = ""
    source: str = ""
    departs: str = ""
    tried: str = ""
    settings: Mapping[str, Any] | None = field(default=None)

    def method(self, name: str, task: Task) -> Method:
        """The method with this name, with its settings for a task.

        Raises:
            ValueError: if the method does not accept them, or has none for the task.
        """
        kind = find_method(name)
        settings = reproduction_settings(kind, task) if self.settings is None else self.settings
        if settings is None:
            raise ValueError(f"{name} has no settings for a task of {task}; give some to its Reproduction.")
        return make_method(kind, name, settings)


@dataclass(frozen=True)
class Repetition(Comparison):
    """Reproduce what the papers of the methods say, each method with settings at which it does so here.

    Attributes:
        by_method: The table of the configuration: what is reproduced for each method.
    """

    by_method: tyro.conf.Suppress[Mapping[str, Reproduction]] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        return replace(super().of(experiment), workdir=experiment.workdir)


def read_reproductions(path: Path) -> tuple[Experiment, dict[str, Reproduction]]:
    """The task and the table of a file of configs/reproductions: its `CONFIG` and its `REPRODUCTIONS`.

    Raises:
        ValueError: if it lacks one of them.
        FileNotFoundError: if the file does not exist.
    """
    module = load_python_file(path)
    experiment, by_method = (getattr(module, name, None) for name in ("CONFIG", "REPRODUCTIONS"))
    if not isinstance(experiment, Experiment) or not isinstance(by_method, dict):
        raise ValueError(f"{path} must define CONFIG = Experiment(...) and REPRODUCTIONS, a dict of Reproduction(...).")
    return experiment, by_method


@dataclass
class ReadyRepetition:
    """A reproduction that was checked and is ready to compute. Created by `prepare_repetition`.

    Attributes:
        runs: By method, a comparison of it alone with the retrained models, which all of them share.
    """

    repetition: Repetition
    runs: dict[str, ComparisonRun]

    @property
    def workdir(self) -> epath.Path:
        """The folder of everything."""
        return next(iter(self.runs.values())).workdir

    @property
    def source(self) -> Source:
        """The data."""
        return next(iter(self.runs.values())).source

    @property
    def model(self) -> Model:
        """The network of all runs."""
        return next(iter(self.runs.values())).model

    def figures(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and figures of each method, one after the other; stored results are read."""
        for name, run in self.runs.items():
            found, reproduction = run.run(), self.repetition.by_method[name]
            (task,) = found["tasks"].values()
            (method,) = (method for task in run.tasks for method in task.methods.values())
            yield (
                name,
                {
                    "request": self.repetition.requests[0],
                    "data": {**found["source"], "limit": self.repetition.data.limit},
                    "network": self.repetition.network,
                    "settings": {key: value for key, value in task["settings"][name].items() if key != "type"},
                    "changed": changed_settings(method),
                    "theirs": {"figures": reproduction.published, "source": reproduction.source},
                    "departs": reproduction.departs,
                    "tried": reproduction.tried,
                    "seeds": {seed: _row(cell, task["references"][seed]) for seed, cell in task["cells"][name].items()},
                    "versions": found["versions"],
                    "device": found["device"],
                },
            )


def changed_settings(method: Method) -> dict[str, Any]:
    """The settings of a method that differ from its defaults."""
    default = type(method)()
    return {key: value for key, value in vars(method).items() if value != getattr(default, key)}


def prepare_repetition(
    repetition: Repetition,
    progress: Progress = silent,
    notify: Notify = lambda sentence: None,
    interruption: Interruption | None = None,
) -> ReadyRepetition:
    """Reads the data and checks everything before computing. Takes the arguments of `prepare_comparison`.

    Raises:
        ValueError: if there is no method to reproduce, or data, request, methods and settings are not compatible.
        FileNotFoundError: if the data does not exist.
    """
    names = [name for name in repetition.by_method if name in repetition.methods or not repetition.methods]
    missing = sorted(set(repetition.methods) - set(names))
    if missing or not names:
        raise ValueError(
            f"there is no reproduction of {', '.join(missing) or 'any method'}; there are {', '.join(repetition.by_method)}."
        )
    runs: dict[str, ComparisonRun] = {}
    source = None
    task: Task = "samples" if repetition.requests[0].startswith("random") else "class"
    for name in names:
        given = {name: repetition.by_method[name].method(name, task)}
        runs[name] = prepare_comparison(repetition, progress, notify, interruption, source=source, given=given)
        source = runs[name].source
    return ReadyRepetition(repetition, runs)


def _row(cell: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The figures of one seed, with those of its original and the means of its retrained models."""
    if "failed" in cell:
        return cell
    keys = ("forget_train_accuracy", "forget_test_accuracy", "retain_test_accuracy", "test_accuracy", "mean_gap")
    retrained = reference["retrained"]
    return {
        "unlearned": {key: cell["row"][key] for key in keys},
        "original": {key: reference["original"][key] for key in keys},
        "retrained": {
            key: sum(row[key] for row in retrained) / len(retrained)
            for key in keys
            if all(row[key] is not None for row in retrained)
        },
        "retrained_models": len(retrained),
        "verdict_on_answers": cell["verdict"]["word"],
        "steps": cell["cost"]["steps"],
        "seconds": cell["cost"]["seconds"],
        "gflops": None if cell["cost"]["flops"] is None else cell["cost"]["flops"] / 1e9,
    }


def reached(entry: dict[str, Any]) -> bool:
    """Whether figures, as returned by `ReadyRepetition.figures`, meet the aim with every seed.

    Classes: accuracy on the test images of the class is at most `MOST_LEFT`. Samples: accuracy on them is at most
    `MOST_APART` from the retrained models'. Both: retained test accuracy is at most `MOST_LOST` below the retrained models'.
    """

    def meets(row: dict[str, Any]) -> bool:
        if "failed" in row:
            return False
        own, retrained = row["unlearned"], row["retrained"]
        if entry["request"].startswith("class"):
            forgets = own["forget_test_accuracy"] <= MOST_LEFT
        else:
            forgets = abs(own["forget_train_accuracy"] - retrained["forget_train_accuracy"]) <= MOST_APART
        return forgets and own["retain_test_accuracy"] >= retrained["retain_test_accuracy"] - MOST_LOST

    return bool(entry["seeds"]) and all(meets(row) for row in entry["seeds"].values())
