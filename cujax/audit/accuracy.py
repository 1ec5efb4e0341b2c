"""Accuracy, and what is computed from accuracies. All values are fractions."""

from collections.abc import Sequence

import numpy as np


def mean_gap(accuracies: Sequence[float], oracle_accuracies: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference of some accuracies (forget, retain, test) to the means of those of the oracles.

    Args:
        accuracies: Of the model in question.
        oracle_accuracies: The same of each retrained model.

    >>> round(mean_gap([0.9, 1.0, 0.8], [[0.8, 1.0, 0.8], [0.9, 1.0, 0.9]]), 4)
    0.0333
    """
    return float(np.mean(_differences(accuracies, oracle_accuracies)))


def tug_of_war(accuracies: Sequence[float], oracle_accuracies: Sequence[Sequence[float]]) -> float:
    """The product of one minus each absolute difference of accuracies to the means of the oracles'; 1 is ideal.

    Unlike a mean it cannot be high where one part fails (Zhao et al., arXiv:2406.01257).

    Args:
        accuracies: Of the model in question: forget, retain, test.
        oracle_accuracies: The same of each retrained model.

    >>> tug_of_war([0.5, 1.0, 1.0], [[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    0.25
    """
    return float(np.prod(1 - _differences(accuracies, oracle_accuracies)))


def _differences(accuracies: Sequence[float], oracle_accuracies: Sequence[Sequence[float]]) -> np.ndarray:
    return np.abs(np.asarray(accuracies) - np.mean(oracle_accuracies, axis=0))
