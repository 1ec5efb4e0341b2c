"""Chooses the settings of methods, each by as many trials, on validation data alone.

Neither test data nor a retrained model has a say: who is asked to forget has neither to spare.
"""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from etils import epath
from scipy.stats import qmc

from cujax._ranges import Count
from cujax.audit.traces import Traces
from cujax.data.images import Source
from cujax.data.requests import Part, Request
from cujax.experiments.identity import identity
from cujax.experiments.request_words import request_in_words
from cujax.experiments.run import Run
from cujax.experiments.sweep import ReadySweep, SeveralRuns, Sweep, slug
from cujax.failures import Failure, attempt
from cujax.methods.base import Method
from cujax.methods.registry import chosen_methods, make_method
from cujax.methods.retrain import Retrain
from cujax.methods.search_space import SearchSpace, places_of, settings_at
from cujax.methods.traits import published_settings, reproduction_settings, search_space_of
from cujax.progress import Progress, silent
from cujax.storage.checkpoints import Checkpoint, installed_versions
from cujax.storage.preemption import Interruption
from cujax.storage.records import Kind, RecordError, read_record, write_record
from cujax.storage.workdir import Notify
from cujax.training.predict import Predictions, accuracy, predict

# Raise the last number when the same trial would give other values.
TRIALS = Kind("trials", schema=2, computed_by=3)
SETTINGS = Kind("settings", schema=2)
ObjectiveName = Literal["accuracy", "features"]


class Objective(NamedTuple):
    """What makes a setting the best.

    Attributes:
        tolerance: By how much validation accuracy on retained data may fall.
        rule: What is to be small among settings within it, in words.
    """

    tolerance: float
    rule: str

    @property
    def in_words(self) -> str:
        """The whole rule."""
        return (
            f"Admissible: validation accuracy on retained data within {self.tolerance} of the original's. Among those, "
            f"{self.rule}; then the smallest fall on retained data, then the fewest steps."
        )


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "accuracy": Objective(
        0.02,
        "for classes the lowest validation accuracy on them, for samples the smallest difference between the accuracy on "
        "them and on validation samples",
    ),
    "features": Objective(
        0.01,
        "the smallest sum of three: the accuracy that is to be small; how far the area under the ROC curve of the loss, "
        "forget samples against validation samples of their classes, lies from 0.5; and what probes find, mean over depths "
        "(classes: how much more often than from untrained networks they recognise it; samples: the difference between "
        "their accuracy on them and on validation samples)",
    ),
}


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


@dataclass(frozen=True)
class Trial:
    """What some settings gave on validation data.

    Attributes:
        settings: The settings that were tried.
        forget_accuracy: On the forget set.
        validation_forget_accuracy: On validation samples of the classes of the forget set.
        retain_drop: By how much validation accuracy on retained data fell.
        unforgotten: What is to be small: classes: `validation_forget_accuracy`; samples: how far `forget_accuracy` is from
            it, on either side; and the sum of `traces`.
        steps: Optimiser steps.
        seconds: What it took.
        stop_rule: Why it ended.
        tolerance: By how much the objective lets accuracy on retained data fall.
        traces: As `cujax.audit.traces.Traces` gives them; none where accuracy is all that counts.
        failed: Why the trial gave nothing; "" if it did not fail.
    """

    settings: dict[str, Any]
    forget_accuracy: float
    validation_forget_accuracy: float
    retain_drop: float
    unforgotten: float
    steps: int
    seconds: float
    stop_rule: str
    tolerance: float = OBJECTIVES["accuracy"].tolerance
    traces: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""

    @classmethod
    def failure(cls, settings: dict[str, Any], reason: str) -> Self:
        """A trial that failed: the worst in everything."""
        return cls(settings, 1.0, 1.0, 1.0, 1.0, 0, 0.0, "failed", failed=reason)

    @property
    def is_admissible(self) -> bool:
        """Whether retained data was kept."""
        return not self.failed and self.retain_drop <= self.tolerance + 1e-9

    @property
    def rank(self) -> tuple[float, float, float, int]:
        """Smaller is better. Small validation sets tie often; without the third, the most brittle setting would win."""
        shortfall = 0.0 if self.is_admissible else self.retain_drop
        return shortfall, self.unforgotten, max(self.retain_drop, 0.0), self.steps


def tried_first(kind: type[Method], task: Literal["class", "samples"]) -> list[dict[str, Any]]:
    """The settings of the first trials: the published ones, then those of the method's reproduction, where it has any."""
    published, reproduction = published_settings(kind, task), reproduction_settings(kind, task)
    return [published] if reproduction in (None, published) else [published, dict(reproduction)]


def draw(space: SearchSpace, earlier: Sequence[Trial], *, sampler: str, seed: int, number: int) -> dict[str, Any]:
    """The settings of trial `number`, from what is known: the same whether or not tuning was interrupted.

    Args:
        space: The ranges.
        earlier: The trials before it that drew from them.
        sampler: "halton" or "tpe".
        seed: Of the draw.
        number: Of the trial, from 0.
    """
    if sampler == "halton":
        points = qmc.Halton(len(space), rng=np.random.default_rng(seed)).random(number + 1)
        return settings_at(space, dict(zip(space, map(float, points[-1]), strict=True)))
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna sees where in its range a value lies, and one figure to minimise.
    places: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in space
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=4))
    for trial in earlier:
        shortfall, unforgotten, drop, steps = trial.rank
        params = places_of(space, trial.settings)
        value = 10 * shortfall + unforgotten + 1e-2 * drop + 1e-7 * steps
        study.add_trial(optuna.trial.create_trial(params=params, distributions=places, value=value))
    params = study.ask(places).params
    return settings_at(space, {name: min(place, math.nextafter(1, 0)) for name, place in params.items()})


@dataclass
class TuningRun(ReadySweep):
    """A tuning that was checked and is ready to compute. Made by `prepare_tuning`."""

    tuning: Tuning
    methods: dict[str, type[Method]]

    def run(self) -> tuple[epath.Path, dict[str, Any]]:
        """Makes all trials that are not there yet, and writes what was chosen and how.

        Returns:
            The path of `settings.json`, and its content.
        """
        tuning, cells = self.tuning, self.cells
        experiment = cells.experiment(cells.request(tuning.request), Retrain(), tuning.seed)
        run = cells.prepare(experiment, "tuning", slug(tuning.request))
        original, traces = run.original(), Traces(run.model, run.split, run.train_images)
        chosen = {}
        for name, kind in self.methods.items():
            trials = list(self._trials(run, original, traces, name, kind))
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
        described = identity(experiment)
        for unrelated in ("forget", "method"):
            described.pop(unrelated)
        found = {
            "request": tuning.request,
            "forget_digest": run.split.digest,
            "trials": tuning.trials,
            "sampler": tuning.sampler,
            "seed": tuning.seed,
            "objective": tuning.objective,
            "rule": OBJECTIVES[tuning.objective].in_words,
            "setup": described,
            "versions": installed_versions(),
            "methods": chosen,
        }
        path = write_record(run.workdir / f"settings{self._suffix}.json", SETTINGS, found)
        return path, json.loads(json.dumps(found))

    @property
    def _suffix(self) -> str:
        """Tells the files of another objective than accuracy."""
        return "" if self.tuning.objective == "accuracy" else f"-{self.tuning.objective}"

    def _trials(self, run: Run, original: Checkpoint, traces: Traces, name: str, kind: type[Method]) -> Iterator[Trial]:
        tuning = self.tuning
        space = search_space_of(kind)
        assert space is not None  # prepare_tuning left the others out
        first = tried_first(kind, "class" if run.split.is_class_task else "samples")
        path = run.workdir / f"{name}-{tuning.sampler}{self._suffix}.json"
        trials = [Trial(**trial) for trial in (read_record(path, TRIALS) or [])] if path.is_file() else []
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
