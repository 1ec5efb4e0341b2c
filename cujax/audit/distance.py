"""Distances between the answers of two models on the same samples."""

import numpy as np
from scipy.special import rel_entr, softmax


def jensen_shannon(logits: np.ndarray, other_logits: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of two models' softmaxes, `[n]` in nats (0 to log 2).

    Args:
        logits: `[n, C]`; may hold -inf.
        other_logits: `[n, C]`, of the other model.
    """
    p, q = _softmaxes(logits, other_logits)
    middle = (p + q) / 2
    divergences = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / 2
    return np.maximum(divergences, 0.0)  # rounding puts equal answers just below 0


def activation_distance(logits: np.ndarray, other_logits: np.ndarray) -> np.ndarray:
    """Euclidean distance of two models' softmaxes, `[n]` (0 to √2); arguments as in `jensen_shannon`."""
    p, q = _softmaxes(logits, other_logits)
    return np.linalg.norm(p - q, axis=1)


def agreement(logits: np.ndarray, other_logits: np.ndarray) -> np.ndarray:
    """Whether two models answer with the same class, `[n]` bool; arguments as in `jensen_shannon`."""
    return logits.argmax(axis=1) == other_logits.argmax(axis=1)


def _softmaxes(logits: np.ndarray, other_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return softmax(logits.astype(np.float64), axis=1), softmax(other_logits.astype(np.float64), axis=1)
