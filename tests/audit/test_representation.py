"""What features hold, by hand, by loops and for vectors that have no direction."""

import numpy as np
import pytest

from cujax.audit.representation import (
    class_means,
    cosines_to_class_means,
    linear_cka,
    linear_probe,
)
from cujax.training.predict import Predictions, nearest_class_mean


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


def blobs(n, seed, d=4, classes=3, apart=1.5):
    """Features around a mean of each class, with axes of very different scale and place."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = apart * np.random.default_rng(100).normal(size=(classes, d))
    return (means[labels] + rng.normal(size=(n, d))) * 10.0 ** np.arange(-1, d - 1) + 7, labels


def logistic_regression(x, labels, strength):
    """Weights, the last of the constant, by Newton's method; the constant is not penalised."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.diag([1.0] * (x.shape[1] - 1) + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = strength * x.T @ (p - labels) + penalty @ w
        w -= np.linalg.solve(strength * (x.T * (p * (1 - p))) @ x + penalty, gradient)
    return w


def test_the_probe_is_a_penalised_logistic_regression_on_standardised_features():
    features, labels = blobs(30, 0, classes=2, apart=0.7)
    held_out, held_out_labels = blobs(400, 1, classes=2, apart=0.7)
    center, spread = features.mean(0), features.std(0)
    expected, weaker = (logistic_regression((features - center) / spread, labels, strength) for strength in (0.1, 1.0))
    margins, others = ((held_out - center) / spread @ w[:-1] + w[-1] for w in (expected, weaker))
    clear = np.abs(margins) > 0.02
    assert clear.sum() > 350
    assert ((margins > 0) != (others > 0))[clear].any()
    right = linear_probe(features, labels, held_out, held_out_labels)
    assert right.dtype == bool
    np.testing.assert_array_equal(right[clear], ((margins > 0) == held_out_labels)[clear])
    assert 0.5 < right.mean() < 1.0


def test_the_probe_reads_what_is_there_and_nothing_where_nothing_is():
    features, labels = blobs(150, 0, apart=6.0)
    held_out, held_out_labels = blobs(300, 1, apart=6.0)
    assert linear_probe(features, labels, held_out, held_out_labels).mean() > 0.95
    shuffled = np.random.default_rng(2).permutation(held_out_labels)
    assert linear_probe(features, labels, held_out, shuffled).mean() == pytest.approx(1 / 3, abs=0.12)


def test_scale_and_place_of_a_feature_do_not_matter_to_the_probe():
    features, labels = blobs(90, 3)
    held_out, held_out_labels = blobs(90, 4)
    scale, place = np.array([1e-3, 5.0, 200.0, 1.0]), np.array([1.0, -50.0, 0.0, 3.0])
    np.testing.assert_array_equal(
        linear_probe(scale * features + place, labels, scale * held_out + place, held_out_labels),
        linear_probe(features, labels, held_out, held_out_labels),
    )


def test_a_class_that_was_not_learned_is_never_recognised():
    features, labels = blobs(60, 5)
    held_out, held_out_labels = blobs(60, 6)
    kept = labels != 1
    for reader in (linear_probe, nearest_class_mean):
        right = reader(features[kept], labels[kept], held_out, held_out_labels)
        assert not right[held_out_labels == 1].any()
        assert right[held_out_labels != 1].any()


def test_the_nearest_class_mean_is_that_of_a_loop():
    features, labels = blobs(45, 7, apart=1.0)
    held_out, held_out_labels = blobs(60, 8, apart=1.0)
    labels, held_out_labels = 10 * labels + 2, 10 * held_out_labels + 2
    expected = []
    for row, label in zip(held_out, held_out_labels, strict=True):
        distances = {}
        for candidate in (2, 12, 22):
            mean = sum(features[i] for i in range(45) if labels[i] == candidate) / sum(labels == candidate)
            distances[candidate] = sum((row - mean) ** 2)
        expected.append(min(distances, key=distances.get) == label)
    right = nearest_class_mean(features, labels, held_out, held_out_labels)
    np.testing.assert_array_equal(right, expected)
    assert 0.2 < right.mean() < 1.0


def cka_of_features(x, y):
    """In feature space: no matrix of samples by samples."""
    x, y = x - x.mean(0), y - y.mean(0)
    frobenius = [np.sqrt((product**2).sum()) for product in (y.T @ x, x.T @ x, y.T @ y)]
    return frobenius[0] ** 2 / (frobenius[1] * frobenius[2])


def layers(n=50, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) * np.arange(1, 7) + 3
    return x, np.tanh(x @ rng.normal(size=(6, 4)) / 5) + 0.2 * rng.normal(size=(n, 4))


@pytest.mark.parametrize("n", [3, 50])
def test_cka_agrees_with_its_formula_in_feature_space(n):
    x, y = layers(n)
    assert linear_cka(x, y) == pytest.approx(cka_of_features(x, y), rel=1e-10)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), rel=1e-10)
    assert 0.05 < linear_cka(x, y) < 1.0


def test_cka_does_not_change_with_rotation_scale_and_place():
    x, y = layers()
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x, -0.01 * x @ rotation + 40 * rng.normal(size=6)) == pytest.approx(1.0)
    assert linear_cka(1e3 * x @ rotation - 5, y) == pytest.approx(linear_cka(x, y))


def test_cka_changes_with_other_linear_maps_and_with_the_pairing_of_samples():
    x, y = layers()
    assert linear_cka(x, x * np.array([100.0, 1, 1, 1, 1, 1])) < 0.5
    assert linear_cka(x, y[np.random.default_rng(2).permutation(50)]) < 0.5 * linear_cka(x, y)


def test_cka_of_unrelated_features_falls_with_the_number_of_samples_and_of_constant_ones_is_0():
    rng = np.random.default_rng(3)
    assert linear_cka(rng.normal(size=(400, 3)), rng.normal(size=(400, 3))) < 0.03
    assert linear_cka(np.ones((20, 3)), rng.normal(size=(20, 3))) == 0.0
    assert linear_cka(np.zeros((20, 3)), np.zeros((20, 3))) == 0.0


def test_cka_of_single_precision_features_far_from_0_is_not_lost_to_rounding():
    x, y = (layer.astype(np.float32) + np.float32(1000) for layer in layers())
    assert linear_cka(x, y) == pytest.approx(cka_of_features(x.astype(np.float64), y.astype(np.float64)), rel=1e-9)


def test_features_that_never_vary_do_not_stop_the_nearest_class_mean():
    features = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 4.0], [1.0, 4.0]])
    labels = np.array([3, 3, 7, 7])
    assert nearest_class_mean(features, labels, np.array([[1.0, 1.0], [1.0, 3.0]]), np.array([3, 3])).tolist() == [
        True,
        False,
    ]
    assert nearest_class_mean(np.ones((2, 3)), np.array([0, 1]), np.ones((1, 3)), np.array([0])).tolist() == [True]
