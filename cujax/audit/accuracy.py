"""Accuracy, and the gap to retrained models that is computed from it. All values are fractions."""

from collections.abc import Sequence

import numpy as np

from cujax.inference import Predictions


def accuracy(predictions: Predictions) -> float:
    """The share of samples whose largest logit is their label's; NaN for no samples."""
    if not len(predictions.labels):
        return float("nan")
    return float(np.mean(predictions.logits.argmax(axis=1) == predictions.labels))


def mean_gap(accuracies: Sequence[float], oracle_accuracies: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference of some accuracies (forget, retain, test) to the means of those of the oracles.

    Args:
        accuracies: Of the model in question.
        oracle_accuracies: The same of each retrained model.

    >>> round(mean_gap([0.9, 1.0, 0.8], [[0.8, 1.0, 0.8], [0.9, 1.0, 0.9]]), 4)
    0.0333
    """
    return float(np.mean(np.abs(np.asarray(accuracies) - np.mean(oracle_accuracies, axis=0))))
