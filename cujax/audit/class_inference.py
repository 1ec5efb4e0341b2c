"""Class inference: can an attacker tell, from what a model says of a forgotten class, that it once knew the class?"""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_FEWEST = 10


def class_inference(
    logits: np.ndarray,
    oracle_logits: Sequence[np.ndarray],
    *,
    original_logits: np.ndarray,
    known_oracle_logits: Sequence[np.ndarray],
    forgotten_classes: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a model's answers and of retrained models', higher for what looks like a model that knew the class.

    The attacker learns from the original, which knew it, and from retrained models, which never did, and reads the softmax
    without the forgotten class, renormalised: a low probability of it tells nothing. Then the attacker judges models that
    were not learned from, on images that were not learned from. An attack that learns from the very model it judges would
    find its fingerprint instead: it tells even two retrained models apart.

    Args:
        logits: `[n, C]`, of the model in question on samples of the forgotten classes.
        oracle_logits: The same of retrained models that it is held against.
        original_logits: The same of the model before.
        known_oracle_logits: The same of other retrained models.
        forgotten_classes: What is left out.

    Returns:
        `[n / 2]` scores of the model, and `[n / 2 * oracles]` of those it is held against.

    Raises:
        ValueError: if there are fewer than 10 samples, or no retrained model on one of the two sides.
    """
    n = len(logits)
    if n < _FEWEST:
        raise ValueError(f"there are {n} samples, but class inference needs {_FEWEST}")
    if not oracle_logits or not known_oracle_logits:
        raise ValueError("class inference needs three retrained models, some to learn from and others to judge")
    order = np.random.default_rng(0).permutation(n)
    learned, judged = order[: n // 2], order[n // 2 :]

    def read(answers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return softmax(np.delete(answers[rows].astype(np.float64), list(forgotten_classes), axis=1), axis=1)

    known = np.concatenate([read(answers, learned) for answers in (original_logits, *known_oracle_logits)])
    knew = np.repeat([1, 0], [len(learned), len(learned) * len(known_oracle_logits)])
    attack = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)).fit(known, knew)
    oracles = np.concatenate([read(answers, judged) for answers in oracle_logits])
    return attack.decision_function(read(logits, judged)), attack.decision_function(oracles)
