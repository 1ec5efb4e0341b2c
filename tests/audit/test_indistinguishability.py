"""The challenge's epsilons against every attack there is, and KLoM against histograms by hand and its closed form."""

import itertools
import math

import numpy as np
import pytest

from cujax.audit.indistinguishability import forgetting_epsilons, forgetting_quality, klom

DELTA = 1e-5


def epsilon_of(said_unlearned, said_of_oracles, delta):
    """The epsilon of one attack, from what it says of each model; 0 where it is passed over."""
    missed, alarms = said_unlearned.count(False), said_of_oracles.count(True)
    if missed == 0 and alarms == 0:
        return math.inf
    if missed == 0 or alarms == 0:
        return 0.0
    fnr, fpr = missed / len(said_unlearned), alarms / len(said_of_oracles)
    ratios = [(1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr]
    return max([0.0, *(math.log(ratio) for ratio in ratios if ratio > 0)])


def best_of_all_attacks(unlearned, references, delta=DELTA):
    """One sample: every single threshold and pair of thresholds, in both directions."""
    distinct = sorted(set(unlearned) | set(references))
    cuts = [distinct[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(distinct)), distinct[-1] + 1]
    attacks = [lambda v, t=t: v > t for t in cuts] + [lambda v, t=t: v <= t for t in cuts]
    for low, high in itertools.combinations(cuts, 2):
        attacks.append(lambda v, low=low, high=high: low < v <= high)
        attacks.append(lambda v, low=low, high=high: not low < v <= high)
    return max(epsilon_of([bool(a(v)) for v in unlearned], [bool(a(v)) for v in references], delta) for a in attacks)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (8, 8), (6, 9)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("decimals", [0, 3])
def test_epsilons_are_those_of_the_best_threshold_or_pair_of_thresholds(n, m, shift, decimals):
    rng = np.random.default_rng(n)
    unlearned = np.round(rng.normal(shift, 1.5, (n, 12)), decimals)
    references = np.round(rng.normal(0, 1.0, (m, 12)), decimals)
    expected = [best_of_all_attacks(u.tolist(), o.tolist()) for u, o in zip(unlearned.T, references.T, strict=True)]
    np.testing.assert_allclose(forgetting_epsilons(unlearned, references), expected, rtol=1e-9, atol=1e-12)


def epsilon(unlearned, references, **options):
    (found,) = forgetting_epsilons(np.array(unlearned, float)[:, None], np.array(references, float)[:, None], **options)
    return found


def test_sides_that_are_separated_have_an_infinite_epsilon_and_a_quality_of_0():
    assert epsilon([1, 2, 3], [4, 5, 6]) == math.inf
    assert epsilon([4, 5, 6], [1, 2, 3]) == math.inf
    np.testing.assert_array_equal(forgetting_quality(np.array([math.inf])), [0.0])


def test_a_pair_of_thresholds_separates_what_no_single_one_does():
    assert epsilon([4, 5, 6], [1, 2, 8, 9]) == math.inf
    assert epsilon([1, 2, 8, 9], [4, 5, 6]) == math.inf
    assert epsilon([1, 4, 8], [2, 3, 9]) < math.inf


def test_sides_that_are_the_same_have_an_epsilon_of_0_and_a_quality_of_1():
    values = np.random.default_rng(0).normal(size=(9, 5))
    found = forgetting_epsilons(values, np.random.default_rng(1).permutation(values, axis=0))
    # An interval holds as many of either side, so FPR = 1 - FNR.
    np.testing.assert_array_equal(found, 0.0)
    np.testing.assert_array_equal(forgetting_quality(found), 1.0)


def test_no_threshold_falls_between_equal_values():
    assert epsilon([1, 1, 1, 1], [1, 1, 1, 1]) == 0.0
    # Cut anywhere between, as ranks could be, half of the ones would fall on either side.
    assert epsilon([0, 1, 1, 1], [1, 1, 1, 2]) == pytest.approx(best_of_all_attacks([0, 1, 1, 1], [1, 1, 1, 2]))
    assert epsilon([1] * 5 + [2], [1] * 5 + [0]) == 0.0


def test_an_attack_with_errors_on_one_side_alone_is_passed_over():
    # Only one threshold divides these at all; it has no false positive and misses a quarter.
    assert epsilon([5, 5, 5, 0], [0, 0, 0, 0]) == 0.0
    assert epsilon([5, 5, 5, 5], [0, 0, 0, 5]) == 0.0


@pytest.mark.parametrize("n", [3, 4, 16])
def test_n_models_a_side_show_at_most_log_of_n_minus_1(n):
    # One error on either side, the fewest that count.
    extreme = epsilon([*range(10, 10 + n - 1), 0.5], [*range(n - 1), 100])
    attained = epsilon([*range(10, 10 + n - 1), -1], [*range(n - 1), 100])
    assert max(extreme, attained) <= math.log(n - 1)
    swapped = epsilon([*[10] * (n - 1), 0], [*[0] * (n - 1), 10])
    assert swapped == pytest.approx(math.log((1 - DELTA - 1 / n) * n))
    rng = np.random.default_rng(n)
    found = forgetting_epsilons(rng.normal(0.5, 1, (n, 60)), rng.normal(0, 1, (n, 60)))
    assert (found[np.isfinite(found)] <= math.log(n - 1)).all()
    assert (found >= 0).all()


def test_epsilons_depend_on_the_order_of_the_values_alone_and_not_on_which_side_is_which():
    rng = np.random.default_rng(2)
    unlearned, references = rng.normal(0.7, 1.0, (7, 20)), rng.normal(0, 1.0, (7, 20))
    found = forgetting_epsilons(unlearned, references)
    np.testing.assert_allclose(forgetting_epsilons(np.exp(unlearned), np.exp(references)), found)
    np.testing.assert_allclose(forgetting_epsilons(-unlearned, -references), found)
    np.testing.assert_allclose(forgetting_epsilons(references, unlearned), found)


def test_each_sample_has_an_epsilon_of_its_own():
    rng = np.random.default_rng(3)
    unlearned, references = rng.normal(0.5, 1.0, (6, 8)), rng.normal(0, 1.0, (6, 8))
    alone = [forgetting_epsilons(unlearned[:, [x]], references[:, [x]])[0] for x in range(8)]
    np.testing.assert_array_equal(forgetting_epsilons(unlearned, references), alone)


def test_delta_lowers_epsilon():
    sides = [10, 10, 10, 0], [0, 0, 0, 10]
    assert epsilon(*sides, delta=0.0) == pytest.approx(math.log(3))
    assert epsilon(*sides, delta=0.25) == pytest.approx(math.log(2))
    assert epsilon(*sides) == pytest.approx(math.log((0.75 - 1e-5) / 0.25))


def test_quality_halves_with_every_half_of_epsilon():
    epsilons = np.array([0.0, 0.49, 0.5, 0.99, 1.0, 3.3, np.inf])
    np.testing.assert_array_equal(forgetting_quality(epsilons), [1, 1, 0.5, 0.5, 0.25, 2.0**-6, 0])


def klom_by_hand(unlearned, references):
    """One sample: 20 bins between the least and the greatest value of both sides."""
    u, o = ([min(max(v, -100.0), 100.0) for v in side] for side in (unlearned, references))
    low, high = min(u + o), max(u + o)
    counts = []
    for side in (u, o):
        bins = [0] * 20
        for value in side:
            bins[min(int((value - low) / (high - low) * 20), 19)] += 1
        counts.append([count / len(side) if count else 1e-5 for count in bins])
    p, q = ([share / sum(side) for share in side] for side in counts)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (50, 50), (40, 90)])
def test_klom_agrees_with_histograms_by_hand(n, m):
    rng = np.random.default_rng(n)
    unlearned, references = rng.normal(1.0, 2.0, (n, 10)), rng.normal(0, 1.0, (m, 10))
    unlearned[:, 5:] *= 60  # beyond where values are clipped
    expected = [klom_by_hand(u, o) for u, o in zip(unlearned.T.tolist(), references.T.tolist(), strict=True)]
    np.testing.assert_allclose(klom(unlearned, references), expected, rtol=1e-9)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (3.0, 2.0), (-0.5, 0.5)])
def test_klom_of_many_models_has_a_closed_form(shift, scale):
    rng = np.random.default_rng(4)
    found = klom(rng.normal(shift, scale, (20_000, 4)), rng.normal(0, scale, (20_000, 4)))
    # Bins as wide as 0.4 deviations blur a little, and what lies in bins that are empty on the other side adds a little.
    assert found.mean() == pytest.approx(shift**2 / (2 * scale**2), rel=0.06, abs=0.004)


def klom_of_one(unlearned, references):
    (found,) = klom(np.array(unlearned, float)[:, None], np.array(references, float)[:, None])
    return found


def test_values_at_the_right_edge_count():
    rest = 18 * 1e-5
    total = 1 + rest
    expected = 0.75 / total * math.log(0.75 / 0.5) + 0.25 / total * math.log(0.25 / 0.5)
    assert klom_of_one([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx(expected, rel=1e-9)


def test_klom_is_the_divergence_of_the_unlearned_from_the_oracles_and_not_the_reverse():
    one, other = [0, 0, 0, 1], [0] * 9 + [1]
    expected = 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1)
    assert klom_of_one(one, other) == pytest.approx(expected, rel=1e-3)
    assert klom_of_one(other, one) == pytest.approx(0.9 * math.log(0.9 / 0.75) + 0.1 * math.log(0.1 / 0.25), rel=1e-3)


def test_klom_of_sides_without_overlap_is_the_logarithm_of_what_empty_bins_hold():
    assert klom_of_one([0, 0], [1, 1, 1]) == pytest.approx(math.log(1e5), abs=0.01)


def test_infinite_log_odds_are_clipped():
    assert klom_of_one([np.inf, np.inf], [100, 5e4]) == 0.0
    assert klom_of_one([-np.inf, 0], [-100, 0]) == 0.0
    assert klom_of_one([-np.inf] * 3, [np.inf] * 3) == pytest.approx(math.log(1e5), abs=0.01)


def test_sides_that_are_the_same_have_a_klom_of_0():
    values = np.random.default_rng(5).normal(size=(30, 6))
    np.testing.assert_allclose(klom(values, values[::-1]), 0.0, atol=1e-12)
    np.testing.assert_allclose(klom(np.full((4, 2), 3.0), np.full((7, 2), 3.0)), 0.0, atol=1e-12)


def test_values_that_are_equal_up_to_rounding_have_no_divergence():
    assert klom_of_one([1.0] * 4, [np.nextafter(1.0, 2.0)] * 4) == 0.0


@pytest.mark.parametrize("metric", [klom, forgetting_epsilons])
def test_what_is_not_a_number_is_refused_and_never_the_best_score(metric):
    with pytest.raises(ValueError, match="some are NaN"):
        metric(np.full((4, 1), np.nan), np.ones((4, 1)))


def test_the_same_infinity_on_both_sides_tells_nothing():
    assert forgetting_epsilons(np.full((4, 1), -np.inf), np.full((4, 1), -np.inf))[0] == 0.0
