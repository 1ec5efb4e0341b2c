"""Class means and cosines to them, by hand and for vectors that have no direction."""

import numpy as np
import pytest

from cujax.audit.representation import class_means, cosines_to_class_means
from cujax.inference import Predictions


def mean_cosine(*arguments):
    return np.mean(cosines_to_class_means(*arguments))


def predictions(embeddings, labels):
    embeddings = np.asarray(embeddings, np.float32)
    return Predictions(np.zeros((len(embeddings), 4), np.float32), embeddings, np.asarray(labels))


def test_means_are_unit_vectors_by_class_by_hand():
    means = class_means(predictions([[3.0, 0.0], [0.0, 0.5], [-4.0, -4.0]], [7, 7, 2]))
    assert sorted(means) == [2, 7]
    np.testing.assert_allclose(means[7], np.array([1.0, 1.0]) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(means[2], np.array([-1.0, -1.0]) / np.sqrt(2), rtol=1e-6)


def test_the_length_of_an_embedding_has_no_weight():
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    made = predictions(embeddings, labels)
    scaled = predictions(embeddings * rng.uniform(1e-6, 1e6, size=(40, 1)), labels)
    means, scaled_means = class_means(made), class_means(scaled)
    for label in range(3):
        np.testing.assert_allclose(scaled_means[label], means[label], rtol=1e-4, atol=1e-6)
    assert mean_cosine(scaled, means) == pytest.approx(mean_cosine(made, means), rel=1e-5)


def test_each_embedding_is_compared_with_the_mean_of_its_own_class_only():
    means = {0: np.array([1.0, 0.0]), 1: np.array([0.0, 1.0])}
    assert mean_cosine(predictions([[2.0, 0.0], [0.0, 9.0]], [0, 1]), means) == pytest.approx(1.0)
    assert mean_cosine(predictions([[2.0, 0.0], [0.0, 9.0]], [1, 0]), means) == pytest.approx(0.0)
    assert mean_cosine(predictions([[1.0, 1.0], [0.0, -9.0]], [0, 1]), means) == pytest.approx((np.sqrt(0.5) - 1) / 2)


def test_zero_vectors_pull_a_mean_nowhere():
    with_zero = class_means(predictions([[3.0, 4.0], [0.0, 0.0]], [1, 1]))
    np.testing.assert_allclose(with_zero[1], [0.6, 0.8], rtol=1e-6)


def test_embeddings_that_cancel_have_a_mean_of_zero_and_cosine_zero_to_it():
    made = predictions([[2.0, 0.0], [-5.0, 0.0], [0.0, 0.0]], [0, 0, 1])
    means = class_means(made)
    np.testing.assert_array_equal(means[0], [0.0, 0.0])
    np.testing.assert_array_equal(means[1], [0.0, 0.0])
    assert mean_cosine(made, means) == 0.0
