"""Class inference: can an attacker tell, from what a model says of a forgotten class, that it once knew the class?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_FOLDS = 5


class ClassInference(NamedTuple):
    """Scores, higher for what looks like the unlearned model's.

    Attributes:
        scores: `[n]`, of the model in question.
        oracle_scores: `[n * oracles]`, of the retrained models.
    """

    scores: np.ndarray
    oracle_scores: np.ndarray


def class_inference(
    logits: np.ndarray, oracle_logits: Sequence[np.ndarray], forgotten_classes: Sequence[int]
) -> ClassInference:
    """Trains a classifier to tell a model's answers on forgotten samples from retrained models'.

    It reads the softmax without the forgotten classes, renormalised, so that what it finds is not that their probability
    is low. A logistic regression; five folds, an image's answers always in one of them.

    Args:
        logits: `[n, C]`, of the model in question on samples of the forgotten classes.
        oracle_logits: The same of each retrained model.
        forgotten_classes: What is left out.

    Raises:
        ValueError: if there are fewer than 10 samples, or no retrained model.
    """
    if len(logits) < 2 * _FOLDS or not oracle_logits:
        raise ValueError(f"there are {len(logits)} samples and {len(oracle_logits)} retrained models; it needs 10 and one")
    answers = np.concatenate([_without(values, forgotten_classes) for values in (logits, *oracle_logits)])
    is_model = np.repeat([1, 0], [len(logits), len(logits) * len(oracle_logits)])
    images = np.tile(np.arange(len(logits)), 1 + len(oracle_logits))
    shuffled = np.random.default_rng(0).permutation(len(logits))[images]
    scores = np.empty(len(answers))
    for train, held_out in GroupKFold(_FOLDS).split(answers, groups=shuffled):
        attack = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        scores[held_out] = attack.fit(answers[train], is_model[train]).decision_function(answers[held_out])
    return ClassInference(scores[is_model == 1], scores[is_model == 0])


def _without(logits: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    return softmax(np.delete(logits.astype(np.float64), list(classes), axis=1), axis=1)
