"""Membership inference: can an attacker tell from the outputs that a model was trained on the forget set?

Both attacks read per-sample losses or confidences and are fitted with scikit-learn.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from cujax.inference import Predictions

_FOLDS = 10
_SVC_SAMPLES_A_SIDE = 2000


def sample_losses(predictions: Predictions) -> np.ndarray:
    """The cross-entropy of each sample, `[n]` float64, in nats; infinite where a masked logit is -inf."""
    log_p = _log_softmax(predictions.logits)
    return -log_p[np.arange(len(log_p)), predictions.labels]


def confidences(predictions: Predictions) -> np.ndarray:
    """The probability given to the true label, `[n]` float64."""
    return np.exp(-sample_losses(predictions))


def loss_attack_auc(forget_losses: np.ndarray, held_out_losses: np.ndarray) -> float:
    """The probability that a forget sample has a lower loss than a held-out one, ties counting half.

    That is the area under the ROC curve of an attacker who takes a low loss for membership: 1 if the forget set is
    memorised, 0.5 if the loss tells nothing, below 0.5 if it was forgotten more than samples never seen.

    A logistic regression on the loss is monotone in it, so fitting one could only choose the direction; with nothing
    to find it chooses by chance in each fold, which puts cross-validated areas of retrained models at 0.39 to 0.47
    (digits, 130 samples a side) where this one has 0.50 to 0.52. `loss_attack_accuracy` is the fitted attack.

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
    return float(roc_auc_score(is_member, -np.concatenate([forget_losses, held_out_losses])))


def loss_attack_accuracy(forget_losses: np.ndarray, held_out_losses: np.ndarray, seed: int = 0) -> float:
    """Accuracy of a logistic regression that tells forget samples from held-out ones by their loss; 0.5 is chance.

    Equal numbers of both sides (the larger is sampled), mean over 10 stratified folds.

    Args:
        forget_losses: `[n]`, of the forget set.
        held_out_losses: `[m]`, of samples of the same classes that the model was not trained on.
        seed: Of sampling and folds.

    Raises:
        ValueError: if a loss is not finite, or a side has fewer than 10 samples, one a fold.
    """
    _check_losses(forget_losses, held_out_losses, at_least=_FOLDS)
    rng = np.random.default_rng(seed)
    n = min(len(forget_losses), len(held_out_losses))
    sides = [rng.choice(losses, size=n, replace=False) for losses in (forget_losses, held_out_losses)]
    attack = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(attack, np.concatenate(sides)[:, None], np.repeat([1, 0], n), cv=folds).mean())


def _check_losses(forget_losses: np.ndarray, held_out_losses: np.ndarray, at_least: int) -> None:
    for name, losses in (("forget", forget_losses), ("held-out", held_out_losses)):
        if not np.isfinite(losses).all():
            raise ValueError(f"{name} losses are not all finite, so no threshold on them means anything")
        if len(losses) < at_least:
            raise ValueError(f"there are {len(losses)} {name} samples, but the attack needs at least {at_least}")


def confidence_attack(
    retain_confidences: np.ndarray,
    test_confidences: np.ndarray,
    forget_confidences: np.ndarray,
    seed: int = 0,
) -> float:
    """One minus the mean prediction, on the forget set, of an attack trained to tell members from non-members.

    An SVC (C=3, radial basis functions) learns the confidence in the true label of retain samples (members) against
    that of test samples (non-members), at most 2,000 a side. 1: every forget sample looks like a non-member.

    Args:
        retain_confidences: `[n]`, of retain samples.
        test_confidences: `[m]`, of test samples of the same classes.
        forget_confidences: `[k]`, of the forget set.
        seed: Of sampling.
    """
    rng = np.random.default_rng(seed)
    n = min(len(retain_confidences), len(test_confidences), _SVC_SAMPLES_A_SIDE)
    sides = [rng.choice(values, size=n, replace=False) for values in (retain_confidences, test_confidences)]
    attack = SVC(C=3, kernel="rbf", gamma="auto").fit(np.concatenate(sides)[:, None], np.repeat([1, 0], n))
    return float(1 - attack.predict(forget_confidences[:, None]).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
