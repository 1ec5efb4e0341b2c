"""The rows of a report: every metric for the original, retrained, unlearned and masked models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cujax.audit.accuracy import accuracy, mean_gap
from cujax.audit.distance import jensen_shannon
from cujax.audit.membership import (
    confidence_attack,
    confidences,
    loss_attack_accuracy,
    loss_attack_auc,
    sample_losses,
)
from cujax.audit.representation import class_means, cosine_to_class_means
from cujax.data.requests import Split
from cujax.inference import Predictions

KEYS = (
    "forget_train_accuracy",
    "forget_test_accuracy",
    "retain_train_accuracy",
    "retain_test_accuracy",
    "test_accuracy",
    "mia_loss_auc",
    "mia_loss_accuracy",
    "mia_confidence",
    "js_to_retrained",
    "mean_gap",
    "cosine_to_former_class_mean",
)

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model answers on each part of a split."""

    forget: Predictions
    retain: Predictions
    validation: Predictions
    test: Predictions

    def masked(self, classes: Sequence[int]) -> "Answers":
        """The rule-based control: the same answers with the logits of some classes at minus infinity; no training."""

        def mask(predictions: Predictions) -> Predictions:
            logits = predictions.logits.copy()
            logits[:, list(classes)] = -np.inf
            return Predictions(logits, predictions.embeddings, predictions.labels)

        return Answers(*map(mask, (self.forget, self.retain, self.validation, self.test)))


class NotAvailable(Exception):  # noqa: N818 - an answer, not a failure
    """Why a metric cannot be given."""


def audit_rows(
    split: Split,
    *,
    original: Answers,
    retrained: Sequence[Answers],
    unlearned: Answers,
    clean_test_only: bool,
) -> dict[str, Row]:
    """Every metric of every row; a fraction, or None with the reason under `reasons`.

    Args:
        split: What was forgotten.
        original: The model before.
        retrained: Models trained without the forget set; their rows are means, with `<key>_std`.
        unlearned: The model after.
        clean_test_only: Whether training labels carry noise that test labels do not. Then the loss attack takes
            validation samples for held-out ones: test samples would be told apart by their clean labels alone.
    """
    metrics = _metrics(split, original, retrained, clean_test_only)
    models = {"original": [original], "retrained": list(retrained), "unlearned": [unlearned]}
    if split.is_class_task:
        models["masked"] = [original.masked(split.forgotten_classes)]
    return {name: _row(metrics, answers) for name, answers in models.items()}


def audit_row(
    split: Split, answers: Answers, *, original: Answers, retrained: Sequence[Answers], clean_test_only: bool
) -> Row:
    """Every metric of one model, which may be the original or one of the retrained; as in `audit_rows`."""
    return _row(_metrics(split, original, retrained, clean_test_only), [answers])


def _metrics(
    split: Split, original: Answers, retrained: Sequence[Answers], clean_test_only: bool
) -> dict[str, Callable[[Answers], float]]:
    forgotten = np.array(split.forgotten_classes)
    means = class_means(original.forget)

    def test_rows(answers: Answers, of_forgotten: bool) -> Predictions:
        classes = split.forgotten_classes if of_forgotten else split.absent_classes
        rows = answers.test.take(np.isin(answers.test.labels, classes) == of_forgotten)
        if not len(rows.labels):
            which = "the forgotten classes" if of_forgotten else "the classes that stay"
            raise NotAvailable(f"the test set has no sample of {which}")
        return rows

    def forget_test_accuracy(answers: Answers) -> float:
        if not len(forgotten):
            raise NotAvailable("samples were forgotten, not classes: there are no test samples of them")
        return accuracy(test_rows(answers, of_forgotten=True))

    def held_out(answers: Answers) -> np.ndarray:
        unseen = answers.validation if clean_test_only else answers.test
        return sample_losses(unseen.take(np.isin(unseen.labels, answers.forget.labels)))

    def mia(attack: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Answers], float]:
        def metric(answers: Answers) -> float:
            try:
                return attack(sample_losses(answers.forget), held_out(answers))
            except ValueError as reason:
                raise NotAvailable(str(reason)) from reason

        return metric

    def mia_confidence(answers: Answers) -> float:
        if np.isneginf(answers.forget.logits).any():
            raise NotAvailable("the true class is masked: confidence 0 shows the mask, not what was learned")
        test = test_rows(answers, of_forgotten=False)
        return confidence_attack(confidences(answers.retain), confidences(test), confidences(answers.forget))

    def js_to_retrained(answers: Answers) -> float:
        others = [model for model in retrained if model is not answers]
        if not others:
            raise NotAvailable("there is only one retrained model" if retrained else "no retrained model: --retrained is 0")
        return float(np.mean([jensen_shannon(answers.forget.logits, other.forget.logits) for other in others]))

    def accuracies(answers: Answers) -> list[float]:
        forget = forget_test_accuracy(answers) if len(forgotten) else accuracy(answers.forget)
        return [forget, accuracy(answers.retain), accuracy(test_rows(answers, of_forgotten=False))]

    def gap(answers: Answers) -> float:
        others = [model for model in retrained if model is not answers]
        if not others:
            raise NotAvailable("there is only one retrained model" if retrained else "no retrained model: --retrained is 0")
        return mean_gap(accuracies(answers), [accuracies(other) for other in others])

    def cosine(answers: Answers) -> float:
        if any(answers is model for model in retrained):
            raise NotAvailable("a retrained model has an embedding space of its own")
        return cosine_to_class_means(answers.forget, means)

    return {
        "forget_train_accuracy": lambda answers: accuracy(answers.forget),
        "forget_test_accuracy": forget_test_accuracy,
        "retain_train_accuracy": lambda answers: accuracy(answers.retain),
        "retain_test_accuracy": lambda answers: accuracy(test_rows(answers, of_forgotten=False)),
        "test_accuracy": lambda answers: accuracy(answers.test),
        "mia_loss_auc": mia(loss_attack_auc),
        "mia_loss_accuracy": mia(loss_attack_accuracy),
        "mia_confidence": mia_confidence,
        "js_to_retrained": js_to_retrained,
        "mean_gap": gap,
        "cosine_to_former_class_mean": cosine,
    }


def _row(metrics: dict[str, Callable[[Answers], float]], models: Sequence[Answers]) -> Row:
    row: Row = {}
    reasons: dict[str, str] = {}
    for key in KEYS:
        row[key] = None
        if not models:
            reasons[key] = "no retrained model: --retrained is 0"
            continue
        try:
            values = [metrics[key](model) for model in models]
        except NotAvailable as reason:
            reasons[key] = str(reason)
            continue
        row[key] = float(np.mean(values))
        if len(models) > 1:
            row[f"{key}_std"] = float(np.std(values, ddof=1))
            row[f"{key}_min"], row[f"{key}_max"] = min(values), max(values)
    row["reasons"] = reasons
    return row
