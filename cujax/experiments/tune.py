"""Chooses the settings of methods, each by as many trials, on validation data alone.

Neither test data nor a retrained model has a say: who is asked to forget has neither to spare.
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from cujax._ranges import Count
from cujax.audit.traces import Traces
from cujax.data.images import Source
from cujax.data.requests import Part, Request
from cujax.experiments.config import Experiment
from cujax.experiments.identity import identity
from cujax.experiments.jobs import Unit, failures, work_through
from cujax.experiments.request_words import request_in_words
from cujax.experiments.run import Run
from cujax.experiments.sweep import ReadySweep, SeveralRuns, Sweep, slug
from cujax.experiments.trials import OBJECTIVES, ObjectiveName, Trial, draw, tried_first
from cujax.failures import Failure, attempt
from cujax.methods.base import Method
from cujax.methods.registry import chosen_methods, make_method
from cujax.methods.retrain import Retrain
from cujax.methods.traits import search_space_of
from cujax.progress import Progress, silent
from cujax.storage.checkpoints import Checkpoint, installed_versions
from cujax.storage.preemption import Interruption
from cujax.storage.records import Kind, RecordError, read_record, write_record
from cujax.storage.workdir import Notify
from cujax.training.predict import Predictions, accuracy, predict

# Raise the last number when the same trial would give other values.
TRIALS = Kind("trials", schema=2, computed_by=3)
SETTINGS = Kind("settings", schema=2)


@dataclass(frozen=True)
class Tuning(SeveralRuns):
    """Choose the settings of methods for a request, on validation data.

    Attributes:
        request: What is to be forgotten: class:LABEL, classes:LABEL,LABEL, random:FRACTION, random:COUNT or ids:PATH; by
            default what the configuration says.
        methods: Which methods to tune; all where none is named.
        trials: How many settings each method may try. First come its published one and that of its reproduction.
        objective: "accuracy", or "features": the loss, and what can be read from the features, beside it.
        sampler: "halton" (scrambled Halton points, which leave no gaps between a few trials; "random" is another name
            for it), or "tpe" for Optuna's tree-structured Parzen estimator (extra [tune]).
    """

    request: str = ""
    methods: tuple[str, ...] = ()
    trials: Count = 10
    objective: ObjectiveName = "accuracy"
    sampler: Literal["halton", "tpe", "random"] = "halton"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler == "random":  # its name in 0.1
            object.__setattr__(self, "sampler", "halton")

    @classmethod
    def asked(cls, request: Request) -> dict[str, Any]:
        return {"request": request_in_words(request)}


@dataclass
class TuningRun(ReadySweep):
    """A tuning that was checked and is ready to compute. Made by `prepare_tuning`."""

    tuning: Tuning
    methods: dict[str, type[Method]]
    failures: list[str] = field(default_factory=list)

    def units(self) -> list[Unit]:
        """All that is computed: the original, and the trials of each method."""
        originals = self.cells.original_units(self.tuning.seed)
        return [*originals, *(self._unit(name, originals) for name in self.methods)]

    def _unit(self, name: str, needs: tuple[Unit, ...]) -> Unit:
        def kept() -> bool:
            return len(self._made(name)) >= self.tuning.trials

        return Unit(f"trials of {name}", self.folder, self._file(name), kept, lambda: list(self._trials(name)), needs)

    @property
    def experiment(self) -> Experiment:
        """What the run computes that the trials lie beside."""
        return self.cells.cell(self.cells.request(self.tuning.request), Retrain(), self.tuning.seed)

    @property
    def folder(self) -> epath.Path:
        """Where the trials lie."""
        return self.cells.folder(self.experiment, *self._place)

    @property
    def _place(self) -> tuple[str, str]:
        return "tuning", slug(self.tuning.request)

    @cached_property
    def _prepared(self) -> tuple[Run, Checkpoint, Traces]:
        """The run, the original, and what looks for traces."""
        run = self.cells.prepare(self.experiment, *self._place)
        return run, run.original(), Traces(run.model, run.split, run.train_images)

    def run(self) -> tuple[epath.Path, dict[str, Any]]:
        """Makes all trials that are not there yet, and writes what was chosen and how.

        Returns:
            The path of `settings.json`, and its content.
        """
        tuning, units = self.tuning, self.units()
        work_through(units, self.cells.began, self.cells.notify)
        self.failures = failures(units, self.cells.began)
        chosen = {}
        for name in self.methods:
            trials = self._made(name)[: tuning.trials]
            if len(trials) < tuning.trials:
                continue
            best = min(trials, key=lambda trial: trial.rank)
            if best.failed:
                self.cells.notify(f"{name}: all {len(trials)} trials failed: {best.failed}")
            else:
                self.cells.notify(
                    f"{name}: {best.settings or 'published settings'}"
                    + ("" if best.is_admissible else f", though accuracy on retained data fell by {best.retain_drop:.3f}")
                )
            chosen[name] = {
                "settings": best.settings,
                "trial": trials.index(best),
                "admissible": best.is_admissible,
                "trials": [asdict(trial) for trial in trials],
            }
        described = identity(self.experiment)
        for unrelated in ("forget", "method"):
            described.pop(unrelated)
        found = {
            "request": tuning.request,
            "forget_digest": self.cells.split(self.cells.request(tuning.request)).digest,
            "trials": tuning.trials,
            "sampler": tuning.sampler,
            "seed": tuning.seed,
            "objective": tuning.objective,
            "rule": OBJECTIVES[tuning.objective].in_words,
            "setup": described,
            "versions": installed_versions(),
            "methods": chosen,
        }
        path = write_record(self.folder / f"settings{self._suffix}.json", SETTINGS, found)
        return path, json.loads(json.dumps(found))

    @property
    def _suffix(self) -> str:
        """Tells the files of another objective than accuracy."""
        return "" if self.tuning.objective == "accuracy" else f"-{self.tuning.objective}"

    def _file(self, name: str) -> str:
        """The file of the trials of a method, without its ending."""
        return f"{name}-{self.tuning.sampler}{self._suffix}"

    def _made(self, name: str) -> list[Trial]:
        """The trials of a method that are on disk."""
        path = self.folder / f"{self._file(name)}.json"
        return [Trial(**trial) for trial in (read_record(path, TRIALS) or [])] if path.is_file() else []

    def _trials(self, name: str) -> Iterator[Trial]:
        tuning, kind = self.tuning, self.methods[name]
        run, original, traces = self._prepared
        space = search_space_of(kind)
        assert space is not None  # prepare_tuning left the others out
        first = tried_first(kind, "class" if run.split.is_class_task else "samples")
        path, trials = self.folder / f"{self._file(name)}.json", self._made(name)
        for number in range(tuning.trials):
            if number == len(trials):
                if number < len(first):
                    settings = first[number]
                else:
                    settings = draw(space, trials[len(first) :], sampler=tuning.sampler, seed=tuning.seed, number=number)
                found = attempt(partial(self._try, run, original, traces, kind, name, settings))
                trials.append(Trial.failure(settings, found.reason) if isinstance(found, Failure) else found)
                write_record(path, TRIALS, [asdict(trial) for trial in trials])
                trial = trials[-1]
                if trial.failed:
                    self.cells.notify(f"FAILED {name} {number + 1}/{tuning.trials}: {trial.failed} {settings or ''}")
                    yield trial
                    continue
                self.cells.notify(
                    f"{name} {number + 1}/{tuning.trials}: forget {trial.forget_accuracy:.3f}, validation "
                    f"{trial.validation_forget_accuracy:.3f}, rest {-trial.retain_drop:+.3f}, "
                    + "".join(f"{trace} {value:.3f}, " for trace, value in trial.traces.items())
                    + f"{trial.steps} steps, {trial.seconds:.1f} s {settings or ''}"
                )
            yield trials[number]

    def _try(
        self,
        run: Run,
        original: Checkpoint,
        traces: Traces,
        kind: type[Method],
        name: str,
        settings: dict[str, Any],
    ) -> Trial:
        result = run.unlearn(make_method(kind, name, settings), original, run.loop)

        def answers(part: Part) -> Predictions:
            return predict(result.model, result.variables, run.train_images, part.indices)

        forget, validation = answers(run.split.forget), answers(run.split.validation)
        held_out = validation.take(np.isin(validation.labels, forget.labels))
        stays = ~np.isin(validation.labels, run.split.absent_classes)
        forget_accuracy, held_out_accuracy = accuracy(forget), accuracy(held_out)
        unforgotten = held_out_accuracy if run.split.is_class_task else abs(forget_accuracy - held_out_accuracy)
        found = {} if self.tuning.objective == "accuracy" else traces.of(result.variables, forget, held_out)
        return Trial(
            settings,
            forget_accuracy,
            held_out_accuracy,
            result.history.checks[0].retain_accuracy - accuracy(validation.take(stays)),
            unforgotten + sum(found.values()),
            result.history.cost.steps,
            result.history.cost.seconds,
            result.history.stop_rule,
            OBJECTIVES[self.tuning.objective].tolerance,
            found,
        )


def prepare_tuning(
    tuning: Tuning,
    progress: Progress = silent,
    notify: Notify = lambda sentence: None,
    interruption: Interruption | None = None,
    *,
    source: Source | None = None,
) -> TuningRun:
    """Reads the data and checks everything that can be checked before computing.

    A method that does not fit the request, or has nothing to tune, is left out, and the reason is shown. Arguments as of
    `cujax.experiments.run.prepare`.

    Raises:
        ValueError: if data, request, methods and sampler do not fit together.
        FileNotFoundError: if data or a file of ids is not there.
    """
    if tuning.sampler == "tpe" and importlib.util.find_spec("optuna") is None:
        raise ValueError("sampler tpe needs Optuna: run the command as uv run --extra tune ..., or take --sampler halton.")
    cells = Sweep(tuning, progress, notify, interruption or Interruption(), given_source=source)
    request = cells.request(tuning.request)
    tuning = replace(tuning, request=request_in_words(request))
    methods = {}
    split = cells.split(request)
    labels = cells.source.train.labels
    if not np.isin(labels[split.validation.indices], labels[split.forget.indices]).any():
        raise ValueError(
            f"{cells.source.name} has no validation image of the classes that {tuning.request} names to judge a setting by; "
            "ask for other classes, or give more images: a class needs 6 for one of validation."
        )
    for name, kind in chosen_methods(tuning.methods).items():
        if search_space_of(kind) is None:
            notify(f"left out: {name} has nothing to tune.")
            continue
        try:
            cells.check_fits(kind(), split)
        except ValueError as reason:
            notify(f"left out: {name}: {reason}")
            continue
        methods[name] = kind
    if not methods:
        raise ValueError(
            f"none of the methods {', '.join(tuning.methods)} fits the request and has anything to tune (a search_space)."
        )
    return TuningRun(cells, tuning, methods)


def read_settings(path: Path) -> dict[str, Any]:
    """What an earlier tuning chose.

    Raises:
        ValueError: if the file is not one that tuning wrote.
        FileNotFoundError: if it is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"settings {path} do not exist; make them with cujax tune.")
    try:
        settings = json.loads(path.read_text("utf-8"))
        if "cujax" in settings:  # files of 0.1 have no digest
            settings = read_record(epath.Path(path), SETTINGS)
        wrong = {"request", "forget_digest", "trials", "sampler", "methods"} - settings.keys()
        wrong |= {name for name, method in settings["methods"].items() if not isinstance(method["settings"], dict)}
    except RecordError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"settings {path} were not written by cujax tune ({error}); make them anew.") from error
    if wrong:
        raise ValueError(f"settings {path} lack {', '.join(sorted(wrong))}; make them anew with cujax tune.")
    return settings


def chosen_in_words(found: dict[str, Any]) -> str:
    """The settings that were chosen, a line a method."""
    return "\n".join(
        f"{name:<29} trial {method['trial'] + 1}/{len(method['trials'])}  "
        + (", ".join(f"{key} {value}" for key, value in method["settings"].items()) or "published settings")
        + "  (NOT ADMISSIBLE)" * (not method["admissible"])
        for name, method in found["methods"].items()
    )
