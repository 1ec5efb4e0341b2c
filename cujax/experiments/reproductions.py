"""Each method at a setting with which it does what its paper says: from the table of a configuration to stored figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cujax.data.requests import ForgetRandom
from cujax.experiments.compare import Comparison, prepare_comparison
from cujax.experiments.config import Experiment
from cujax.experiments.user_files import load_python_file
from cujax.methods.base import Method, reproduction_settings
from cujax.methods.registry import chosen_methods, find_method, make_method
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
    """What is repeated of a method's paper.

    Attributes:
        published: The paper's own figures and their task, in words; "" where none is at hand.
        source: Where they stand.
        departs: How the setting differs from that of the authors' code.
        tried: What else was tried, where the aim was missed.
        settings: The settings; None for those beside the method (its `reproduction`).
    """

    published: str = ""
    source: str = ""
    departs: str = ""
    tried: str = ""
    settings: Mapping[str, Any] | None = field(default=None)

    def method(self, name: str, experiment: Experiment) -> Method:
        """The method of this name, with its settings for what the experiment forgets.

        Raises:
            ValueError: if the method does not take them, or has none for the task.
        """
        kind, task = find_method(name), task_of(experiment)
        settings = reproduction_settings(kind, task) if self.settings is None else self.settings
        if settings is None:
            raise ValueError(f"{name} has no settings for a task of {task}; give some to its Reproduction.")
        return make_method(kind, name, settings)


def task_of(experiment: Experiment) -> Any:
    """Whether an experiment forgets a "class" or "samples"."""
    return "samples" if isinstance(experiment.forget, ForgetRandom) else "class"


@dataclass(frozen=True)
class Reproductions:
    """The content of a file of configs/reproductions.

    Attributes:
        name: Of the file.
        experiment: Its `CONFIG`: the task.
        by_method: Its `REPRODUCTIONS`.
    """

    name: str
    experiment: Experiment
    by_method: Mapping[str, Reproduction]

    @classmethod
    def read(cls, path: Path) -> "Reproductions":
        """The file's content.

        Raises:
            ValueError: if it lacks a `CONFIG` or `REPRODUCTIONS`.
        """
        module = load_python_file(path)
        experiment, by_method = (getattr(module, name, None) for name in ("CONFIG", "REPRODUCTIONS"))
        if not isinstance(experiment, Experiment) or not isinstance(by_method, dict):
            raise ValueError(
                f"{path} must define CONFIG = Experiment(...) and REPRODUCTIONS = {{METHOD: Reproduction(...)}}."
            )
        return cls(path.stem, experiment, by_method)

    def figures(
        self,
        methods: tuple[str, ...],
        seeds: tuple[int, ...],
        progress: Progress = silent,
        notify: Notify = lambda sentence: None,
        interruption: Interruption | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and figures of each method, one after the other; what was computed before is read.

        Args:
            methods: Which; all of the file where none is named.
            seeds: Seeds of originals, retrained models and methods.
            progress: Shows progress.
            notify: Takes what a person should know.
            interruption: Says when the process was asked to end.
        """
        comparison = replace(Comparison.of(self.experiment), workdir=self.experiment.workdir, seeds=seeds)
        source = None
        for name in chosen_methods([name for name in self.by_method if name in methods or not methods]):
            reproduction = self.by_method[name]
            given = {name: reproduction.method(name, self.experiment)}
            run = prepare_comparison(comparison, progress, notify, interruption, source=source, given=given)
            source, found = run.source, run.run()
            (task,) = found["tasks"].values()
            yield (
                name,
                {
                    "request": comparison.requests[0],
                    "data": {**found["source"], "limit": self.experiment.data.limit},
                    "network": self.experiment.network,
                    "settings": {key: value for key, value in task["settings"][name].items() if key != "type"},
                    "changed": self._changed(name, given[name]),
                    "theirs": {"figures": reproduction.published, "source": reproduction.source},
                    "departs": reproduction.departs,
                    "tried": reproduction.tried,
                    "seeds": {seed: _row(cell, task["references"][seed]) for seed, cell in task["cells"][name].items()},
                    "versions": found["versions"],
                    "device": found["device"],
                },
            )

    def _changed(self, name: str, method: Method) -> dict[str, Any]:
        """The settings that differ from the method's defaults."""
        default = find_method(name)()
        return {key: value for key, value in vars(method).items() if value != getattr(default, key)}


def _row(cell: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The figures of one seed, those of its original and the means of its retrained models beside them."""
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
    """Whether figures, as `Reproductions.figures` gives them, meet the aim with every seed.

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
