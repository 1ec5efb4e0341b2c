"""Membership attacks on scores with known answers."""

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import norm

from cujax.audit.membership import (
    confidences,
    loss_attack_accuracy,
    loss_attack_auc,
    sample_losses,
    trained_attack,
)
from cujax.inference import Predictions


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
