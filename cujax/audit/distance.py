"""Distances between the answers of two models."""

import numpy as np
from scipy.special import rel_entr, softmax


def jensen_shannon(logits: np.ndarray, other_logits: np.ndarray) -> float:
    """Jensen-Shannon divergence of two models' softmaxes, in nats (0 to log 2), mean over samples.

    Args:
        logits: `[n, C]`; may hold -inf.
        other_logits: `[n, C]`, of the other model on the same samples.
    """
    p, q = (softmax(x.astype(np.float64), axis=1) for x in (logits, other_logits))
    middle = (p + q) / 2
    divergences = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / 2
    return float(np.mean(np.maximum(divergences, 0.0)))  # rounding puts equal answers just below 0
