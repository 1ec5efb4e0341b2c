"""Methods × requests × seeds: each combination (a cell) is a run, compared with the same retrained models."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from etils import epath

from cujax._ranges import ProportionAboveZero, Seed
from cujax.audit.key_metrics import Task
from cujax.audit.verdict_words import TABLE_WORDS
from cujax.data.images import Source
from cujax.data.requests import Request, Split
from cujax.experiments.change import parameter_change
from cujax.experiments.checks import check_seeds_differ
from cujax.experiments.comparison_references import References, VerdictReads
from cujax.experiments.division import is_divided
from cujax.experiments.identity import describe
from cujax.experiments.jobs import Unit, failure, work_through
from cujax.experiments.request_words import describe_request, request_in_words
from cujax.experiments.sweep import ReadySweep, SeveralRuns, Sweep, slug
from cujax.experiments.tune import read_settings
from cujax.methods.base import Method
from cujax.methods.registry import chosen_methods, make_method, method_names
from cujax.methods.retrain import Retrain, RetrainShort
from cujax.methods.traits import published_settings, reproduction_settings
from cujax.progress import Progress, silent
from cujax.storage.checkpoints import installed_versions
from cujax.storage.preemption import Interruption
from cujax.storage.records import Kind, kept_record, read_record
from cujax.storage.workdir import Notify

# Raise the last number when the same models would give other values.
CELL = Kind("cell", schema=4, computed_by=2)
# What may follow the name of a method, and where its settings come from.
_SETTINGS: dict[str, Callable[[type[Method], Task], Mapping[str, Any] | None]] = {
    "published": published_settings,
    "reproduction": reproduction_settings,
}
# The name of the unit that a record and the model behind it are.
_RECORD = "record"


@dataclass(frozen=True)
class Comparison(SeveralRuns):
    """Compare methods on requests, over seeds.

    Attributes:
        requests: What to forget: one or more requests, each compared separately. A request is class:LABEL,
            classes:LABEL,LABEL, random:FRACTION, random:COUNT, subject:NAME or ids:PATH. By default, the request
            of the configuration.
        methods: Which methods to compare; by default all. NAME@published uses the method's published settings, and
            NAME@reproduction the settings used to reproduce its published results (docs/results/reproductions.md).
        seeds: Seeds of the originals, the retrained models and the methods; by default only --seed.
        settings: Files of settings that cujax tune wrote, at most one per request. Without a file for the request, or if the
            method is not in the file, a method uses its default settings.
        controls: Retraining with fewer epochs is the control of every comparison, shown as a curve. These are its points, as
            shares of the epochs.
        audit: What the verdict on each method is based on. With "answers", only on the answers of the unlearned model.
            With "standard", also on its features and on relearning, as in cujax unlearn; this takes about as long as
            unlearning. It needs 5 retrained models to name every fault, and 8 for "no trace found".
        protocol: With "gap4", also write the table that papers use for random samples: four figures in percentage points and
            their mean gap to retrained models, next to published gaps if there are any for the task.
    """

    requests: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = ()
    settings: tuple[str, ...] = ()
    controls: tuple[ProportionAboveZero, ...] = (0.1, 0.2, 0.4, 0.6)
    audit: VerdictReads = "answers"
    protocol: Literal["gap4"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds_differ(self.seeds)
        if self.retrained < 1:
            raise ValueError("retrained is 0, but methods are compared with retrained models; give --retrained 3 or more.")

    @classmethod
    def asked(cls, request: Request) -> dict[str, Any]:
        return {"requests": (request_in_words(request),)}


@dataclass(frozen=True)
class _Task:
    """One request: its split, the methods with their settings, and how those were found."""

    word: str
    request: Request
    split: Split
    methods: dict[str, Method]
    left_out: dict[str, str]
    tuned: dict[str, Any] | None


@dataclass
class ComparisonRun(ReadySweep):
    """A comparison that was checked and is ready to compute. Made by `prepare_comparison`."""

    comparison: Comparison
    tasks: list[_Task]
    failures: list[str] = field(default_factory=list)
    _looked_at: tuple[_Task, int, References] | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of originals, retrained models and methods."""
        return self.comparison.seeds or (self.comparison.seed,)

    def units(self) -> list[Unit]:
        """Everything that is computed: the originals, the retrained models, what is measured on them, and the cells."""
        originals = {seed: self.cells.original_units(seed) for seed in self.seeds}
        units = [unit for units in originals.values() for unit in units]
        numbers = itertools.count(1)
        for task, seed in itertools.product(self.tasks, self.seeds):
            retrained = self._retrained_units(task, seed, originals[seed])
            units += [*retrained, self._reference_unit(task, seed, retrained)]
            units += [self._cell_unit(task, name, seed, retrained, next(numbers)) for name in task.methods]
        return units

    def run(self) -> dict[str, Any]:
        """Computes every missing cell, and returns all results; a cell that fails does not affect the others.

        Returns:
            The content of `comparison.json`, before its tables are made (`cujax.reports.comparison_report.tabulate`).
        """
        units = self.units()
        work_through(units, self.cells.began, self.cells.notify)
        by_place = {(unit.folder, unit.name): unit for unit in units}
        setup = describe(self.comparison)
        for here in ("workdir", "settings"):
            setup.pop(here)
        setup["data"].pop("data_dir")
        return {
            "source": {"name": self.source.name, "version": self.source.version},
            "setup": setup,
            "seeds": list(self.seeds),
            "retrained": self.comparison.retrained,
            "versions": installed_versions(),
            "device": jax.devices()[0].device_kind,
            "tasks": {task.word: self._compared(task, by_place) for task in self.tasks},
            "failures": self.failures,
        }

    def _compared(self, task: _Task, units: Mapping[tuple[epath.Path, str], Unit]) -> dict[str, Any]:
        """All cells of one request, as they are on disk."""
        cells: dict[str, dict[str, Any]] = {name: {} for name in task.methods}
        reference_rows: dict[str, Any] = {}
        for seed in self.seeds:
            reference = self._found(units[self._folder(task, "retrained", Retrain(), seed), _RECORD])
            reference_rows[str(seed)] = reference
            for name, method in task.methods.items():
                if "failed" in reference:
                    cells[name][str(seed)] = {"failed": "there are no retrained models to compare it with"}
                else:
                    cells[name][str(seed)] = self._found(units[self._folder(task, name, method, seed), _RECORD])
        return {
            "request": describe_request(task.request),
            "classes": [self.source.class_names[label] for label in task.split.forgotten_classes],
            "split": {part: len(getattr(task.split, part)) for part in ("forget", "retain", "validation", "test")}
            | {"digest": task.split.digest},
            "settings": {name: describe(method) for name, method in task.methods.items()},
            "controls": [name for name, method in task.methods.items() if isinstance(method, RetrainShort)],
            "tuned": task.tuned,
            "left_out": task.left_out,
            "references": reference_rows,
            "cells": cells,
        }

    def _found(self, unit: Unit) -> dict[str, Any]:
        """What is on disk of a unit, or why it failed."""
        reason = failure(unit, self.cells.began)
        if unit.is_complete or reason is None:
            return read_record(self._record(unit.folder), CELL)
        self.failures.append(f"{unit.title}: {reason}")
        return {"failed": reason}

    def _retrained_units(self, task: _Task, seed: int, needs: tuple[Unit, ...]) -> tuple[Unit, ...]:
        folder = self._folder(task, "retrained", Retrain(), seed)

        def unit(number: int) -> Unit:
            title, name = f"{task.word}, retrained {number}, seed {seed}", f"retrained_{number}"
            kept = (folder / "checkpoints" / name).exists
            return Unit(title, folder, name, kept, lambda: self._retrain(task, seed, number), needs)

        return tuple(map(unit, range(self.comparison.retrained)))

    def _retrain(self, task: _Task, seed: int, number: int) -> None:
        run = self._references(task, seed).run
        if not is_divided(self.comparison):
            run.retrain_together()
        run.retrained_model(number)

    def _reference_unit(self, task: _Task, seed: int, needs: tuple[Unit, ...]) -> Unit:
        folder = self._folder(task, "retrained", Retrain(), seed)

        def compute() -> None:
            kept_record(self._record(folder), CELL, self._references(task, seed).audit)

        return Unit(f"{task.word}, retrained, seed {seed}", folder, _RECORD, self._has_record(folder), compute, needs)

    def _cell_unit(self, task: _Task, name: str, seed: int, needs: tuple[Unit, ...], number: int) -> Unit:
        title, method = f"{task.word}, {name}, seed {seed}", task.methods[name]
        folder = self._folder(task, name, method, seed)
        total = len(self.seeds) * sum(len(task.methods) for task in self.tasks)

        def compute() -> None:
            cell = self._cell(task, name, method, seed)
            gap = cell["row"]["mean_gap"]
            self.cells.notify(
                f"[{number}/{total}] {title}: {TABLE_WORDS[self.comparison.audit][cell['verdict']['word']]}, mean gap "
                f"{'–' if gap is None else f'{gap:.4f}'}, {cell['cost']['seconds']:.1f} s, {cell['stop']['rule']}"
            )

        return Unit(title, folder, _RECORD, self._has_record(folder), compute, needs)

    def _folder(self, task: _Task, name: str, method: Method, seed: int) -> epath.Path:
        return self.cells.folder(self.cells.cell(task.request, method, seed), slug(task.word), name)

    def _has_record(self, folder: epath.Path) -> Callable[[], bool]:
        path = self._record(folder)
        return lambda: path.is_file() and read_record(path, CELL) is not None

    def _record(self, folder: epath.Path) -> epath.Path:
        """What an audit of this level finds against so many retrained models."""
        level = "" if self.comparison.audit == "answers" else f"-{self.comparison.audit}"
        return folder / f"audit-{self.comparison.retrained}{level}.json"

    def _references(self, task: _Task, seed: int) -> References:
        """The original and the retrained models; those that were asked for last are kept in memory."""
        if self._looked_at is None or self._looked_at[:2] != (task, seed):
            experiment = self.cells.experiment(task.request, Retrain(), seed)
            run = self.cells.prepare(experiment, slug(task.word), "retrained")
            self._looked_at = task, seed, References(run, self.comparison.audit)
        return self._looked_at[2]

    def _cell(self, task: _Task, name: str, method: Method, seed: int) -> dict[str, Any]:
        """One method on one request from one original: its metrics, cost and stop."""
        experiment, references = self.cells.experiment(task.request, method, seed), self._references(task, seed)
        place = (slug(task.word), name)

        def audit() -> dict[str, Any]:
            run = self.cells.prepare(experiment, *place)
            original, unlearned = run.original(), run.unlearned()
            record = unlearned.metadata.record
            row, verdict = references.judged(unlearned)
            return {
                "row": row,
                "verdict": {"word": verdict.word, "faults": list(verdict.faults), "unchanged": verdict.unchanged},
                "cost": record["cost"],
                "stop": {"rule": record["stop_rule"], "step": record["step"], "reason": record["stop_reason"]},
                "course": record["checks"],
                "parameter_change": parameter_change(original.variables, unlearned.variables),
            }

        return kept_record(self._record(self.cells.folder(experiment, *place)), CELL, audit)


def prepare_comparison(
    comparison: Comparison,
    progress: Progress = silent,
    notify: Notify = lambda sentence: None,
    interruption: Interruption | None = None,
    *,
    source: Source | None = None,
    given: Mapping[str, Method] | None = None,
) -> ComparisonRun:
    """Reads the data and checks everything that can be checked before computing.

    A method that does not fit a request is left out of it, and the reason is shown. The arguments are those
    of `cujax.experiments.run.prepare`, and `given`: methods with their settings, which replace those that the comparison
    names.

    Raises:
        ValueError: if data, requests, methods and settings do not fit together.
        FileNotFoundError: if data, settings or a file of ids does not exist.
    """
    kinds = _kinds(comparison.methods)
    controls = {_control_name(share): RetrainShort(share) for share in comparison.controls}
    found = {}
    for name in comparison.settings:
        settings = read_settings(Path(name))
        if settings["request"] in found:
            raise ValueError(f"two files of settings are for {settings['request']}; give at most one file for each request.")
        found[settings["request"]] = settings
    if not comparison.requests:
        raise ValueError("there is no request to compare methods on; give --requests class:5, for example.")
    cells = Sweep(comparison, progress, notify, interruption or Interruption(), given_source=source)
    words = [request_in_words(cells.request(word)) for word in comparison.requests]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise ValueError(
            f"the requests {', '.join(comparison.requests)} name {', '.join(twice)} more than once; name it once."
        )
    unasked = sorted(found.keys() - set(words))
    if unasked:
        raise ValueError(
            f"settings are given for {', '.join(unasked)}, but the requests are {', '.join(words)}; leave out these "
            "settings, or add the requests."
        )
    tasks = [_task(word, cells, kinds, controls, given, found.get(word)) for word in words]
    if comparison.protocol is not None:
        classes = [task.word for task in tasks if task.split.is_class_task]
        if classes:
            raise ValueError(
                f"protocol gap4 is for samples, but {', '.join(classes)} names whole classes; leave one of them out."
            )
    return ComparisonRun(cells, comparison, tasks)


def _control_name(share: float) -> str:
    return f"retrain_short_{100 * share:g}"


def _kinds(words: Sequence[str]) -> dict[str, type[Method]]:
    """The methods that words such as "scrub" and "scrub@published" name, by word; all of them where there are none."""
    wrong = [word for word in words if "@" in word and word.partition("@")[2] not in _SETTINGS]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: @ must be followed by one of {', '.join(_SETTINGS)}.")
    return {word: kind for word in words or method_names() for kind in chosen_methods((word.partition("@")[0],)).values()}


def _with_settings(
    kinds: Mapping[str, type[Method]], request: str, task: Task, found: dict[str, Any] | None
) -> dict[str, Method]:
    """Each method with the settings that its word names, else those that were tuned, else its defaults."""
    chosen = found["methods"] if found else {}
    methods = {}
    for word, kind in kinds.items():
        name, _, which = word.partition("@")
        settings = _SETTINGS[which](kind, task) if which else chosen.get(name, {}).get("settings", {})
        if settings is None:
            raise ValueError(f"{word}: {name} has no reproduction for {request}; leave @{which} out, or tune it.")
        methods[word] = make_method(kind, name, settings)
    return methods


def _task(
    word: str,
    cells: Sweep,
    kinds: Mapping[str, type[Method]],
    controls: Mapping[str, Method],
    given: Mapping[str, Method] | None,
    found: dict[str, Any] | None,
) -> _Task:
    request = cells.request(word)
    split = cells.split(request)
    if found is not None and found["forget_digest"] != split.digest:
        raise ValueError(
            f"the settings for {word} were tuned for other samples (digest {found['forget_digest'][:12]}) than the request "
            f"selects here ({split.digest[:12]}); tune again on this data."
        )
    if given is None:
        given = _with_settings(kinds, word, split.task, found) | dict(controls)
    methods, left_out = {}, {}
    for name, method in given.items():
        try:
            cells.check_fits(method, split)
        except ValueError as reason:
            left_out[name] = str(reason)
            cells.notify(f"left out: {word}, {name}: {reason}")
            continue
        methods[name] = method
    if not methods:
        raise ValueError(f"no method fits {word}: {'; '.join(left_out.values())}")
    return _Task(word, request, split, methods, left_out, found)
