"""Membership attacks on scores with known answers."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import norm

from cujax.audit.membership import (
    _attack_on,
    attack_features,
    confidences,
    loss_attack_accuracy,
    loss_attack_auc,
    trained_attack,
)
from cujax.training.predict import Predictions, sample_losses


def predictions(logits, labels):
    logits = np.asarray(logits, np.float32)
    return Predictions(logits, np.zeros((len(logits), 2), np.float32), np.asarray(labels))


def gaussians(shift, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(shift, size=n)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_the_area_agrees_with_its_closed_form(shift):
    forget, held_out = gaussians(shift, 20_000)
    # Standard error of the area at 20,000 a side: at most sqrt(1 / (12 n)) * sqrt(2) = 0.003.
    assert loss_attack_auc(forget, held_out) == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.01)


def test_the_area_counts_pairs_and_half_of_ties():
    rng = np.random.default_rng(1)
    forget, held_out = rng.integers(0, 4, 9).astype(float), rng.integers(0, 4, 13).astype(float)
    pairs = [(f < h) + 0.5 * (f == h) for f in forget for h in held_out]
    assert loss_attack_auc(forget, held_out) == pytest.approx(np.mean(pairs))


def test_a_low_loss_is_membership_and_the_reverse_is_below_chance():
    assert loss_attack_auc(np.zeros(10), np.ones(10)) == 1.0
    assert loss_attack_auc(np.ones(10), np.zeros(10)) == 0.0


def test_the_area_depends_on_the_order_of_the_losses_alone():
    forget, held_out = gaussians(0.7, 500)
    assert loss_attack_auc(np.exp(3 * forget), np.exp(3 * held_out)) == loss_attack_auc(forget, held_out)


def test_the_fitted_attack_is_at_chance_or_at_the_best_threshold():
    same = loss_attack_accuracy(*gaussians(0.0, 4000))
    apart = loss_attack_accuracy(*gaussians(2.0, 4000))
    assert same == pytest.approx(0.5, abs=0.03)
    assert apart == pytest.approx(norm.cdf(1.0), abs=0.02)


def test_sides_of_unequal_size_are_sampled_to_equal_ones():
    forget, held_out = gaussians(0.0, 3000)
    assert loss_attack_accuracy(forget, held_out[:100]) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("attack", [loss_attack_auc, loss_attack_accuracy])
def test_infinite_losses_and_too_few_samples_are_told(attack):
    with pytest.raises(ValueError, match="forget losses are not all finite"):
        attack(np.array([np.inf] * 20), np.zeros(20))
    with pytest.raises(ValueError, match="held-out losses are not all finite"):
        attack(np.zeros(20), np.array([0.0] * 19 + [np.nan]))
    with pytest.raises(ValueError, match="there are 0 held-out samples"):
        attack(np.zeros(20), np.zeros(0))
    with pytest.raises(ValueError, match="needs at least 10"):
        loss_attack_accuracy(np.zeros(20), np.zeros(9))


def taken_for_unseen(*values):
    return 1 - trained_attack(*values).is_member.mean()


def test_the_confidence_attack_tells_members_from_others():
    rng = np.random.default_rng(0)
    members, others = rng.uniform(0.8, 1.0, 500), rng.uniform(0.0, 0.2, 400)
    assert taken_for_unseen(members, others, rng.uniform(0.85, 0.95, 50)) == 0.0
    assert taken_for_unseen(members, others, rng.uniform(0.05, 0.15, 50)) == 1.0
    half = np.concatenate([np.full(25, 0.9), np.full(25, 0.1)])
    assert taken_for_unseen(members, others, half) == 0.5


def test_the_confidence_attack_learns_from_as_many_members_as_others():
    # Members are certain in 7 of 10 cases, others in 3. Unbalanced, members would be the majority at both values.
    members, others = np.repeat([0.9, 0.1], [1400, 600]), np.repeat([0.9, 0.1], [60, 140])
    assert taken_for_unseen(members, others, np.full(5, 0.1)) == 1.0
    assert taken_for_unseen(members, others, np.full(5, 0.9)) == 0.0


def test_losses_agree_with_float64():
    rng = np.random.default_rng(0)
    logits = (10.0 ** rng.uniform(-2, 5, size=(60, 1)) * rng.normal(size=(60, 8))).astype(np.float32)
    logits[:20, 3] = -np.inf
    labels = np.where(np.arange(60) % 8 == 3, 4, np.arange(60) % 8)
    expected = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(60), labels]
    assert expected.max() > 1e4
    np.testing.assert_allclose(sample_losses(predictions(logits, labels)), expected, rtol=1e-12, atol=1e-12)


def test_losses_and_confidences_are_stable():
    found = predictions([[1000.0, 0.0], [0.0, 1000.0], [-np.inf, 3.0], [1.0, 2.0]], [0, 0, 0, 1])
    losses = sample_losses(found)
    np.testing.assert_allclose(losses, [0.0, 1000.0, np.inf, np.log(1 + np.exp(-1.0))], rtol=1e-12)
    np.testing.assert_allclose(confidences(found), np.exp(-losses))


def features_by_loops(logits, labels):
    """Each feature from probabilities, in the words of its definition."""
    found = {name: [] for name in ("correctness", "confidence", "entropy", "modified_entropy")}
    for row, label in zip(logits.astype(np.float64).tolist(), labels, strict=True):
        weights = [math.exp(value - max(row)) for value in row]
        p = [weight / math.fsum(weights) for weight in weights]
        others = [p[k] for k in range(len(p)) if k != label]
        found["correctness"].append(float(all(row[label] >= value for value in row)))
        found["confidence"].append(p[label])
        found["entropy"].append(-sum(value * math.log(value) for value in p if value > 0))
        modified = -(1 - p[label]) * math.log(p[label]) if p[label] < 1 else 0.0
        found["modified_entropy"].append(modified - sum(value * math.log(1 - value) for value in others))
    return found


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_what_attacks_read_agrees_with_loops(scale):
    rng = np.random.default_rng(0)
    logits, labels = (scale * rng.normal(size=(60, 5))).astype(np.float32), rng.integers(0, 5, 60)
    found = attack_features(predictions(logits, labels))
    expected = features_by_loops(logits, labels)
    assert list(found) == list(expected)
    for name, values in found.items():
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_what_attacks_read_of_masked_and_of_certain_answers():
    found = attack_features(predictions([[-np.inf, 0.0, 0.0], [800.0, 0.0, -np.inf], [0.0, 0.0, -np.inf]], [1, 0, 0]))
    np.testing.assert_array_equal(found["correctness"], [1, 1, 1])
    np.testing.assert_allclose(found["confidence"], [0.5, 1.0, 0.5])
    np.testing.assert_allclose(found["entropy"], [np.log(2), 0.0, np.log(2)], atol=1e-12)
    # -(1/2) log(1/2) - (1/2) log(1/2)
    np.testing.assert_allclose(found["modified_entropy"], [np.log(2), 0.0, np.log(2)], atol=1e-12)


def test_modified_entropy_tells_a_certain_answer_that_is_wrong_from_one_that_is_right_and_entropy_does_not():
    found = attack_features(predictions([[9.0, 0.0], [9.0, 0.0]], [0, 1]))
    assert found["entropy"][0] == pytest.approx(found["entropy"][1])
    assert found["modified_entropy"][0] < 0.01
    assert found["modified_entropy"][1] == pytest.approx(18.0, rel=1e-3)


@pytest.mark.parametrize(("apart", "weight"), [(1.0, 1 / (1 - np.exp(-1.0))), (0.3, 3.0)])
def test_the_trained_attack_of_one_sample_a_side_has_a_closed_form(apart, weight):
    # The dual: the weight 1 / (1 - k(a, b)) of both, or C = 3 where that is larger.
    forget = np.array([-1.0, 0.0, 0.15, 0.5, apart, 2.0])
    found = trained_attack(np.array([apart]), np.array([0.0, 0.0]), forget)

    def score(x):
        return weight * (np.exp(-((x - apart) ** 2)) - np.exp(-(x**2)))

    np.testing.assert_allclose(found.scores, [score(x) for x in forget], atol=1e-3)
    np.testing.assert_allclose(found.other_scores, [score(0.0)] * 2, atol=1e-3)
    clear = np.abs([score(x) for x in forget]) > 1e-6
    np.testing.assert_array_equal(found.is_member[clear], [score(x) > 0 for x in forget[clear]])


def test_all_samples_are_scored_by_an_attack_that_agrees_with_the_one_that_decides():
    rng = np.random.default_rng(1)
    retain, test, forget = rng.normal(1.0, 1.0, 80), rng.normal(0.0, 1.0, 130), rng.normal(0.6, 1.0, 50)
    found = trained_attack(retain, test, forget)
    assert (found.is_member.shape, found.scores.shape, found.other_scores.shape) == ((50,), (50,), (130,))
    assert found.is_member.dtype == bool
    assert np.mean(found.is_member == (found.scores > 0)) > 0.9
    assert np.isfinite([*found.scores, *found.other_scores]).all()
    assert 0.1 < found.is_member.mean() < 0.95
    assert found.scores.mean() > found.other_scores.mean()


def test_the_seed_decides_which_samples_the_trained_attack_learns():
    rng = np.random.default_rng(2)
    sides = rng.normal(0.5, 1.0, 200), rng.normal(0.0, 1.0, 40), rng.normal(size=30)
    first, again, other = trained_attack(*sides), trained_attack(*sides), trained_attack(*sides, seed=1)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert (first.scores != other.scores).any()


def test_modified_entropy_stays_finite_where_a_wrong_class_is_certain():
    made = predictions(np.array([[0.0, 50.0], [50.0, 0.0]], np.float32), np.array([0, 0]))
    # -(1 - e^-50) log e^-50 - 1 log(1 - 1 / (1 + e^-50)), both terms 50; and where the label is certain, nothing.
    np.testing.assert_allclose(attack_features(made)["modified_entropy"], [100.0, 0.0], atol=1e-12)


@pytest.mark.parametrize(("n_test", "n_forget"), [(30, 30), (30, 200), (200, 30), (11, 1)])
def test_the_scores_of_a_trained_attack_on_noise_are_chance(n_test, n_forget):
    """Test samples that the attack was fitted on would look like non-members: an area of .55 at 30 of them."""
    areas = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        retain, test, forget = (rng.random(n) for n in (300, n_test, n_forget))
        found = trained_attack(retain, test, forget, seed)
        assert len(found.scores) == n_forget
        assert len(found.other_scores) == n_test
        pairs = np.sign(found.scores[:, None] - found.other_scores[None, :])
        areas.append(np.mean((pairs + 1) / 2))
    error = np.std(areas) / np.sqrt(len(areas))
    assert abs(np.mean(areas) - 0.5) < 4 * error + 0.005


def test_an_attack_that_was_trained_before_is_the_same_attack():
    rng = np.random.default_rng(7)
    sides = [rng.normal(shift, size=n) for shift, n in ((1.0, 40), (0.0, 30), (0.5, 20))]
    expected = trained_attack(*sides)
    for _ in range(2):
        for found, wanted in zip(_attack_on(*(side.tobytes() for side in sides)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    other = _attack_on(sides[0].tobytes(), sides[1].tobytes(), (sides[2] + 1).tobytes())
    assert not np.array_equal(other.scores, expected.scores)


def test_a_trained_attack_still_finds_members():
    rng = np.random.default_rng(0)
    retain, test, forget = rng.normal(2, 1, 300), rng.normal(0, 1, 60), rng.normal(2, 1, 50)
    found = trained_attack(retain, test, forget)
    assert np.mean(found.scores[:, None] > found.other_scores[None, :]) > 0.8
    assert found.is_member.mean() > 0.7
