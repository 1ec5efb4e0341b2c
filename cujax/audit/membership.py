"""Membership inference: can an attacker tell from the outputs that a model was trained on the forget set?

The attacks read one number per sample, such as its loss or confidence, and are fitted with scikit-learn.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import lazy_loader
import numpy as np
from scipy.special import entr, log_softmax, logsumexp

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, NotAvailable, area, share
from cujax.audit.metric import Metric, MetricContext
from cujax.training.predict import Predictions, correct, sample_losses

if TYPE_CHECKING:
    from sklearn.svm import SVC

# Loaded when first used: importing it takes as long as JAX.
sklearn = lazy_loader.load("sklearn")

# What the trained attacks read, with its display name.
_FEATURES = {
    "confidence": "confidence",
    "correctness": "correctness",
    "entropy": "entropy",
    "modified_entropy": "modified entropy",
}
_FOLDS = 10
_SVC_SAMPLES_A_SIDE = 2000


def confidences(predictions: Predictions) -> np.ndarray:
    """The probability of the true label, `[n]` float64."""
    return np.exp(-sample_losses(predictions))


def loss_attack_auc(forget_losses: np.ndarray, held_out_losses: np.ndarray) -> float:
    """The probability that a forget sample has a lower loss than a held-out one, ties counting half.

    This is the area under the ROC curve of an attacker who takes a low loss as a sign of membership: 1 if the forget set is
    memorised, 0.5 if the loss shows nothing, below 0.5 if it was forgotten more than samples never seen.

    A logistic regression on the loss is monotone in it, so fitting one could only choose the direction. If there is nothing
    to find, it chooses at random in each fold, which gives cross-validated areas of 0.39 to 0.47 for retrained models
    (digits, 130 samples per side), where this function gives 0.50 to 0.52. `loss_attack_accuracy` is the fitted attack.

    Args:
        forget_losses: `[n]`, of the forget set.
        held_out_losses: `[m]`, of samples of the same classes that the model was not trained on.

    Raises:
        ValueError: if a loss is not finite, or a side is empty.

    >>> loss_attack_auc(np.array([0.1, 0.4]), np.array([0.2, 0.8]))
    0.75
    """
    _check_losses(forget_losses, held_out_losses, at_least=1)
    is_member = np.repeat([1, 0], [len(forget_losses), len(held_out_losses)])
    return float(sklearn.metrics.roc_auc_score(is_member, -np.concatenate([forget_losses, held_out_losses])))


def loss_attack_accuracy(forget_losses: np.ndarray, held_out_losses: np.ndarray, seed: int = 0) -> float:
    """Accuracy of a logistic regression that distinguishes forget from held-out samples by their loss; 0.5 is chance.

    Both sides have the same number of samples (the larger is sampled); the mean over 10 stratified folds.

    Args:
        forget_losses: `[n]`, of the forget set.
        held_out_losses: `[m]`, of samples of the same classes that the model was not trained on.
        seed: Seed of the sampling and the folds.

    Raises:
        ValueError: if a loss is not finite, or a side has fewer than 10 samples, one per fold.
    """
    _check_losses(forget_losses, held_out_losses, at_least=_FOLDS)
    rng = np.random.default_rng(seed)
    n = min(len(forget_losses), len(held_out_losses))
    sides = [rng.choice(losses, size=n, replace=False) for losses in (forget_losses, held_out_losses)]
    attack = sklearn.pipeline.make_pipeline(
        sklearn.preprocessing.StandardScaler(), sklearn.linear_model.LogisticRegression()
    )
    folds = sklearn.model_selection.StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    member = np.repeat([1, 0], n)
    scores = sklearn.model_selection.cross_val_score(attack, np.concatenate(sides)[:, None], member, cv=folds)
    return float(scores.mean())


def _check_losses(forget_losses: np.ndarray, held_out_losses: np.ndarray, at_least: int) -> None:
    for name, losses in (("forget", forget_losses), ("held-out", held_out_losses)):
        if not np.isfinite(losses).all():
            raise ValueError(f"{name} losses are not all finite, so no threshold on them means anything")
        if len(losses) < at_least:
            raise ValueError(f"there are {len(losses)} {name} samples, but the attack needs at least {at_least}")


class AttackResult(NamedTuple):
    """The result of a trained attack on the forget set, and on the samples that it used as non-members.

    Attributes:
        is_member: `[k]` bool, whether each forget sample is classified as a member.
        scores: `[k]`, higher for samples that look like members.
        other_scores: `[m]`, the same for the test samples. Each sample is scored by an attack that was not fitted on it.
    """

    is_member: np.ndarray
    scores: np.ndarray
    other_scores: np.ndarray


def trained_attack(retain: np.ndarray, test: np.ndarray, forget: np.ndarray, seed: int = 0) -> AttackResult:
    """Trains an attack that distinguishes members from non-members by one number per sample; applies it to the forget set.

    An SVC (C=3, radial basis functions) is trained on retain samples (members) against test samples (non-members), at most
    2,000 per side. For the scores, two attacks are each trained on half of the test samples and score the other half; each
    forget sample is scored by one of the two, chosen at random. Test samples scored by an attack that was fitted on them
    would look like non-members from noise alone.

    Args:
        retain: `[n]`, of retain samples; one of `attack_features`.
        test: `[m]`, of test samples of the same classes.
        forget: `[k]`, of the forget set.
        seed: Seed of the sampling.
    """
    rng = np.random.default_rng(seed)

    def fitted(unseen: np.ndarray) -> "SVC":
        n = min(len(retain), len(unseen), _SVC_SAMPLES_A_SIDE)
        sides = [rng.choice(values, size=n, replace=False) for values in (retain, unseen)]
        return sklearn.svm.SVC(C=3, kernel="rbf", gamma="auto").fit(np.concatenate(sides)[:, None], np.repeat([1, 0], n))

    is_member = fitted(test).predict(forget[:, None]).astype(bool)
    scores, other_scores = np.full(len(forget), np.nan), np.full(len(test), np.nan)
    if len(test) > 1:
        halves, own = rng.permutation(len(test)) % 2, rng.permutation(len(forget)) % 2
        for half in (0, 1):
            attack = fitted(test[halves != half])
            other_scores[halves == half] = attack.decision_function(test[halves == half][:, None])
            if (own == half).any():
                scores[own == half] = attack.decision_function(forget[own == half][:, None])
    return AttackResult(is_member, scores, other_scores)


@functools.lru_cache(maxsize=64)
def _attack_on(retain: bytes, test: bytes, forget: bytes) -> AttackResult:
    """`trained_attack` on float64 values. It takes seconds, and many methods are compared with the same retrained models."""
    return trained_attack(np.frombuffer(retain), np.frombuffer(test), np.frombuffer(forget))


def attack_features(predictions: Predictions) -> dict[str, np.ndarray]:
    """The inputs of the trained attacks for each sample, `[n]` float64, by name.

    "correctness" (1 or 0), "confidence" in the true label, "entropy" of the softmax p, and "modified_entropy":
    `-(1 - p_y) log p_y - Σ_{k≠y} p_k log(1 - p_k)` (Song and Mittal, arXiv:2003.10595), all in nats.
    """
    log_p = _log_softmax(predictions.logits)
    p, rows = np.exp(log_p), np.arange(len(log_p))
    # log(1 - p_k) from the other classes where p_k is the largest: it may have been rounded to 1.
    top = log_p.argmax(axis=1)
    rest = log_p.copy()
    rest[rows, top] = -np.inf
    log_not = np.log1p(-np.where(np.arange(p.shape[1]) == top[:, None], 0.0, p))
    log_not[rows, top] = logsumexp(rest, axis=1)
    others = p.copy()
    others[rows, predictions.labels] = 0.0
    own = log_p[rows, predictions.labels]
    return {
        "correctness": correct(predictions).astype(np.float64),
        "confidence": np.exp(own),
        "entropy": entr(p).sum(axis=1),
        "modified_entropy": np.expm1(own) * own - np.where(others > 0, others * log_not, 0.0).sum(axis=1),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return log_softmax(logits.astype(np.float64), axis=1)


def _loss_sides(context: MetricContext, model: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the forget set, and of held-out samples of the same classes."""
    answers = model.answers
    unseen = answers.validation if context.clean_test_only else answers.test
    return sample_losses(answers.forget), sample_losses(unseen.take(np.isin(unseen.labels, answers.forget.labels)))


def _mia_loss_auc(context: MetricContext, model: Evidence) -> Estimate:
    forget, held_out = _loss_sides(context, model)
    try:
        loss_attack_auc(forget, held_out)
    except ValueError as reason:
        raise NotAvailable(str(reason)) from reason
    return area(-forget, -held_out)


def _mia_loss_accuracy(context: MetricContext, model: Evidence) -> Estimate:
    try:
        return Estimate(loss_attack_accuracy(*_loss_sides(context, model)))
    except ValueError as reason:
        raise NotAvailable(str(reason)) from reason


def _attack_result(context: MetricContext, model: Evidence, feature: str) -> AttackResult:
    answers = model.answers
    if np.isneginf(answers.forget.logits).any():
        raise NotAvailable("the true class is masked: its confidence shows the mask, not what was learned")
    test = context.test_rows(answers, of_forgotten=False)

    def attack() -> AttackResult:
        return _attack_on(*(attack_features(rows)[feature].tobytes() for rows in (answers.retain, test, answers.forget)))

    return context.once(("trained attack", model, feature), attack)


def _taken_for_unseen(feature: str) -> Callable[[MetricContext, Evidence], Estimate]:
    return lambda context, model: share(~_attack_result(context, model, feature).is_member)


def _told_from_test(feature: str) -> Callable[[MetricContext, Evidence], Estimate]:
    def compute(context: MetricContext, model: Evidence) -> Estimate:
        found = _attack_result(context, model, feature)
        return area(found.scores, found.other_scores)

    return compute


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family."""
    del depths
    family = partial(Metric, family="membership")
    return [
        family(
            key="mia_loss_auc",
            heading="MIA loss AUC",
            question="Does a low loss reveal the forget samples? 0.5: no better than chance.",
            compute=_mia_loss_auc,
            of_answers=True,
            asked_again=True,
        ),
        family(
            key="mia_loss_accuracy",
            heading="MIA loss accuracy",
            question=(
                "How often does a classifier that reads the loss distinguish forget from held-out samples? 0.5: chance."
            ),
            compute=_mia_loss_accuracy,
            of_answers=True,
        ),
        *(
            family(
                key=f"mia_{feature}",
                heading=f"MIA {words}",
                question=f"What share of the forget set does an attack trained on {words} classify as never seen?",
                compute=_taken_for_unseen(feature),
                of_answers=feature == "confidence",
                asked_again=feature == "confidence",
            )
            for feature, words in _FEATURES.items()
        ),
        *(
            family(
                key=f"mia_{feature}_auc",
                heading=f"MIA {words}, AUC",
                question=f"Does an attack trained on {words} rank forget samples above test samples, as members?",
                compute=_told_from_test(feature),
            )
            for feature, words in _FEATURES.items()
        ),
    ]
