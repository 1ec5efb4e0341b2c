"""Chooses the settings of methods, with equally many trials for each (`cujax.experiments.trials`), on validation data only.

Neither test data nor retrained models are used: someone who handles a deletion request can spare neither.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from cujax._ranges import Count, Seed
from cujax.audit.traces import Traces
from cujax.data.images import Source
from cujax.data.requests import Part, Request, Split
from cujax.experiments.checks import check_seeds_differ
from cujax.experiments.config import Experiment
from cujax.experiments.identity import identity
from cujax.experiments.jobs import Unit, failures, work_through
from cujax.experiments.request_words import request_in_words
from cujax.experiments.run import Run
from cujax.experiments.sweep import ReadySweep, SeveralRuns, Sweep, slug
from cujax.experiments.trials import OBJECTIVES, Chosen, ObjectiveName, Trial, draw, halve, shortened, tried_first
from cujax.failures import Failure, attempt
from cujax.methods.base import Method
from cujax.methods.registry import chosen_methods, make_method
from cujax.methods.retrain import Retrain
from cujax.methods.traits import search_space_of, with_recipe
from cujax.progress import Progress, silent
from cujax.storage.checkpoints import installed_versions
from cujax.storage.preemption import Interruption
from cujax.storage.records import Kind, RecordError, read_record, write_record
from cujax.storage.workdir import Notify
from cujax.training.predict import Predictions, accuracy, predict

# Raise the last number when the same trial would give other values.
TRIALS = Kind("trials", schema=3, computed_by=3)
SETTINGS = Kind("settings", schema=3)


@dataclass(frozen=True)
class Tuning(SeveralRuns):
    """Choose the settings of methods for a request, on validation data.

    Attributes:
        request: What to forget: class:LABEL, classes:LABEL,LABEL, random:FRACTION, random:COUNT, subject:NAME or
            ids:PATH. By default, the request of the configuration.
        methods: Which methods to tune; by default all.
        trials: How many settings to try for each method. The published settings come first, then those used to reproduce the
            published results. All settings are tried with a third of the passes; the best third, and the two that came
            first, with all passes; and the best three with every seed.
        seeds: Seeds of the originals. The best three settings are tried with each seed, and all others only with the first.
            By default, --seed and the next two.
        objective: What to judge settings by: "accuracy", or "features", which also counts the loss and what can be read from
            the features.
        sampler: How settings are drawn: "halton" for scrambled Halton points, which are spread evenly even if they are
            few ("random" is an alias); or "tpe" for Optuna's tree-structured Parzen estimator (needs the extra [tune]).
    """

    request: str = ""
    methods: tuple[str, ...] = ()
    trials: Count = 12
    seeds: tuple[Seed, ...] = ()
    objective: ObjectiveName = "accuracy"
    sampler: Literal["halton", "tpe", "random"] = "halton"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler == "random":  # its name in 0.1
            object.__setattr__(self, "sampler", "halton")
        check_seeds_differ(self.seeds)

    @classmethod
    def asked(cls, request: Request) -> dict[str, Any]:
        return {"request": request_in_words(request)}


@dataclass
class TuningRun(ReadySweep):
    """A tuning run that was checked and is ready to compute. Created by `prepare_tuning`."""

    tuning: Tuning
    methods: dict[str, type[Method]]
    failures: list[str] = field(default_factory=list)
    _runs: dict[int, Run] = field(default_factory=dict, init=False)
    _traces: dict[int, Traces] = field(default_factory=dict, init=False)

    def units(self) -> list[Unit]:
        """Everything that is computed: the originals, and the trials of each method."""
        originals = [unit for seed in self.seeds for unit in self.cells.original_units(seed)]
        return [*originals, *(self._unit(name, tuple(originals)) for name in self.methods)]

    def _unit(self, name: str, needs: tuple[Unit, ...]) -> Unit:
        def kept() -> bool:
            return self._chosen(name) is not None

        return Unit(f"trials of {name}", self.folder, self._file(name), kept, partial(self._make_trials, name), needs)

    def run(self) -> tuple[epath.Path, dict[str, Any]]:
        """Runs all trials that do not exist yet, and writes what was chosen and how.

        Returns:
            The path of `settings.json` and its content.
        """
        tuning, cells, units = self.tuning, self.cells, self.units()
        work_through(units, cells.began, cells.notify)
        self.failures = failures(units, cells.began)
        chosen = {}
        for name in self.methods:
            found = self._chosen(name)
            if found is None:
                continue
            failed = [trial.failed for trial in found.over_seeds if trial.failed]
            worst = max(trial.retain_drop for trial in found.over_seeds)
            if failed:
                cells.notify(f"{name}: the best of {tuning.trials} settings failed: {failed[0]}")
            else:
                harm = "" if found.is_admissible else f", though accuracy on retained data fell by {worst:.3f}"
                cells.notify(f"{name}: {found.settings or 'published settings'}{harm}")
            chosen[name] = {
                "settings": found.settings,
                "admissible": found.is_admissible,
                "over_seeds": [asdict(trial) for trial in found.over_seeds],
                "trials": [asdict(trial) for trial in found.trials],
            }
        described = identity(self._experiment(self.seeds[0]))
        for unrelated in ("forget", "method"):
            described.pop(unrelated)
        found_all = {
            "request": tuning.request,
            "forget_digest": self._split.digest,
            "trials": tuning.trials,
            "sampler": tuning.sampler,
            "seed": tuning.seed,
            "seeds": list(self.seeds),
            "objective": tuning.objective,
            "rule": OBJECTIVES[tuning.objective].in_words,
            "setup": described,
            "versions": installed_versions(),
            "methods": chosen,
        }
        path = write_record(self.folder / f"settings{self._suffix}.json", SETTINGS, found_all)
        return path, json.loads(json.dumps(found_all))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the originals on which finalists are tried; the first is used for all other trials."""
        return self.tuning.seeds or tuple(range(self.tuning.seed, self.tuning.seed + 3))

    @property
    def folder(self) -> epath.Path:
        """The folder of the trials."""
        return self.cells.folder(self._experiment(self.seeds[0]), *self._place)

    @property
    def _place(self) -> tuple[str, str]:
        return "tuning", slug(self.tuning.request)

    @property
    def _suffix(self) -> str:
        """Marks the files of objectives other than accuracy."""
        return "" if self.tuning.objective == "accuracy" else f"-{self.tuning.objective}"

    @cached_property
    def _split(self) -> Split:
        return self.cells.split(self.cells.request(self.tuning.request))

    def _experiment(self, seed: int) -> Experiment:
        return self.cells.cell(self.cells.request(self.tuning.request), Retrain(), seed)

    def _seed_run(self, seed: int) -> Run:
        """The run whose original the trials of a seed start from."""
        if seed not in self._runs:
            self._runs[seed] = self.cells.prepare(self._experiment(seed), *self._place)
        return self._runs[seed]

    def _file(self, name: str) -> str:
        """The file of a method's trials, without its suffix."""
        return f"{name}-{self.tuning.sampler}{self._suffix}"

    def _kept(self, name: str) -> list[Trial]:
        """The trials of a method that exist on disk."""
        path = self.folder / f"{self._file(name)}.json"
        return [Trial(**trial) for trial in (read_record(path, TRIALS) or [])] if path.is_file() else []

    def _chosen(self, name: str) -> Chosen | None:
        """The outcome of a method's trials; None if some have not been run yet."""

        def missing(*trial: Any) -> Trial:
            raise LookupError(f"this trial has not been run yet: {trial}")

        try:
            return self._halved(name, self._kept(name), missing)
        except LookupError:
            return None

    def _make_trials(self, name: str) -> None:
        """Runs the trials of a method that do not exist yet; each is saved immediately."""
        kept = self._kept(name)

        def new(method: Method | Failure, settings: dict[str, Any], share: float, seed: int) -> Trial:
            found = method if isinstance(method, Failure) else attempt(partial(self._try, method, settings, share, seed))
            if isinstance(found, Failure):
                found = Trial.failure(settings, found.reason, share=share, seed=seed)
            kept.append(found)
            write_record(self.folder / f"{self._file(name)}.json", TRIALS, [asdict(one) for one in kept])
            self.cells.notify(_in_words(name, found))
            return found

        self._halved(name, kept, new)

    def _halved(
        self, name: str, kept: Sequence[Trial], new: Callable[[Method | Failure, dict[str, Any], float, int], Trial]
    ) -> Chosen:
        """Successive halving of one method, with saved trials where they exist and new ones otherwise.

        `new` takes the method, its settings, a share of the passes and a seed.
        """
        tuning, kind = self.tuning, self.methods[name]
        space = search_space_of(kind)
        assert space is not None  # prepare_tuning excluded the others
        first = tried_first(kind, self._split.task)

        def settings(earlier: Sequence[Trial], number: int) -> dict[str, Any]:
            if number < len(first):
                return first[number]
            return draw(space, earlier[len(first) :], sampler=tuning.sampler, seed=tuning.seed, number=number)

        def attempted(settings: dict[str, Any], share: float, seed: int) -> Trial:
            method = attempt(partial(make_method, kind, name, settings))
            if not isinstance(method, Failure) and shortened(method, share) == method:
                share = 1.0
            for one in kept:
                if (one.settings, one.share, one.seed) == (settings, share, seed):
                    return one
            return new(method, settings, share, seed)

        return halve(settings, attempted, number=tuning.trials, always=len(first), seeds=self.seeds)

    def _try(self, method: Method, settings: dict[str, Any], share: float, seed: int) -> Trial:
        run, tolerance = self._seed_run(seed), OBJECTIVES[self.tuning.objective].tolerance
        method = with_recipe(shortened(method, share), run.experiment.training)
        result = run.unlearn(method, run.original(), run.loop)

        def answers(part: Part) -> Predictions:
            return predict(result.model, result.variables, run.train_images, part.indices)

        forget, validation = answers(run.split.forget), answers(run.split.validation)
        held_out = validation.take(np.isin(validation.labels, forget.labels))
        stays = ~np.isin(validation.labels, run.split.absent_classes)
        forget_accuracy, held_out_accuracy = accuracy(forget), accuracy(held_out)
        unforgotten = held_out_accuracy if run.split.is_class_task else abs(forget_accuracy - held_out_accuracy)
        found = {}
        if self.tuning.objective == "features":
            found = self._traces_of(seed).of(result.variables, forget, held_out)
        return Trial(
            settings,
            forget_accuracy,
            held_out_accuracy,
            result.history.checks[0].retain_accuracy - accuracy(validation.take(stays)),
            unforgotten + sum(found.values()),
            result.history.cost.steps,
            result.history.cost.seconds,
            result.history.stop_rule,
            tolerance,
            found,
            seed=seed,
            share=share,
            flops=result.history.cost.flops,
        )

    def _traces_of(self, seed: int) -> Traces:
        """What the features of the models of a seed show; untrained networks are evaluated once."""
        if seed not in self._traces:
            run = self._seed_run(seed)
            self._traces[seed] = Traces(run.model, run.split, run.train_images)
        return self._traces[seed]


def _in_words(name: str, trial: Trial) -> str:
    """The result of a trial, on one line."""
    what = f"{name}, seed {trial.seed}{', a third of the passes' * (trial.share < 1)}"
    if trial.failed:
        return f"FAILED {what}: {trial.failed} {trial.settings or ''}"
    return (
        f"{what}: forget {trial.forget_accuracy:.3f}, validation {trial.validation_forget_accuracy:.3f}, retained "
        f"{-trial.retain_drop:+.3f}, "
        + "".join(f"{trace} {value:.3f}, " for trace, value in trial.traces.items())
        + f"{trial.steps} steps, {trial.seconds:.1f} s {trial.settings or ''}"
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

    A method that does not support the request, or has nothing to tune, is left out, and the reason is shown. For the
    arguments, see `cujax.experiments.run.prepare`.

    Raises:
        ValueError: if data, request, methods and sampler are not compatible.
        FileNotFoundError: if data or a file of ids does not exist.
    """
    if tuning.sampler == "tpe" and importlib.util.find_spec("optuna") is None:
        raise ValueError("sampler tpe needs Optuna: run the command as uv run --extra tune ..., or use --sampler halton.")
    cells = Sweep(tuning, progress, notify, interruption or Interruption(), given_source=source)
    request = cells.request(tuning.request)
    tuning = replace(tuning, request=request_in_words(request))
    methods = {}
    split = cells.split(request)
    labels = cells.source.train.labels
    if not np.isin(labels[split.validation.indices], labels[split.forget.indices]).any():
        raise ValueError(
            f"{cells.source.name} has no validation image of the classes that {tuning.request} names, so settings cannot be "
            "judged; name other classes, or give more images: a class needs at least 6 training images for one validation "
            "image."
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
    """Returns what an earlier tuning run chose.

    Raises:
        ValueError: if the file was not written by tuning.
        FileNotFoundError: if it does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"settings {path} do not exist; create them with cujax tune.")
    try:
        settings = json.loads(path.read_text("utf-8"))
        if "cujax" in settings:  # files of 0.1 have no digest
            settings = read_record(epath.Path(path), SETTINGS)
            if settings is None:
                raise RecordError(f"settings {path} were written by another version; create them again with cujax tune.")
        wrong = {"request", "forget_digest", "trials", "sampler", "methods"} - settings.keys()
        wrong |= {name for name, method in settings["methods"].items() if not isinstance(method["settings"], dict)}
    except RecordError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"settings {path} were not written by cujax tune ({error}); create them again.") from error
    if wrong:
        raise ValueError(f"settings {path} lack {', '.join(sorted(wrong))}; create them again with cujax tune.")
    return settings


def chosen_in_words(found: dict[str, Any]) -> str:
    """The chosen settings, one line per method, with their results on validation data over the seeds."""
    lines = []
    for name, method in found["methods"].items():
        forget, lost = (
            [trial[key] for trial in method["over_seeds"]] for key in ("validation_forget_accuracy", "retain_drop")
        )
        settings = ", ".join(f"{key} {value}" for key, value in method["settings"].items()) or "published settings"
        lines.append(
            f"{name:<29} forget {min(forget):.3f} to {max(forget):.3f}, retained {-100 * max(lost):+.1f} to "
            f"{-100 * min(lost):+.1f} points  {settings}" + "  (NOT ADMISSIBLE)" * (not method["admissible"])
        )
    return "\n".join(lines)
