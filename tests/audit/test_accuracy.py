"""Accuracy and the mean gap against counting by hand."""

import numpy as np
import pytest

from cujax.audit.accuracy import mean_gap
from cujax.training.predict import Predictions, accuracy


def predictions(logits, labels):
    logits = np.asarray(logits, np.float32)
    return Predictions(logits, np.zeros((len(logits), 2), np.float32), np.asarray(labels, np.int32))


def test_accuracy_agrees_with_counting_row_by_row():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(201, 7)) * 50, rng.integers(0, 7, 201)
    right = sum(all(row[label] >= other for other in row) for row, label in zip(logits, labels, strict=True))
    assert 0 < right < 201
    assert accuracy(predictions(logits, labels)) == pytest.approx(right / 201)


def test_a_class_masked_to_minus_infinity_is_never_right_and_the_next_best_answers():
    logits = [[9.0, 1.0, 0.0], [9.0, 0.0, 1.0], [5.0, -3.0, -4.0]]
    masked = np.array(logits)
    masked[:, 0] = -np.inf
    assert accuracy(predictions(logits, [0, 0, 0])) == 1.0
    assert accuracy(predictions(masked, [0, 0, 0])) == 0.0
    assert accuracy(predictions(masked, [1, 2, 1])) == 1.0


def test_the_gap_to_equal_oracles_is_zero_and_is_to_their_mean_not_to_each():
    assert mean_gap([0.9, 0.8, 0.7], [[0.9, 0.8, 0.7]] * 3) == pytest.approx(0.0)
    assert mean_gap([0.9], [[0.8], [1.0]]) == pytest.approx(0.0)


def test_being_above_in_one_figure_and_below_in_another_does_not_cancel():
    assert mean_gap([0.6, 0.4], [[0.5, 0.5]]) == pytest.approx(0.1)
    assert mean_gap([0.1, 1.0, 0.5], [[0.4, 0.9, 0.5], [0.2, 0.7, 0.5]]) == pytest.approx((0.2 + 0.2 + 0.0) / 3)
