"""An audit of an unlearned model: inspects it, compares it with retrained models, and gives a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from etils import epath

from cujax.audit.evidence import Evidence
from cujax.audit.findings import Findings, MeasuredMetric
from cujax.audit.likelihood import LikelihoodAttack
from cujax.audit.metric import MetricContext
from cujax.audit.over_models import TOPICS, Topic, measure_over_models
from cujax.audit.registry import all_metrics
from cujax.audit.verdict import FEWEST_FOR_NO_TRACE
from cujax.experiments.judging import compare_models
from cujax.experiments.judging import measured as measure
from cujax.experiments.look import kept_in
from cujax.experiments.reference_models import ReferenceModels
from cujax.experiments.run import Run, candidate_of
from cujax.methods.base import Method
from cujax.methods.registry import find_method, make_method, method_names
from cujax.storage.checkpoints import Checkpoint
from cujax.training.predict import accuracy
from cujax.training.supervised import Training

LevelName = Literal["quick", "standard", "full"]


class Level(NamedTuple):
    """How much an audit computes: the number of models it compares the unlearned model with."""

    retrained: int
    shadows: int


LEVELS: dict[str, Level] = {"quick": Level(0, 0), "standard": Level(FEWEST_FOR_NO_TRACE, 0), "full": Level(16, 16)}


DEFAULT_ROOT = epath.Path("runs/oracles")


@dataclass
class Audit:
    """An audit that is ready to compute.

    Attributes:
        run: The run whose split is audited.
        level: "quick", "standard" or "full".
        root: Folder of the retrained models that all audits of a split share. None: the run's own retrained models are
            used, however many there are, and results are stored in its folder.
        judged_only: Whether to measure only what the verdict uses, for calibrations.
    """

    run: Run
    level: str
    root: epath.Path | None = None
    judged_only: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level {self.level!r} does not exist; choose one of {', '.join(get_args(LevelName))}.")
        if self.level == "full" and self.root is None:
            raise ValueError("level full needs a folder for shadow models: give root, or choose level standard.")

    @classmethod
    def asked_for(cls, run: Run) -> Self | None:
        """The audit that an experiment requests at its end, or None."""
        level = run.experiment.audit
        return None if level == "none" else cls(run, level, DEFAULT_ROOT if level == "full" else None)

    @cached_property
    def references(self) -> ReferenceModels:
        """The shared models of the split."""
        assert self.root is not None
        return ReferenceModels(self.run, self.root)

    @property
    def takes_own(self) -> bool:
        """Whether the unlearned model is compared with the run's own retrained models."""
        return self.root is None or self.level == "quick"

    def retrained(self) -> list[Checkpoint]:
        """The models that the unlearned one is compared with."""
        return self.run.retrained() if self.takes_own else self.references.retrained(LEVELS[self.level].retrained)

    def findings(self, original: Checkpoint, unlearned: Checkpoint, method: Method | None) -> Findings:
        """Computes everything.

        Args:
            original: The model before unlearning.
            unlearned: The model after unlearning.
            method: The method that made it, to be run on shadow models; None if unknown.
        """
        self._notify_estimate(original, unlearned)
        checkpoints = self.retrained()
        compared = compare_models(
            self.run.case,
            candidate_of(original),
            candidate_of(unlearned),
            list(map(candidate_of, checkpoints)),
            closely=self.level != "quick" and not self.judged_only,
            judged_only=self.judged_only,
            keep=kept_in(self.run.workdir if self.takes_own else self.references.directory),
        )
        models, measured, verdict = compared.models, compared.metrics, compared.verdict
        shadows = LEVELS[self.level].shadows
        likelihood: dict[str, LikelihoodAttack] = {}
        if shadows:
            more, likelihood = self._over_models(method, shadows, checkpoints, models, compared.context)
            measured += more
        else:
            measured += [_absent(topic, "this needs shadow models: --level full") for topic in TOPICS]
        earlier = self._earlier(original, unlearned, checkpoints, models)
        seconds = original.metadata.record.get("cost", {}).get("seconds")
        missing = max(FEWEST_FOR_NO_TRACE - len(checkpoints), 0)
        return Findings(
            self.level,
            measured,
            verdict,
            models,
            likelihood,
            shadows,
            earlier,
            missing * seconds if missing and seconds else None,
        )

    def _earlier(
        self,
        original: Checkpoint,
        unlearned: Checkpoint,
        retrained: Sequence[Checkpoint],
        models: dict[str, list[Evidence]],
    ) -> list[tuple[str, list[MeasuredMetric]]]:
        """What the answers on the samples of each earlier request show."""
        run, found = self.run, []
        for request, part in run.earlier_requests():
            split = replace(run.split, forget=part, forgotten_classes=())

            def again(checkpoint: Checkpoint, evidence: Evidence, part: Any = part) -> Evidence:
                return Evidence(replace(evidence.answers, forget=run.predictions(checkpoint, part)))

            looked = {
                "original": [again(original, models["original"][0])],
                "unlearned": [again(unlearned, models["unlearned"][0])],
                "retrained": list(map(again, retrained, models["retrained"])),
            }
            context = MetricContext(split, looked["original"][0], looked["retrained"], bool(run.source.redrawn_ids))
            metrics = [metric for metric in all_metrics(()) if metric.asked_again]
            found.append((request.request, [measure(metric, context, looked) for metric in metrics]))
        return found

    def _notify_estimate(self, original: Checkpoint, unlearned: Checkpoint) -> None:
        """Estimates how long the audit will take: training from the original's time, the rest from inspecting it once."""
        if self.takes_own:
            return
        retrained, shadows = LEVELS[self.level]
        missing = self.references.missing(retrained=retrained, shadows=shadows)
        training = original.metadata.record.get("cost", {}).get("seconds")
        unlearning = unlearned.metadata.record.get("cost", {}).get("seconds")
        models = f"{missing} models to train" if missing else "all models for the comparison exist"
        if missing and training is None:
            self.run.notify(
                f"{models}; how long this takes is unknown, since the original does not record its training time. Completed "
                "work is kept."
            )
            return
        seconds = missing * (training or 0.0) + shadows * (unlearning or 0.0)
        each = f", about {training:.0f} s each" if missing else ""
        also = f", {shadows} to unlearn" if shadows else ""
        time = f"about {seconds / 60:.0f} minutes" if seconds >= 60 else "less than a minute"
        self.run.notify(
            f"{models}{each}{also}: {time}, and some seconds to inspect each model. Completed work is kept: an interrupted "
            "audit resumes from there."
        )

    def _over_models(
        self,
        method: Method | None,
        count: int,
        retrained: Sequence[Checkpoint],
        models: dict[str, list[Evidence]],
        context: MetricContext,
    ) -> tuple[list[MeasuredMetric], dict[str, LikelihoodAttack]]:
        """The measurements of the method over many models: likelihood ratios, ε and KLOM."""
        if method is None:
            reason = "the method is not known, so it cannot be run on shadow models"
            return [_absent(topic, reason) for topic in TOPICS], {}
        references = self.references
        with self.run.progress("unlearning shadows", 1) as advance:
            unlearned = references.unlearned_shadows(method, count)
            advance()
        found = measure_over_models(
            {
                "original": references.forget_log_odds(references.shadows(count)),
                "unlearned": references.forget_log_odds(unlearned),
            },
            references.forget_log_odds(retrained),
            references.members(count),
            _utility(models, context),
        )
        measured = [
            MeasuredMetric(*topic, values=found.values[topic.key], retrained=found.floors[topic.key]) for topic in TOPICS
        ]
        return measured, found.attacks


def _utility(models: dict[str, list[Evidence]], context: MetricContext) -> dict[str, float]:
    """Retain accuracy times test accuracy on the retained classes, over retrained models' mean."""

    def both(evidence: Evidence) -> float:
        test = context.test_rows(evidence.answers, of_forgotten=False)
        return accuracy(evidence.answers.retain) * accuracy(test)

    reference = float(np.mean([both(reference) for reference in models["retrained"]]))
    return {name: both(models[name][0]) / reference for name in ("original", "unlearned")}


def _absent(topic: Topic, reason: str) -> MeasuredMetric:
    return MeasuredMetric(*topic, values=dict.fromkeys(("original", "unlearned"), reason), retrained=[])


def method_of(checkpoint: Checkpoint) -> Method | None:
    """The method that made an unlearned checkpoint, with its settings; None if unknown."""
    described = checkpoint.metadata.config.get("method")
    if not isinstance(described, dict):
        return None
    for name in method_names():
        kind = find_method(name)
        if getattr(kind, "__name__", "") == described.get("type") == checkpoint.metadata.method:
            settings = {key: _restored(value) for key, value in described.items() if key != "type"}
            try:
                return make_method(kind, name, settings)
            except ValueError:
                return None
    return None


def _restored(value: Any) -> Any:
    """A setting from plain data: lists were tuples, and the recipe of retraining is a dataclass."""
    if isinstance(value, list):
        return tuple(map(_restored, value))
    if isinstance(value, dict) and value.get("type") == Training.__name__:
        known = {item.name for item in fields(Training)}
        return Training(**{key: setting for key, setting in value.items() if key in known})
    return value
