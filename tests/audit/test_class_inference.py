"""Class inference learns from known models and judges others, by what is left without the forgotten class."""

import functools
import math

import numpy as np
import pytest

from cujax.audit.class_inference import class_inference

FORGOTTEN = 1


def synthetic(seed, n=40, classes=5, models=4):
    """An original whose answers lean to class 0, and models that all come from one distribution."""
    rng = np.random.default_rng(seed)
    base = 1.5 * rng.normal(size=(n, classes))

    def model(lean):
        fingerprint = 0.7 * rng.normal(size=classes)  # each model's own, on all samples
        return base + fingerprint + 0.5 * rng.normal(size=(n, classes)) + lean * np.eye(classes)[0]

    return model(2.0), [model(0.0) for _ in range(models)]


def area(scores, others):
    return np.mean([(s > o) + 0.5 * (s == o) for s in scores for o in others])


def scores_of(model, held, original, known, forgotten=(FORGOTTEN,)):
    return class_inference(model, held, original_logits=original, known_reference_logits=known, forgotten_classes=forgotten)


@pytest.mark.parametrize("n", [10, 11, 40])
def test_half_of_the_samples_are_judged(n):
    original, references = synthetic(0, n, models=5)
    scores, others = scores_of(references[0], references[1:3], original, references[3:])
    assert scores.shape == (n - n // 2,)
    assert others.shape == (2, n - n // 2)


def test_models_that_cannot_be_told_apart_have_an_area_of_one_half_on_average():
    areas = []
    for seed in range(40):
        original, (model, held, *known) = synthetic(seed)
        areas.append(area(*scores_of(model, [held], original, known)))
    error = np.std(areas, ddof=1) / math.sqrt(40)
    assert error < 0.05
    assert np.mean(areas) == pytest.approx(0.5, abs=4 * error)


def test_a_model_that_answers_as_the_original_did_is_found_out():
    areas = []
    for seed in range(5):
        original, (held, *known) = synthetic(seed)
        areas.append(area(*scores_of(original, [held], original, known)))
    assert np.mean(areas) > 0.75


def test_a_model_that_answers_the_other_way_is_below_one_half():
    original, (held, *known) = synthetic(3)
    leaning_away = held - 3 * np.eye(5)[0]
    assert area(*scores_of(leaning_away, [held], original, known)) < 0.3


def test_the_logit_of_the_forgotten_class_is_not_read():
    original, references = synthetic(1)
    before = scores_of(references[0], [references[1]], original, references[2:])
    rng = np.random.default_rng(2)
    for model, value in zip([original, *references], (50.0, -np.inf, -80.0, 0.0, 7.0), strict=True):
        model[:, FORGOTTEN] = value + rng.normal(size=len(model))
    after = scores_of(references[0], [references[1]], original, references[2:])
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])


def test_all_forgotten_classes_are_left_out():
    original, references = synthetic(1)
    before = scores_of(references[0], [references[1]], original, references[2:], (1, 3))
    references[0][:, [1, 3]] = -np.inf
    after = scores_of(references[0], [references[1]], original, references[2:], (1, 3))
    np.testing.assert_array_equal(after[0], before[0])
    references[0][:, 2] += 1
    assert (scores_of(references[0], [references[1]], original, references[2:], (1, 3))[0] != before[0]).any()


def test_what_is_added_to_all_logits_of_a_sample_does_not_matter():
    original, references = synthetic(4)
    before = scores_of(references[0], [references[1]], original, references[2:])
    shift = np.random.default_rng(0).normal(0, 500, (40, 1))
    known = [reference - shift for reference in references[2:]]
    after = scores_of(references[0] + shift, [references[1] - shift], original + 2 * shift, known)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6)
    np.testing.assert_allclose(after[1], before[1], rtol=1e-6)


@functools.cache
def judged_rows():
    """The rows of 12 at which the logits of the model in question matter."""
    original, (model, held, *known) = synthetic(5, 12)
    before, _ = scores_of(model, [held], original, known)
    rows = []
    for row in range(12):
        changed = model.copy()
        changed[row, 0] += 1
        if (scores_of(changed, [held], original, known)[0] != before).any():
            rows.append(row)
    return rows


def test_what_is_learned_from_is_not_judged():
    judged = judged_rows()
    learned = [row for row in range(12) if row not in judged]
    assert len(judged) == 6
    original, (model, held, *known) = synthetic(5, 12)
    before = scores_of(model, [held], original, known)

    def scores_change(rows, *changed):
        made = []
        for logits in (model, held, original, known[0]):
            made.append(logits.copy())
            if any(logits is one for one in changed):
                made[-1][rows, 0] += 1
        after = scores_of(made[0], [made[1]], made[2], [made[3], *known[1:]])
        return [(one != other).any() for one, other in zip(after, before, strict=True)]

    assert scores_change(learned, model, held) == [False, False]
    assert scores_change(judged, original, known[0]) == [False, False]
    assert scores_change(judged, model) == [True, False]
    assert scores_change(judged, held) == [False, True]
    assert scores_change(learned, original) == scores_change(learned, known[0]) == [True, True]


def probabilities(logits, rows):
    """The softmax without the forgotten class, renormalised."""
    full = np.exp(logits[rows]) / np.exp(logits[rows]).sum(1, keepdims=True)
    rest = np.stack([full[:, k] for k in range(full.shape[1]) if k != FORGOTTEN], axis=1)
    return rest / rest.sum(1, keepdims=True)


def test_scores_are_those_of_a_balanced_logistic_regression_on_standardised_probabilities():
    original, references = synthetic(5, 12)
    judged = judged_rows()
    learned = [row for row in range(12) if row not in judged]
    known = np.concatenate([probabilities(model, learned) for model in (original, references[2], references[3])])
    knew = np.repeat([1.0, 0.0], [6, 12])
    center, spread = known.mean(0), known.std(0)
    x = np.concatenate([(known - center) / spread, np.ones((18, 1))], axis=1)
    weight = np.where(knew == 1, 18 / (2 * 6), 18 / (2 * 12))
    penalty = np.diag([1.0] * (x.shape[1] - 1) + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(30):  # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (weight * (p - knew)) + penalty @ w
        w -= np.linalg.solve((x.T * (weight * p * (1 - p))) @ x + penalty, gradient)
    scores, others = scores_of(references[0], [references[1]], original, references[2:])
    for found, model in ((scores, references[0]), (others, references[1])):
        expected = (probabilities(model, judged) - center) / spread @ w[:-1] + w[-1]
        np.testing.assert_allclose(np.sort(found.ravel()), np.sort(expected), atol=0.01)


def test_too_few_samples_and_too_few_retrained_models_are_told():
    original, references = synthetic(0, 9)
    with pytest.raises(ValueError, match=r"there are 9 samples.*needs 10"):
        scores_of(references[0], [references[1]], original, references[2:])
    original, references = synthetic(0)
    for held, known in (([], references[1:]), (references[1:], [])):
        with pytest.raises(ValueError, match="retrained models"):
            scores_of(references[0], held, original, known)
