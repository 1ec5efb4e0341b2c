"""Distances between the answers of two models."""

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax


def jensen_shannon(logits: np.ndarray, other_logits: np.ndarray) -> float:
    """Jensen-Shannon divergence of two models' softmaxes, in nats (0 to log 2), mean over samples.

    Args:
        logits: `[n, C]`; may hold -inf.
        other_logits: `[n, C]`, of the other model on the same samples.
    """
    distances = jensenshannon(*(softmax(x.astype(np.float64), axis=1) for x in (logits, other_logits)), axis=1)
    return float(np.mean(distances**2))
