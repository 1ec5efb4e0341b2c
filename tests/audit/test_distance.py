"""Distances of answers against their definitions, closed forms and their edges."""

import math

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from cujax.audit.distance import activation_distance, agreement, jensen_shannon, metrics
from cujax.audit.evidence import Answers, Evidence
from cujax.audit.intervals import NotAvailable
from cujax.audit.metric import MetricContext
from cujax.training.predict import Predictions


def mean_divergence(*logits):
    return np.mean(jensen_shannon(*logits))


def by_definition(logits, other_logits):
    """Mean of (KL(p, m) + KL(q, m)) / 2 in float64."""
    p, q = (softmax(np.asarray(x, np.float64), axis=1) for x in (logits, other_logits))
    middle = (p + q) / 2
    return np.mean((rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / 2)


def logits_of(probabilities):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probabilities, np.float64))


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
@pytest.mark.parametrize("masked", [(), (2,), (0, 4)])
def test_it_agrees_with_its_definition_also_where_classes_are_masked(scale, masked):
    rng = np.random.default_rng(0)
    first, second = scale * rng.normal(size=(2, 80, 6)).astype(np.float32)
    first[:, list(masked)] = -np.inf
    second[:, list(masked[:1])] = -np.inf
    assert mean_divergence(first, second) == pytest.approx(by_definition(first, second), rel=1e-9)


def test_two_classes_have_a_closed_form():
    # KL((1/2, 1/2), (3/4, 1/4)) = log(4/3) / 2 and KL((1, 0), (3/4, 1/4)) = log(4/3).
    expected = (np.log(4 / 3) / 2 + np.log(4 / 3)) / 2
    assert mean_divergence(logits_of([[0.5, 0.5]]), logits_of([[1.0, 0.0]])) == pytest.approx(expected)


def test_it_is_the_mean_over_samples():
    same, left, right = [0.3, 0.7], [1.0, 0.0], [0.0, 1.0]
    value = mean_divergence(logits_of([same, same, left, left]), logits_of([same, same, same, right]))
    one = by_definition(logits_of([left]), logits_of([same]))
    assert value == pytest.approx((0 + 0 + one + np.log(2)) / 4)


def test_it_is_symmetric_and_what_is_added_to_all_logits_of_a_sample_does_not_matter():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 30, 5)) * 4
    value = mean_divergence(first, second)
    assert mean_divergence(second, first) == pytest.approx(value)
    assert mean_divergence(first + 1e3 * rng.normal(size=(30, 1)), second) == pytest.approx(value)
    assert 0 < value < np.log(2)


def test_huge_logits_are_certain_answers():
    certain = 1e5 * np.eye(3, dtype=np.float32)
    assert mean_divergence(certain, certain) == 0.0
    assert mean_divergence(certain, np.roll(certain, 1, axis=0)) == pytest.approx(np.log(2))


@pytest.mark.parametrize(("confidence", "difference"), [(5, 1e-7), (20, 1e-5), (32, 0.1), (36, 1.0), (40, 3.0)])
def test_nearly_equal_certain_answers_are_near_zero_and_a_number(confidence, difference):
    # The divergence is far below the rounding of its terms, whose sum may come out just below 0.
    rng = np.random.default_rng(0)
    first = (rng.normal(size=(2000, 10)) + confidence * np.eye(10)[[3]]).astype(np.float32)
    second = (first + difference * rng.normal(size=first.shape)).astype(np.float32)
    assert mean_divergence(first, second) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("scale", [0.1, 3.0, 2000.0])
def test_the_activation_distance_is_the_length_between_softmaxes(scale):
    rng = np.random.default_rng(2)
    first, second = scale * rng.normal(size=(2, 40, 5)).astype(np.float32)
    second[:, 1] = -np.inf
    expected = []
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        p, q = ([math.exp(value - max(row)) for value in row] for row in (one, other))
        expected.append(math.sqrt(sum((a / sum(p) - b / sum(q)) ** 2 for a, b in zip(p, q, strict=True))))
    found = activation_distance(first, second)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(activation_distance(second, first), found)


def test_the_activation_distance_is_between_0_and_the_root_of_2():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(20, 4))
    np.testing.assert_allclose(activation_distance(logits, logits + rng.normal(size=(20, 1))), 0.0, atol=1e-12)
    certain = 1e5 * np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(activation_distance(certain, np.roll(certain, 1, axis=0)), math.sqrt(2))
    # From an even answer over two classes to a certain one.
    assert activation_distance(logits_of([[0.5, 0.5]]), logits_of([[1.0, 0.0]]))[0] == pytest.approx(math.sqrt(0.5))


def test_agreement_is_of_the_classes_answered_and_not_of_the_probabilities():
    first = np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.1, 0.0], [-np.inf, 1.0, 2.0]])
    second = np.array([[0.1, 0.0, 0.0], [3.0, 3.1, 0.0], [-9.0, 9.0, -9.0], [5.0, 1.0, 2.0]])
    np.testing.assert_array_equal(agreement(first, second), [True, False, True, False])


def test_agreement_agrees_with_a_loop():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 100, 3))
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    expected = [one.index(max(one)) == other.index(max(other)) for one, other in pairs]
    assert 10 < sum(expected) < 90
    np.testing.assert_array_equal(agreement(first, second), expected)


def test_log_odds_are_compared_sample_by_sample_with_the_mean_of_the_other_retrained_models():
    rng = np.random.default_rng(5)
    logits, labels = 3 * rng.normal(size=(4, 50, 6)), rng.integers(6, size=50)

    def phi(one):
        p = softmax(one, axis=1)[np.arange(50), labels]
        return np.log(p) - np.log1p(-p)

    def evidence(one):
        part = Predictions(one, np.zeros((50, 2)), labels)
        return Evidence(Answers(part, part, part, part))

    (metric,) = (metric for metric in metrics(()) if metric.key == "log_odds_to_retrained")
    model, *retrained = map(evidence, logits)
    context = MetricContext(None, model, retrained, False)
    found = metric.compute(context, model)
    assert found.value == pytest.approx(np.abs(phi(logits[0]) - np.mean([phi(one) for one in logits[1:]], axis=0)).mean())
    own = metric.compute(context, retrained[0])
    assert own.value == pytest.approx(np.abs(phi(logits[1]) - (phi(logits[2]) + phi(logits[3])) / 2).mean())
    with pytest.raises(NotAvailable, match="masked"):
        metric.compute(context, Evidence(model.answers.masked([int(labels[0])])))
