"""The likelihood-ratio attack against explicit loops, closed forms and chance."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from cujax.audit.likelihood import LikelihoodAttack, likelihood_attack, log_odds, shadow_members
from cujax.training.predict import Predictions


def predictions(logits, labels):
    logits = np.asarray(logits, np.float32)
    return Predictions(logits, np.zeros((len(logits), 2), np.float32), np.asarray(labels))


def gaussian_models(n_models, n_samples, shift, scale=1.0, seed=0):
    """Log-odds around a mean of each sample's own, higher by a shift under models that it belongs to."""
    rng = np.random.default_rng(seed)
    is_member = shadow_members(n_samples, n_models, seed)
    phi = rng.normal(0, 5, n_samples) + rng.normal(0, scale, (n_models, n_samples)) + shift * is_member
    return phi, is_member


def test_log_odds_are_those_of_the_softmax():
    rng = np.random.default_rng(0)
    logits, labels = (3 * rng.normal(size=(40, 6))).astype(np.float32), rng.integers(0, 6, 40)
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        weights = [math.exp(value) for value in row]
        p = [weight / math.fsum(weights) for weight in weights]
        expected.append(math.log(p[label]) - math.log(math.fsum(p[:label] + p[label + 1 :])))
    np.testing.assert_allclose(log_odds(predictions(logits, labels)), expected, rtol=1e-10, atol=1e-10)


def test_log_odds_of_huge_logits_and_of_masked_classes():
    logits = [[1e4, 0.0, 0.0], [0.0, 1e4, 0.0], [1e4, 1e4, -np.inf], [-np.inf, 3.0, 1.0], [2.0, -np.inf, 2.0]]
    found = log_odds(predictions(logits, [0, 0, 1, 0, 0]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [1e4 - math.log(2), -1e4, 0.0, -np.inf, 0.0], rtol=1e-12, atol=1e-12)


def test_log_odds_leave_the_logits_as_they_were():
    made = predictions([[1.0, 2.0]], [0])
    log_odds(made)
    np.testing.assert_array_equal(made.logits, [[1.0, 2.0]])


@pytest.mark.parametrize("n_samples", [1, 10, 11])
@pytest.mark.parametrize("n_models", [2, 6, 8])
def test_pairs_divide_the_samples_and_each_sample_is_in_half_of_the_models(n_samples, n_models):
    is_member = shadow_members(n_samples, n_models)
    assert is_member.shape == (n_models, n_samples)
    assert is_member.dtype == bool
    np.testing.assert_array_equal(is_member[::2], ~is_member[1::2])
    np.testing.assert_array_equal(is_member.sum(axis=0), n_models // 2)
    sizes = is_member.sum(axis=1)
    assert set(sizes.tolist()) <= {n_samples // 2, -(-n_samples // 2)}


def test_pairs_divide_the_samples_at_random_and_each_in_its_own_way():
    is_member = shadow_members(400, 20, seed=3)
    for one, other in itertools.combinations(is_member[::2], 2):
        # Half of a half, with a standard deviation of 5.
        assert (one & other).sum() == pytest.approx(100, abs=25)
    assert is_member[::2].mean(axis=0).std() == pytest.approx(0.5 / math.sqrt(10), rel=0.2)
    assert (is_member[0] != shadow_members(400, 20, seed=4)[0]).any()


def test_models_that_are_added_do_not_change_what_the_others_are_trained_on():
    np.testing.assert_array_equal(shadow_members(31, 12, seed=5)[:6], shadow_members(31, 6, seed=5))


@pytest.mark.parametrize("n_models", [1, 7])
def test_an_odd_number_of_shadow_models_is_refused(n_models):
    with pytest.raises(ValueError, match=f"in pairs.*there are {n_models}"):
        shadow_members(10, n_models)


def log_density(value, center, deviation):
    return -0.5 * ((value - center) / deviation) ** 2 - math.log(deviation) - 0.5 * math.log(2 * math.pi)


def scores_by_loops(phi, is_member):
    n_models, n_samples = phi.shape
    scores = np.zeros(phi.shape)
    for target in range(n_models):
        pair = {target, target + 1 if target % 2 == 0 else target - 1}
        centers, squares, freedom = {}, {True: 0.0, False: 0.0}, {True: 0, False: 0}
        for x in range(n_samples):
            for side in (True, False):
                values = [phi[m, x] for m in range(n_models) if m not in pair and is_member[m, x] == side]
                centers[side, x] = sum(values) / len(values)
                squares[side] += sum((value - centers[side, x]) ** 2 for value in values)
                freedom[side] += len(values) - 1
        deviation = {side: math.sqrt(squares[side] / freedom[side]) for side in (True, False)}
        for x in range(n_samples):
            inside, outside = (log_density(phi[target, x], centers[s, x], deviation[s]) for s in (True, False))
            scores[target, x] = inside - outside
    return scores


@pytest.mark.parametrize("n_models", [6, 10])
def test_scores_agree_with_loops_over_targets_and_samples(n_models):
    phi, is_member = gaussian_models(n_models, 15, 0.8, seed=n_models)
    phi = np.where(is_member, phi, 2 * phi)  # sides of unlike spread
    found = likelihood_attack(phi, is_member)
    np.testing.assert_allclose(found.scores, scores_by_loops(phi, is_member), rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(found.is_member, is_member)


def test_a_target_is_attacked_without_its_pair():
    phi, is_member = gaussian_models(8, 12, 1.0)
    scores = likelihood_attack(phi, is_member).scores
    changed = phi.copy()
    changed[5] += np.random.default_rng(1).normal(0, 30, 12)
    again = likelihood_attack(changed, is_member).scores
    np.testing.assert_array_equal(again[4], scores[4])
    for target in (0, 1, 2, 3, 5, 6, 7):
        assert not np.allclose(again[target], scores[target])


@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (3.0, 2.0), (-1.0, 0.5)])
def test_with_many_models_the_area_comes_near_that_of_the_known_gaussians(shift, scale):
    areas = likelihood_attack(*gaussian_models(64, 300, shift, scale)).areas()
    best = norm.cdf(abs(shift) / (math.sqrt(2) * scale))
    assert areas.shape == (64,)
    # 31 models a side know the means to 0.18 scale, which costs a little; the mean over targets errs by about 0.003.
    assert best - 0.025 < areas.mean() < best + 0.01


def area_by_ranks(scores, is_member):
    ranks = np.argsort(np.argsort(scores)) + 1
    n_in, n_out = is_member.sum(), (~is_member).sum()
    return (ranks[is_member].sum() - n_in * (n_in + 1) / 2) / (n_in * n_out)


def areas_without_the_target_alone(phi, is_member):
    """What an attack would find that leaves in the pair of the target."""
    areas = []
    for target in range(len(phi)):
        others = np.arange(len(phi)) != target
        ratio = 0.0
        for side, sign in ((True, 1), (False, -1)):
            on_side = np.where(is_member[others] == side, phi[others], np.nan)
            center = np.nanmean(on_side, axis=0)
            freedom = np.sum(np.isfinite(on_side).sum(axis=0) - 1)
            deviation = math.sqrt(np.nansum((on_side - center) ** 2) / freedom)
            ratio = ratio + sign * (-0.5 * ((phi[target] - center) / deviation) ** 2 - math.log(deviation))
        areas.append(area_by_ranks(ratio, is_member[target]))
    return np.mean(areas)


def test_with_nothing_to_find_the_area_is_that_of_chance_even_for_6_models():
    found, leaky = [], []
    for seed in range(80):
        phi, is_member = gaussian_models(6, 100, 0.0, seed=seed)
        found.append(np.mean([area_by_ranks(*pair) for pair in zip(*likelihood_attack(phi, is_member), strict=True)]))
        leaky.append(areas_without_the_target_alone(phi, is_member))
    error = np.std(found, ddof=1) / math.sqrt(80)
    assert np.mean(found) == pytest.approx(0.5, abs=4 * error)
    assert error < 0.005
    # The same draws would have shown it, had only the target been left out.
    assert abs(np.mean(leaky) - 0.5) > 6 * np.std(leaky, ddof=1) / math.sqrt(80)


def test_areas_and_accuracies_count_samples():
    rng = np.random.default_rng(2)
    scores, is_member = np.round(rng.normal(size=(4, 25)), 1), rng.random((4, 25)) < 0.4
    scores[0, 0], is_member[0, 0] = 0.0, True  # a score of 0 is not above 0
    found = LikelihoodAttack(scores, is_member)
    for target in range(4):
        inside, outside = scores[target][is_member[target]], scores[target][~is_member[target]]
        won = [(i > o) + 0.5 * (i == o) for i in inside for o in outside]
        assert found.areas()[target] == pytest.approx(np.mean(won))
        right = sum((score > 0) == truth for score, truth in zip(scores[target], is_member[target], strict=True))
        assert found.accuracies()[target] == pytest.approx(right / 25)


def hits_at_one_percent(scores, is_member):
    """The largest share of members above a threshold that at most 1 % of the others are above."""
    scores, is_member = scores.ravel(), is_member.ravel()
    best = 0.0
    for threshold in np.unique(scores):
        if np.mean(scores[~is_member] >= threshold) <= 0.01:
            best = max(best, np.mean(scores[is_member] >= threshold))
    return best


@pytest.mark.parametrize("targets", [None, np.array([1, 3]), np.array([True, False, False, False])])
def test_true_positives_at_low_false_positives_are_those_of_the_best_threshold(targets):
    rng = np.random.default_rng(3)
    is_member = rng.random((4, 250)) < 0.5
    scores = rng.normal(size=(4, 250)) + 1.5 * is_member
    found = LikelihoodAttack(scores, is_member)
    rows = slice(None) if targets is None else targets
    expected = hits_at_one_percent(scores[rows], is_member[rows])
    assert 0 < expected < 0.6
    assert found.true_positives_at_low_false_positives(targets) == pytest.approx(expected)
    false_positives, true_positives = found.curve(targets)
    assert (false_positives[0], true_positives[0], false_positives[-1], true_positives[-1]) == (0, 0, 1, 1)
    assert (np.diff(false_positives) >= 0).all()
    assert (np.diff(true_positives) >= 0).all()


def test_an_attack_that_finds_nothing_at_low_false_positives_says_0_and_a_perfect_one_1():
    is_member = np.tile([True, False], 30)[None]
    assert LikelihoodAttack(np.where(is_member, -1.0, 1.0), is_member).true_positives_at_low_false_positives() == 0.0
    assert LikelihoodAttack(np.where(is_member, 1.0, -1.0), is_member).true_positives_at_low_false_positives() == 1.0


def test_models_without_any_spread_have_finite_scores():
    is_member = shadow_members(8, 6)
    found = likelihood_attack(is_member.astype(float), is_member)
    assert np.isfinite(found.scores).all()
    np.testing.assert_array_equal(found.areas(), 1.0)
    np.testing.assert_array_equal(likelihood_attack(np.zeros((6, 8)), is_member).areas(), 0.5)


@pytest.mark.parametrize("n_models", [0, 2, 4])
def test_fewer_than_6_models_are_refused(n_models):
    with pytest.raises(ValueError, match=f"{n_models} shadow models.*needs 6 or more"):
        likelihood_attack(np.zeros((n_models, 9)), shadow_members(9, n_models))


def test_pairs_that_do_not_divide_the_samples_are_refused():
    phi, is_member = gaussian_models(6, 9, 0.0)
    is_member = is_member.copy()
    is_member[3, 4] = ~is_member[3, 4]
    with pytest.raises(ValueError, match="must divide the samples"):
        likelihood_attack(phi, is_member)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_log_odds_that_are_not_finite_are_refused(wrong):
    phi, is_member = gaussian_models(6, 9, 0.0)
    phi[2, 3] = wrong
    with pytest.raises(ValueError, match="not all finite"):
        likelihood_attack(phi, is_member)
