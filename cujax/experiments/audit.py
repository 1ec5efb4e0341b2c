"""An audit of an unlearned model: it is looked into, compared with retrained models, and a verdict is given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from etils import epath

from cujax.audit.evidence import Evidence
from cujax.audit.findings import Findings, MeasuredMetric
from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.key_metrics import key_metrics
from cujax.audit.likelihood import LikelihoodAttack
from cujax.audit.metric import Metric, MetricContext
from cujax.audit.over_models import TOPICS, Topic, measure_over_models
from cujax.audit.registry import all_metrics, answer_metrics
from cujax.audit.relearning import SHARE_TO_REGAIN
from cujax.audit.verdict import FEWEST_FOR_FAULTS, FEWEST_FOR_NO_TRACE, Figure, Verdict, judge
from cujax.audit.verdict_without_retrained import Alone, Probe, Share, judge_without_retrained
from cujax.experiments.change import is_unchanged
from cujax.experiments.look import Look
from cujax.experiments.reference_models import ReferenceModels
from cujax.experiments.run import Run
from cujax.failures import Failure, attempt
from cujax.methods.base import Method
from cujax.methods.registry import find_method, make_method, method_names
from cujax.storage.checkpoints import Checkpoint
from cujax.training.predict import Predictions, accuracy, correct
from cujax.training.supervised import Training

LevelName = Literal["quick", "standard", "full"]


class Level(NamedTuple):
    """How much an audit computes: how many models it compares the unlearned one with."""

    retrained: int
    shadows: int


LEVELS: dict[str, Level] = {"quick": Level(0, 0), "standard": Level(FEWEST_FOR_NO_TRACE, 0), "full": Level(16, 16)}


DEFAULT_ROOT = epath.Path("runs/oracles")


@dataclass
class Audit:
    """An audit that is ready to compute.

    Attributes:
        run: Whose split it is about.
        level: "quick", "standard" or "full".
        root: Where retrained models lie that all audits of a split share. None: the run's own retrained models are taken,
            however many it has, and what is found is kept in its folder.
        judged_only: Whether only what the verdict reads is measured: for calibrations.
    """

    run: Run
    level: str
    root: epath.Path | None = None
    judged_only: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level {self.level!r} does not exist; choose one of {', '.join(get_args(LevelName))}.")
        if self.level == "full" and self.root is None:
            raise ValueError("level full needs a folder for shadow models.")

    @classmethod
    def asked_for(cls, run: Run) -> Self | None:
        """The audit that an experiment asks for at its end; None for none."""
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
            original: The model before.
            unlearned: The model after.
            method: What made it, to be run on shadow models; None where it is not known.
        """
        split, run = self.run.split, self.run
        self._notify_estimate(original, unlearned)
        target = SHARE_TO_REGAIN * accuracy(run.predictions(original, split.forget))
        checkpoints = self.retrained()
        home = run.workdir if self.takes_own else self.references.directory
        look = Look(run, home, target, None if self.level == "quick" or self.judged_only else original)
        few = len(checkpoints) < FEWEST_FOR_FAULTS
        with run.progress("looking into models", 2 + len(checkpoints) + few) as advance:

            def into(checkpoint: Checkpoint) -> Evidence:
                found = look.into(checkpoint)
                advance()
                return found

            models = {"original": [into(original)], "unlearned": [into(unlearned)]}
            models["retrained"] = [into(checkpoint) for checkpoint in checkpoints]
            untrained = look.untrained_probes() if few else {}
            advance(int(few))
        if split.is_class_task:
            models["masked"] = [_masked(models["original"][0], split.forgotten_classes)]
        context = MetricContext(split, models["original"][0], models["retrained"], bool(run.source.redrawn_ids))
        depths = list(context.original.probes)
        metrics = all_metrics(depths)
        if self.judged_only:
            judged = {metric.key for metric in key_metrics(context.task, _below_embedding(depths) or "hidden")}
            metrics = [metric for metric in metrics if metric.key in judged]
        with run.progress("measuring", len(metrics)) as advance:
            measured = []
            for metric in metrics:
                measured.append(_measured(metric, context, models))
                advance()
        unchanged = is_unchanged(original.variables, unlearned.variables)
        if few:
            alone = _alone(models, context, untrained)
            verdict = judge_without_retrained(alone, context.task, unchanged=unchanged, n_retrained=len(checkpoints))
        else:
            verdict = _judge(measured, context, unchanged=unchanged)
            by_key = {judged.metric.key: judged for judged in verdict.metrics}
            measured = [replace(metric, judged=by_key.get(metric.key)) for metric in measured]
        shadows = LEVELS[self.level].shadows
        likelihood: dict[str, LikelihoodAttack] = {}
        if shadows:
            more, likelihood = self._over_models(method, shadows, checkpoints, models, context)
            measured += more
        else:
            measured += [_absent(topic, "it takes shadow models: --level full") for topic in TOPICS]
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
        """What the answers on the samples of each earlier request show: whether they are still forgotten."""
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
            found.append((request.request, [_measured(metric, context, looked) for metric in metrics]))
        return found

    def _notify_estimate(self, original: Checkpoint, unlearned: Checkpoint) -> None:
        """How long the audit will take: training from what the original took, the rest from a look into it."""
        if self.takes_own:
            return
        retrained, shadows = LEVELS[self.level]
        missing = self.references.missing(retrained=retrained, shadows=shadows)
        training = original.metadata.record.get("cost", {}).get("seconds")
        unlearning = unlearned.metadata.record.get("cost", {}).get("seconds")
        models = f"{missing} models to train" if missing else "all models to compare with are there"
        if missing and training is None:
            self.run.notify(f"{models}; how long that takes is not recorded in the original. What is complete is kept.")
            return
        seconds = missing * (training or 0.0) + shadows * (unlearning or 0.0)
        each = f", about {training:.0f} s each" if missing else ""
        also = f", {shadows} to unlearn" if shadows else ""
        time = f"about {seconds / 60:.0f} minutes" if seconds >= 60 else "less than a minute"
        self.run.notify(
            f"{models}{each}{also}: {time}, and some seconds a model to look into it. What is "
            "complete is kept: an interrupted audit goes on from there."
        )

    def _over_models(
        self,
        method: Method | None,
        count: int,
        retrained: Sequence[Checkpoint],
        models: dict[str, list[Evidence]],
        context: MetricContext,
    ) -> tuple[list[MeasuredMetric], dict[str, LikelihoodAttack]]:
        """What is measured of the method over many models: likelihood ratios, ε and KLOM."""
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


def verdict_on_answers(context: MetricContext, unlearned: Evidence, *, unchanged: bool = False) -> Verdict:
    """The verdict that the answers of an unlearned model carry; its features and relearning are not looked at.

    Args:
        context: The split, the original and retrained models.
        unlearned: The answers of the model.
        unchanged: Whether its parameters are the original's.
    """
    models = {"original": [context.original], "unlearned": [unlearned], "retrained": list(context.retrained)}
    if len(context.retrained) < FEWEST_FOR_FAULTS:
        alone, count = _alone(models, context, {}), len(context.retrained)
        return judge_without_retrained(alone, context.task, unchanged=unchanged, n_retrained=count)
    return _judge([_measured(metric, context, models) for metric in all_metrics(())], context, unchanged=unchanged)


def _judge(measured: Sequence[MeasuredMetric], context: MetricContext, *, unchanged: bool) -> Verdict:
    """The verdict on what was measured; retrained models are compared with the others."""
    by_key = {metric.key: metric for metric in measured}
    probed = [key.removeprefix("probe_") for key in by_key if key.startswith("probe_")]
    table = key_metrics(context.task, _below_embedding(probed) or "hidden")
    figures: dict[str, Figure | str] = {}
    for key in (metric.key for metric in table):
        if key not in by_key:
            figures[key] = "was not measured"
            continue
        found = by_key[key]
        unlearned, original = found.values["unlearned"], found.values["original"]
        if isinstance(unlearned, str):
            figures[key] = unlearned
        elif len(found.retrained) < len(context.retrained):
            figures[key] = "a retrained model has no value"
        else:
            before = None if isinstance(original, str) else original.value
            values = [estimate.value for estimate in found.retrained]
            figures[key] = Figure(unlearned=unlearned.value, original=before, retrained=values, n=unlearned.n)
    headings = {key: metric.heading for key, metric in by_key.items()}
    return judge(figures, context.task, unchanged=unchanged, metrics=table, headings=headings)


def _below_embedding(depths: Iterable[str]) -> str | None:
    """The depth one layer below the embedding, of depths from the input on; None where there is none."""
    return next(reversed([depth for depth in depths if depth != "z"]), None)


def _alone(models: dict[str, list[Evidence]], context: MetricContext, untrained: dict[str, list[float]]) -> Alone:
    """What is known without retrained models."""
    original, unlearned = models["original"][0], models["unlearned"][0]

    def share(right: np.ndarray) -> Share:
        return Share(float(np.mean(right)), len(right))

    def share_correct(rows: Predictions) -> Share | None:
        return share(correct(rows)) if len(rows.labels) else None

    def forgotten(model: Evidence) -> Predictions:
        rows = model.answers.test.take(np.isin(model.answers.test.labels, context.split.forgotten_classes))
        return rows if context.split.is_class_task and len(rows.labels) else model.answers.forget

    def retained(model: Evidence) -> Predictions:
        rows = model.answers.validation
        return rows.take(~np.isin(rows.labels, context.split.absent_classes))

    validation = unlearned.answers.validation
    held_out = validation.take(np.isin(validation.labels, unlearned.answers.forget.labels))
    decisive = (_below_embedding(unlearned.probes), "z")
    probes = {
        depth: Probe(
            unlearned=share(right),
            original=share(original.probes[depth]),
            untrained=untrained.get(depth, ()),
        )
        for depth, right in unlearned.probes.items()
        if depth in decisive
    }
    return Alone(
        forget_before=share_correct(forgotten(original)),
        forget_after=share_correct(forgotten(unlearned)),
        held_out_after=share_correct(held_out),
        loss_auc=_loss_area(context, unlearned),
        probes=probes,
        retain_before=share_correct(retained(original)),
        retain_after=share_correct(retained(unlearned)),
    )


def _loss_area(context: MetricContext, unlearned: Evidence) -> tuple[float, float, float] | None:
    """The AUC of the loss attack with its interval, held-out samples being validation samples."""
    metric = next(metric for metric in answer_metrics() if metric.key == "mia_loss_auc")
    found = _value(metric, replace(context, clean_test_only=True), unlearned)
    if isinstance(found, str) or found.interval is None:
        return None
    try:
        return (found.value, *found.interval())
    except NotAvailable:
        return None


def _utility(models: dict[str, list[Evidence]], context: MetricContext) -> dict[str, float]:
    """Retain accuracy times test accuracy on the retained classes, over retrained models' mean."""

    def both(evidence: Evidence) -> float:
        test = context.test_rows(evidence.answers, of_forgotten=False)
        return accuracy(evidence.answers.retain) * accuracy(test)

    reference = float(np.mean([both(reference) for reference in models["retrained"]]))
    return {name: both(models[name][0]) / reference for name in ("original", "unlearned")}


def _measured(metric: Metric, context: MetricContext, models: dict[str, list[Evidence]]) -> MeasuredMetric:
    values = {name: _value(metric, context, evidence[0]) for name, evidence in models.items() if name != "retrained"}
    retrained = [_value(metric, context, model) for model in context.retrained]
    known = [value for value in retrained if isinstance(value, Estimate)]
    topic = Topic(metric.key, metric.family, metric.heading, metric.question)
    return MeasuredMetric(*topic, values=values, retrained=known if len(known) == len(retrained) else [])


def _value(metric: Metric, context: MetricContext, model: Evidence) -> Estimate | str:
    """The value of a metric, or why there is none: an error in one metric costs no other."""
    found = attempt(lambda: metric.compute(context, model), expected=(NotAvailable,))
    return found.reason if isinstance(found, Failure) else found


def _absent(topic: Topic, reason: str) -> MeasuredMetric:
    return MeasuredMetric(*topic, values=dict.fromkeys(("original", "unlearned"), reason), retrained=[])


def _masked(original: Evidence, classes: Sequence[int]) -> Evidence:
    """The original with masked logits: what lies beneath the mask is as it was."""
    assert original.shares_under_noise is not None
    shares = np.zeros_like(original.shares_under_noise)
    return replace(original, answers=original.answers.masked(classes), shares_under_noise=shares)


def method_of(checkpoint: Checkpoint) -> Method | None:
    """The method that made an unlearned checkpoint, with its settings; None where that cannot be told."""
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
