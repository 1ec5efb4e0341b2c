"""Accuracy, distances and representation against direct computation."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from cujax.audit.accuracy import mean_gap, tug_of_war
from cujax.audit.distance import jensen_shannon
from cujax.audit.representation import class_means, cosines_to_class_means
from cujax.training.predict import Predictions, accuracy


def mean_cosine(*arguments):
    return np.mean(cosines_to_class_means(*arguments))


def mean_divergence(*logits):
    return np.mean(jensen_shannon(*logits))


def test_accuracy_counts_and_is_not_a_number_for_nothing():
    logits = np.eye(4, dtype=np.float32)
    made = Predictions(logits, logits, np.array([0, 1, 3, 3]))
    assert accuracy(made) == 0.75
    assert np.isnan(accuracy(made.take(np.zeros(0, int))))


def test_the_mean_gap_is_to_the_mean_of_the_oracles():
    assert mean_gap([0.5, 1.0], [[0.2, 0.9], [0.4, 0.9]]) == pytest.approx((0.2 + 0.1) / 2)


def test_jensen_shannon_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50, 6)).astype(np.float32) * 3
    first[:, 2] = -np.inf
    p, q = softmax(first.astype(float), axis=1), softmax(second.astype(float), axis=1)
    middle = (p + q) / 2
    expected = np.mean(0.5 * rel_entr(p, middle).sum(1) + 0.5 * rel_entr(q, middle).sum(1))
    assert mean_divergence(first, second) == pytest.approx(expected, rel=1e-6)
    assert mean_divergence(first, first) == pytest.approx(0.0, abs=1e-12)


def test_jensen_shannon_of_disjoint_answers_is_log_2():
    assert mean_divergence(np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])) == pytest.approx(np.log(2))


def test_cosines_to_class_means():
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(30, 4)) * 10, rng.integers(0, 3, 30)
    made = Predictions(np.zeros((30, 3)), embeddings, labels)
    means = class_means(made)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = []
    for row, label in enumerate(labels):
        mean = unit[labels == label].mean(0)
        np.testing.assert_allclose(means[label], mean / np.linalg.norm(mean))
        cosines.append(unit[row] @ mean / np.linalg.norm(mean))
    assert mean_cosine(made, means) == pytest.approx(np.mean(cosines))
    opposite = Predictions(made.logits, np.stack([-means[label] for label in labels]), labels)
    assert mean_cosine(opposite, means) == pytest.approx(-1.0)


def test_embeddings_of_zero_norm_have_cosine_zero():
    made = Predictions(np.zeros((2, 1)), np.array([[1.0, 0.0], [0.0, 0.0]]), np.zeros(2, int))
    assert mean_cosine(made, {0: np.array([1.0, 0.0])}) == pytest.approx(0.5)


def test_the_tug_of_war_is_the_product_of_what_the_differences_leave():
    rng = np.random.default_rng(0)
    values, references = rng.random(3), rng.random((4, 3))
    expected = 1.0
    for part in range(3):
        expected *= 1 - abs(values[part] - sum(reference[part] for reference in references) / 4)
    assert tug_of_war(values.tolist(), references.tolist()) == pytest.approx(expected)


def test_the_tug_of_war_is_1_at_the_mean_of_the_oracles_and_0_where_one_part_fails():
    assert tug_of_war([0.0, 1.0, 0.8], [[0.0, 1.0, 0.7], [0.0, 1.0, 0.9]]) == pytest.approx(1.0)
    assert tug_of_war([1.0, 1.0, 0.8], [[0.0, 1.0, 0.8]]) == 0.0
    assert mean_gap([1.0, 1.0, 0.8], [[0.0, 1.0, 0.8]]) == pytest.approx(1 / 3)


def test_the_tug_of_war_is_lost_on_either_side_of_the_oracles():
    assert tug_of_war([0.3, 1.0], [[0.2, 1.0]]) == pytest.approx(0.9)
    assert tug_of_war([0.1, 1.0], [[0.2, 1.0]]) == pytest.approx(0.9)
