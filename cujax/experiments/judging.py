"""Compares the models of a split, and gives the verdict, with or without retrained models. Nothing here is stored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cujax.audit.evidence import Evidence
from cujax.audit.findings import MeasuredMetric
from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.key_metrics import key_metrics
from cujax.audit.metric import Metric, MetricContext
from cujax.audit.over_models import Topic
from cujax.audit.registry import all_metrics, answer_metrics
from cujax.audit.relearning import SHARE_TO_REGAIN
from cujax.audit.verdict import FEWEST_FOR_FAULTS, Figure, Verdict, judge
from cujax.audit.verdict_without_retrained import Alone, Probe, Share, judge_without_retrained
from cujax.experiments.case import Candidate, Case, Keep, keep_nothing
from cujax.experiments.change import is_unchanged
from cujax.experiments.look import Look
from cujax.failures import Failure, attempt
from cujax.training.predict import Predictions, accuracy, correct


@dataclass(frozen=True, eq=False)
class Comparison:
    """The results for the models of a split.

    Attributes:
        models: What is known about each: "original", "unlearned", "retrained", and in a class task "masked".
        context: The data from which metrics were computed.
        metrics: Every metric.
        verdict: The verdict based on them.
    """

    models: dict[str, list[Evidence]]
    context: MetricContext
    metrics: list[MeasuredMetric]
    verdict: Verdict


def compare_models(
    case: Case,
    original: Candidate,
    unlearned: Candidate,
    retrained: Sequence[Candidate],
    *,
    closely: bool,
    judged_only: bool = False,
    keep: Keep = keep_nothing,
) -> Comparison:
    """Inspects every model, measures, and judges.

    Args:
        case: The split, the network and the samples.
        original: The model before unlearning.
        unlearned: The model after unlearning.
        retrained: Models trained without the forget set; with fewer than 5, the verdict is that without retrained models.
        closely: Whether to compute the metrics that do not affect the verdict.
        judged_only: Whether to measure only what the verdict uses.
        keep: Returns stored results.
    """
    look = Look(case, target_of(case, original), original if closely else None, keep)
    few = len(retrained) < FEWEST_FOR_FAULTS
    with case.progress("looking into models", 2 + len(retrained) + few) as advance:

        def into(model: Candidate) -> Evidence:
            found = look.into(model)
            advance()
            return found

        models = {"original": [into(original)], "unlearned": [into(unlearned)]}
        models["retrained"] = [into(model) for model in retrained]
        untrained = look.untrained_probes() if few else {}
        advance(int(few))
    unchanged = is_unchanged(original.variables, unlearned.variables)
    return compare_evidence(case, models, untrained, unchanged=unchanged, judged_only=judged_only)


def target_of(case: Case, original: Candidate) -> float:
    """The forget accuracy at which a model counts as having relearned the forget set."""
    return SHARE_TO_REGAIN * accuracy(case.predictions(original, case.split.forget))


def compare_evidence(
    case: Case,
    models: dict[str, list[Evidence]],
    untrained: dict[str, list[float]],
    *,
    unchanged: bool,
    judged_only: bool,
) -> Comparison:
    """Measures and judges what was found of models.

    Args:
        case: The split, the network and the samples.
        models: The evidence: "original", "unlearned" and "retrained".
        untrained: What probes read from untrained networks, by depth; used with fewer than 5 retrained models.
        unchanged: Whether the parameters of the unlearned model are those of the original.
        judged_only: Whether to measure only what the verdict uses.
    """
    split = case.split
    if split.is_class_task:
        models = models | {"masked": [_masked(models["original"][0], split.forgotten_classes)]}
    context = MetricContext(split, models["original"][0], models["retrained"], case.has_label_noise)
    depths = list(context.original.probes)
    metrics = all_metrics(depths)
    if judged_only:
        judged = {metric.key for metric in key_metrics(context.task, _below_embedding(depths) or "hidden")}
        metrics = [metric for metric in metrics if metric.key in judged]
    found = []
    with case.progress("measuring", len(metrics)) as advance:
        for metric in metrics:
            found.append(measured(metric, context, models))
            advance()
    if len(models["retrained"]) < FEWEST_FOR_FAULTS:
        alone = _alone(models, context, untrained)
        verdict = judge_without_retrained(alone, context.task, unchanged=unchanged, n_retrained=len(models["retrained"]))
    else:
        verdict = _judge(found, context, unchanged=unchanged)
        by_key = {judged.metric.key: judged for judged in verdict.metrics}
        found = [replace(metric, judged=by_key.get(metric.key)) for metric in found]
    return Comparison(models, context, found, verdict)


def verdict_without_retrained(case: Case, original: Candidate, unlearned: Candidate) -> Verdict:
    """The verdict without retrained models, based only on answers and probes."""
    look = Look(case, target=0.0)
    with case.progress("looking into models", 3) as advance:
        models: dict[str, list[Evidence]] = {}
        for name, model in (("original", original), ("unlearned", unlearned)):
            models[name] = [look.at_answers_and_probes(model)]
            advance()
        untrained = look.untrained_probes()
        advance()
    context = MetricContext(case.split, models["original"][0], [], case.has_label_noise)
    unchanged = is_unchanged(original.variables, unlearned.variables)
    return judge_without_retrained(_alone(models, context, untrained), context.task, unchanged=unchanged)


def verdict_on_answers(context: MetricContext, unlearned: Evidence, *, unchanged: bool = False) -> Verdict:
    """The verdict on the answers of an unlearned model; its features and relearning are not examined.

    Args:
        context: The split, the original and retrained models.
        unlearned: The answers of the model.
        unchanged: Whether its parameters are the original's.
    """
    models = {"original": [context.original], "unlearned": [unlearned], "retrained": list(context.retrained)}
    if len(context.retrained) < FEWEST_FOR_FAULTS:
        alone, count = _alone(models, context, {}), len(context.retrained)
        return judge_without_retrained(alone, context.task, unchanged=unchanged, n_retrained=count)
    return _judge([measured(metric, context, models) for metric in all_metrics(())], context, unchanged=unchanged)


def _judge(measured: Sequence[MeasuredMetric], context: MetricContext, *, unchanged: bool) -> Verdict:
    """The verdict on the measurements; each retrained model is compared with the other retrained models."""
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
    """The depth one layer below the embedding, among depths from the input on; None if there is none."""
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
    """The AUC of the loss attack with its interval, with validation samples as held-out samples."""
    metric = next(metric for metric in answer_metrics() if metric.key == "mia_loss_auc")
    found = _value(metric, replace(context, clean_test_only=True), unlearned)
    if isinstance(found, str) or found.interval is None:
        return None
    try:
        return (found.value, *found.interval())
    except NotAvailable:
        return None


def measured(metric: Metric, context: MetricContext, models: dict[str, list[Evidence]]) -> MeasuredMetric:
    """A metric for every model."""
    values = {name: _value(metric, context, evidence[0]) for name, evidence in models.items() if name != "retrained"}
    retrained = [_value(metric, context, model) for model in context.retrained]
    known = [value for value in retrained if isinstance(value, Estimate)]
    topic = Topic(metric.key, metric.family, metric.heading, metric.question)
    return MeasuredMetric(*topic, values=values, retrained=known if len(known) == len(retrained) else [])


def _value(metric: Metric, context: MetricContext, model: Evidence) -> Estimate | str:
    """The value of a metric, or why there is none: an error in one metric does not affect others."""
    found = attempt(lambda: metric.compute(context, model), expected=(NotAvailable,))
    return found.reason if isinstance(found, Failure) else found


def _masked(original: Evidence, classes: Sequence[int]) -> Evidence:
    """The original with masked logits; everything beneath the mask is unchanged."""
    shares = None if original.shares_under_noise is None else np.zeros_like(original.shares_under_noise)
    return replace(original, answers=original.answers.masked(classes), shares_under_noise=shares)
