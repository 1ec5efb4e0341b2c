"""An audit of an unlearned model: it is looked into, held against retrained models, and every figure is judged."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cujax.audit.evidence import Evidence, Relearning
from cujax.audit.findings import Findings, JudgedMetric
from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.likelihood import LikelihoodAttack
from cujax.audit.metric import Metric, MetricContext
from cujax.audit.over_models import TOPICS, Topic, measure_over_models
from cujax.audit.registry import all_metrics
from cujax.audit.relearning import SHARE_TO_REGAIN, relearn
from cujax.audit.representation import divide_for_probes, linear_probe, nearest_class_mean
from cujax.audit.residual import share_correct_under_noise
from cujax.audit.verdict import FEWEST_RETRAINED, Verdict, judge
from cujax.data.requests import Part
from cujax.experiments.identity import digest_of
from cujax.experiments.reference_models import ReferenceModels
from cujax.experiments.run import Run
from cujax.methods.base import Method
from cujax.methods.registry import find_method, make_method, method_names
from cujax.storage.checkpoints import Checkpoint
from cujax.storage.records import Kind, kept_record
from cujax.training.predict import Predictions, accuracy, predict

_PROBE_SAMPLES, _REFERENCE_SAMPLES, _HELD_OUT_SAMPLES, _NOISY_SAMPLES = 4000, 1000, 1000, 200
_NOISE, _DRAWS = 0.3, 20
# Raise the last number when the same model would give other values.
EVIDENCE = Kind("evidence", schema=2, computed_by=2)


# What is measured again of the samples of earlier requests.
_ASKED_AGAIN = (
    "forget_train_accuracy",
    "mia_loss_auc",
    "mia_confidence",
    "js_to_retrained",
    "activation_distance",
    "agreement",
)


class Level(NamedTuple):
    """How much an audit computes: how many models it holds the unlearned one against."""

    retrained: int
    shadows: int


LEVELS = {"quick": Level(1, 0), "standard": Level(5, 0), "full": Level(16, 16)}


@dataclass
class Audit:
    """An audit that is ready to compute.

    Attributes:
        run: Whose split it is about.
        level: "quick", "standard" or "full".
        root: Where retrained models are kept.
    """

    run: Run
    level: str
    root: epath.Path

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level {self.level!r} does not exist; choose one of {', '.join(LEVELS)}.")

    @cached_property
    def references(self) -> ReferenceModels:
        """The shared models of the split."""
        return ReferenceModels(self.run, self.root)

    def retrained(self) -> list[Checkpoint]:
        """The retrained models: the run's own at level quick, else those that all audits of the split share."""
        count, _ = LEVELS[self.level]
        return self.run.retrained() if self.level == "quick" else self.references.retrained(count)

    def findings(self, original: Checkpoint, unlearned: Checkpoint, method: Method | None) -> Findings:
        """Computes everything.

        Args:
            original: The model before.
            unlearned: The model after.
            method: What made it, to be run on shadow models; None where it is not known.
        """
        split = self.run.split
        self._tell_estimate(original, unlearned)
        target = SHARE_TO_REGAIN * accuracy(self.run.predictions(original, split.forget))
        checkpoints = self.retrained()
        with self.run.progress("looking into models", 2 + len(checkpoints)) as advance:

            def look(checkpoint: Checkpoint) -> Evidence:
                found = self.look(checkpoint, target)
                advance()
                return found

            models = {"original": [look(original)], "unlearned": [look(unlearned)]}
            models["retrained"] = [look(checkpoint) for checkpoint in checkpoints]
        if split.is_class_task:
            models["masked"] = [_masked(models["original"][0], split.forgotten_classes)]
        context = MetricContext(split, models["original"][0], models["retrained"], bool(self.run.source.redrawn_ids))
        metrics = all_metrics(list(context.original.probes))
        with self.run.progress("measuring", len(metrics)) as advance:
            judged, alarms = [], []
            for metric in metrics:
                judged.append(_judged(metric, context, models))
                alarms += _alarms(judged[-1])
                advance()
        shadows = LEVELS[self.level].shadows
        likelihood: dict[str, LikelihoodAttack] = {}
        if shadows:
            more, likelihood = self._over_models(method, shadows, checkpoints, models)
            judged += more
        else:
            judged += [_absent(topic, "it takes shadow models: --level full") for topic in TOPICS]
        earlier = self._earlier(original, unlearned, checkpoints, models)
        return Findings(self.level, judged, models, likelihood, (sum(alarms), len(alarms)), shadows, earlier)

    def _earlier(
        self,
        original: Checkpoint,
        unlearned: Checkpoint,
        retrained: Sequence[Checkpoint],
        models: dict[str, list[Evidence]],
    ) -> dict[str, list[JudgedMetric]]:
        """What the answers on the samples of each earlier request show: whether they are still forgotten."""
        run, found = self.run, {}
        for request, part in run.earlier_requests():
            split = replace(run.split, forget=part, forgotten_classes=())

            def again(checkpoint: Checkpoint, evidence: Evidence, part: Part = part) -> Evidence:
                return Evidence(replace(evidence.answers, forget=run.predictions(checkpoint, part)))

            looked = {
                "original": [again(original, models["original"][0])],
                "unlearned": [again(unlearned, models["unlearned"][0])],
                "retrained": list(map(again, retrained, models["retrained"])),
            }
            context = MetricContext(split, looked["original"][0], looked["retrained"], bool(run.source.redrawn_ids))
            metrics = [metric for metric in all_metrics(()) if metric.key in _ASKED_AGAIN]
            found[request.request] = [_judged(metric, context, looked) for metric in metrics]
        return found

    @cached_property
    def rows(self) -> "_Rows":
        """Which images a look into a model reads."""
        return _Rows.of(self.run)

    def look(self, checkpoint: Checkpoint, target: float) -> Evidence:
        """What is known of one model; what takes time is kept beside the retrained models.

        Args:
            checkpoint: The model.
            target: The forget accuracy at which it counts as learned again.
        """
        masked = checkpoint.metadata.record.get("masked_classes", ())
        kept = self._kept(checkpoint, target)
        shares = np.array(kept["shares_under_noise"])
        shares[np.isin(self.run.source.train.labels[self.rows.noisy], masked)] = 0.0
        return Evidence(
            self.run.answers(checkpoint),
            features=self._predict(checkpoint, self.rows.reference, train=False).features,
            probes={depth: np.array(right, bool) for depth, right in kept["probes"].items()},
            nearest_mean=np.array(kept["nearest_mean"], bool),
            relearning=Relearning(**kept["relearning"]),
            shares_under_noise=shares,
        )

    def _deep(self, checkpoint: Checkpoint, target: float) -> dict[str, Any]:
        """Probes, relearning and noise, as plain data."""
        run, rows, variables = self.run, self.rows, checkpoint.variables
        images, model = run.train_images, run.model
        learned = self._predict(checkpoint, rows.probe, train=True)
        held_out = [self._predict(checkpoint, rows.forgotten, train=True)]
        if len(rows.held_out):
            held_out.append(self._predict(checkpoint, rows.held_out, train=False))
        labels = np.concatenate([part.labels for part in held_out])
        known, asked = learned.features, [part.features for part in held_out]
        key = jax.random.key(0)
        shares = share_correct_under_noise(model, variables, images, rows.noisy, norm=_NOISE, draws=_DRAWS, key=key)

        def readable(read: Callable[..., np.ndarray], depth: str) -> list[bool]:
            return read(known[depth], learned.labels, np.concatenate([part[depth] for part in asked]), labels).tolist()

        return {
            "probes": {depth: readable(linear_probe, depth) for depth in known},
            "nearest_mean": readable(nearest_class_mean, "z"),
            "relearning": asdict(relearn(model, variables, images, run.split.forget.indices, target)),
            "shares_under_noise": shares.tolist(),
        }

    def _kept(self, checkpoint: Checkpoint, target: float) -> dict[str, Any]:
        """What an earlier audit found out about a model, or finds now; kept beside what it was held against."""
        asked = {"model": checkpoint.digest, "rows": self.rows.described(), "target": target, "noise": [_NOISE, _DRAWS]}
        home = self.run.workdir if self.level == "quick" else self.references.directory
        return kept_record(
            home / "evidence" / f"{digest_of(asked)[:20]}.json", EVIDENCE, lambda: self._deep(checkpoint, target)
        )

    def _predict(self, checkpoint: Checkpoint, rows: np.ndarray, *, train: bool) -> Predictions:
        images = self.run.train_images if train else self.run.test_images
        return predict(self.run.model, checkpoint.variables, images, rows, taps=True)

    def _tell_estimate(self, original: Checkpoint, unlearned: Checkpoint) -> None:
        """How long the audit will take: training from what the original took, the rest from a look into it."""
        if self.level == "quick":
            return
        retrained, shadows = LEVELS[self.level]
        missing = self.references.missing(retrained=retrained, shadows=shadows)
        training = original.metadata.record.get("cost", {}).get("seconds")
        unlearning = unlearned.metadata.record.get("cost", {}).get("seconds")
        models = f"{missing} models to train" if missing else "all models it is held against are there"
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
        self, method: Method | None, count: int, retrained: Sequence[Checkpoint], models: dict[str, list[Evidence]]
    ) -> tuple[list[JudgedMetric], dict[str, LikelihoodAttack]]:
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
            _utility(models),
        )
        judged = [_verdict_on(topic, found.figures[topic.key], found.floors[topic.key]) for topic in TOPICS]
        return judged, found.attacks


def _utility(models: dict[str, list[Evidence]]) -> dict[str, float]:
    """Retain accuracy times test accuracy, over retrained models' means."""

    def both(evidence: Evidence) -> float:
        return accuracy(evidence.answers.retain) * accuracy(evidence.answers.test)

    reference = float(np.mean([both(reference) for reference in models["retrained"]]))
    return {name: both(models[name][0]) / reference for name in ("original", "unlearned")}


def _judged(metric: Metric, context: MetricContext, models: dict[str, list[Evidence]]) -> JudgedMetric:
    topic = Topic(metric.key, metric.family, metric.heading, metric.question)
    figures = {name: _figure(metric, context, evidence[0]) for name, evidence in models.items() if name != "retrained"}
    retrained = [_figure(metric, context, reference) for reference in context.retrained]
    found = [figure for figure in retrained if isinstance(figure, Estimate)]
    if isinstance(figures["unlearned"], Estimate) and len(found) < len(retrained):
        reason = next(figure for figure in retrained if isinstance(figure, str))
        return JudgedMetric(*topic, figures, [], Verdict("not judged", reason=f"retrained models: {reason}"))
    return _verdict_on(topic, figures, found)


def _figure(metric: Metric, context: MetricContext, model: Evidence) -> Estimate | str:
    try:
        return metric.compute(context, model)
    except NotAvailable as reason:
        return str(reason)


def _verdict_on(topic: Topic, figures: dict[str, Estimate | str], references: list[Estimate]) -> JudgedMetric:
    unlearned = figures["unlearned"]
    if isinstance(unlearned, str):
        return JudgedMetric(*topic, figures, references, Verdict("not judged", reason=unlearned))
    return JudgedMetric(*topic, figures, references, judge(unlearned, references))


def _absent(topic: Topic, reason: str) -> JudgedMetric:
    figures: dict[str, Estimate | str] = dict.fromkeys(("original", "unlearned"), reason)
    return JudgedMetric(*topic, figures, [], Verdict("not judged", reason=reason))


def _alarms(judged: JudgedMetric) -> list[bool]:
    """Whether each retrained model lies outside of the others' range, where the metric is judged at all."""
    references = judged.retrained
    if judged.verdict.word == "not judged":
        return []
    return [
        judge(reference, [other for other in references if other is not reference], FEWEST_RETRAINED - 1).word != "within"
        for reference in references
    ]


def _masked(original: Evidence, classes: Sequence[int]) -> Evidence:
    """The original with masked logits: what lies beneath the mask is as it was."""
    assert original.shares_under_noise is not None
    shares = np.zeros_like(original.shares_under_noise)
    return replace(original, answers=original.answers.masked(classes), shares_under_noise=shares)


def method_of(checkpoint: Checkpoint) -> Method | None:
    """The method that made an unlearned checkpoint, with its settings; None where that cannot be told."""
    described = dict(checkpoint.metadata.config.get("method", {}))
    name = described.pop("type", None)
    for kind in map(find_method, method_names()):
        if kind.__name__ == name and name == checkpoint.metadata.method:
            settings = {key: tuple(value) if isinstance(value, list) else value for key, value in described.items()}
            try:
                return make_method(kind, name, settings)
            except ValueError:
                return None
    return None


class _Rows(NamedTuple):
    """Which images a look into a model reads: the same for every model.

    Attributes:
        probe: Training images that probes learn from: of the retain set, and in a class task half of the forget set.
        forgotten: What probes are asked about: in a class task the other half of the forget set, in a sample task all of it.
        held_out: What they are asked about besides: in a class task test images of the forgotten classes.
        reference: Test images on which features are compared.
        noisy: Forget images that noise is added to.
    """

    probe: np.ndarray
    forgotten: np.ndarray
    held_out: np.ndarray
    reference: np.ndarray
    noisy: np.ndarray

    @classmethod
    def of(cls, run: Run) -> "_Rows":
        split, source = run.split, run.source
        rng = np.random.default_rng(0)

        def some(rows: np.ndarray, count: int) -> np.ndarray:
            return np.sort(rng.choice(rows, size=min(count, len(rows)), replace=False))

        known, forgotten = divide_for_probes(split, rng)
        test = split.test.indices
        return cls(
            some(known, _PROBE_SAMPLES),
            some(forgotten, _HELD_OUT_SAMPLES),
            some(test[np.isin(source.test.labels[test], split.forgotten_classes)], _HELD_OUT_SAMPLES),
            some(split.test.indices, _REFERENCE_SAMPLES),
            some(split.forget.indices, _NOISY_SAMPLES),
        )

    def described(self) -> dict[str, Any]:
        return {name: rows.tolist() for name, rows in self._asdict().items()}
