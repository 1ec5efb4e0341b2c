"""Figures and their intervals against formulas by hand, closed forms and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import bootstrap, mannwhitneyu, norm

from cujax.audit.intervals import NotAvailable, area, mean, mean_over_models, share

Z = 1.959963984540054


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 40), (3, 7), (40, 40), (123, 1000)])
def test_a_share_has_the_interval_of_wilson(successes, n):
    p = successes / n
    middle, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    estimate = share(np.random.default_rng(0).permutation(np.arange(n) < successes))
    assert estimate.value == pytest.approx(p)
    low, high = estimate.interval()
    assert low == pytest.approx((middle - half) / (1 + Z**2 / n), abs=1e-12)
    assert high == pytest.approx((middle + half) / (1 + Z**2 / n), abs=1e-12)


@pytest.mark.parametrize("n", [1, 5, 100])
def test_no_success_and_nothing_but_successes_have_intervals_with_a_width_inside_0_and_1(n):
    low, high = share(np.zeros(n, bool)).interval()
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high > 3 / (n + 4)
    mirrored = share(np.ones(n, bool)).interval()
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_a_mean_has_the_interval_of_normal_theory_where_that_holds():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    estimate = mean(values)
    total = 0.0
    for value in values:
        total += value
    center = total / 400
    error = math.sqrt(sum((value - center) ** 2 for value in values) / 400 / 400)
    assert estimate.value == pytest.approx(center)
    low, high = estimate.interval()
    # 299 resamples: an end is known to about a tenth of a standard error.
    assert low == pytest.approx(center - Z * error, abs=0.35 * error)
    assert high == pytest.approx(center + Z * error, abs=0.35 * error)


def test_the_interval_of_a_mean_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(100):
        low, high = mean(rng.normal(1.5, 1.0, 40), seed).interval()
        held += low <= 1.5 <= high
    assert 88 <= held < 100


def test_the_interval_of_an_area_holds_the_closed_form_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    truth = norm.cdf(0.8 / math.sqrt(2))
    held = 0
    for seed in range(60):
        low, high = area(rng.normal(0.8, 1.0, 30), rng.normal(0.0, 1.0, 45), seed).interval()
        held += low <= truth <= high
    assert 51 <= held < 60


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 2.0), (1.5, 1.0), (-1.0, 0.5)])
def test_the_area_of_two_gaussians_has_a_closed_form(shift, scale):
    rng = np.random.default_rng(3)
    members, others = rng.normal(shift, scale, 8000), rng.normal(0.0, scale, 8000)
    # The standard error is at most sqrt((1/n + 1/m) / 12) = 0.0046 at equal distributions, and less elsewhere.
    assert area(members, others).value == pytest.approx(norm.cdf(shift / (math.sqrt(2) * scale)), abs=0.018)


def pairs(members, others):
    """For each pair whether the member is higher, half where equal."""
    return np.array([[(m > o) + 0.5 * (m == o) for o in others] for m in members])


def test_the_area_counts_pairs_and_half_of_ties():
    rng = np.random.default_rng(4)
    members, others = rng.integers(0, 5, 13).astype(float), rng.integers(0, 4, 17).astype(float)
    assert area(members, others).value == pytest.approx(pairs(members, others).mean())


def test_both_sides_of_an_area_are_resampled():
    rng = np.random.default_rng(5)
    members, others = rng.normal(0.5, 1.0, 60), rng.normal(0.0, 1.0, 200)
    won = pairs(members, others)
    # DeLong: the spread over members and that over others both count.
    error = math.sqrt(np.var(won.mean(axis=1), ddof=1) / 60 + np.var(won.mean(axis=0), ddof=1) / 200)
    low, high = area(members, others).interval()
    assert low < won.mean() < high
    assert high - low == pytest.approx(2 * Z * error, rel=0.2)
    one_sided = math.sqrt(np.var(won.mean(axis=0), ddof=1) / 200)
    assert high - low > 1.3 * 2 * Z * one_sided


def test_values_that_are_all_equal_have_an_interval_of_one_point():
    assert mean(np.full(20, 0.25)).interval() == (0.25, 0.25)
    assert area(np.ones(12), np.ones(15)).interval() == (0.5, 0.5)
    assert area(np.ones(12), np.zeros(15)).interval() == (1.0, 1.0)


def test_the_seed_decides_the_interval_and_not_the_value():
    values = np.random.default_rng(6).normal(size=30)
    first, again, other = mean(values), mean(values), mean(values, seed=1)
    assert first.interval() == first.interval() == again.interval()
    assert other.interval() != first.interval()
    assert other.value == first.value
    sides = values[:15], values[15:]
    assert area(*sides).interval() == area(*sides).interval()
    assert area(*sides, seed=1).interval() != area(*sides).interval()


def test_a_bootstrap_of_fewer_than_10_is_refused_when_the_interval_is_asked_for_and_not_before():
    few = mean(np.arange(9.0))
    assert few.value == 4.0
    with pytest.raises(NotAvailable, match=r"only 9 values.*at least 10"):
        few.interval()
    assert mean(np.arange(10.0)).interval()
    for sides in ((np.arange(9.0), np.arange(50.0)), (np.arange(50.0), np.arange(9.0))):
        estimate = area(*sides)
        assert 0 <= estimate.value <= 1
        with pytest.raises(NotAvailable, match="only 9"):
            estimate.interval()


def test_nothing_has_no_figure():
    for figure in (share, mean):
        with pytest.raises(NotAvailable, match="no such samples"):
            figure(np.zeros(0))
    with pytest.raises(NotAvailable, match="0 samples on one side and 4 on the other"):
        area(np.zeros(0), np.zeros(4))
    with pytest.raises(NotAvailable, match="4 samples on one side and 0 on the other"):
        area(np.zeros(4), np.zeros(0))


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_scores_that_are_not_finite_have_no_area(wrong):
    spoilt = np.array([0.0] * 19 + [wrong])
    for sides in ((spoilt, np.zeros(20)), (np.zeros(20), spoilt)):
        with pytest.raises(NotAvailable, match="not all finite"):
            area(*sides)


def test_single_precision_values_have_the_mean_of_double_precision():
    values = np.full(3000, 0.1, np.float32) + np.float32(1000.0)
    assert mean(values).value == pytest.approx(float(values[0]), rel=1e-12)


def test_the_interval_of_an_area_is_that_of_scipys_rank_test_on_the_same_resamples():
    rng = np.random.default_rng(3)
    members, others = rng.normal(0.5, 1, 40).round(1), rng.normal(0, 1, 60).round(1)

    def statistic(first, second, axis):
        return mannwhitneyu(first, second, axis=axis).statistic / (40 * 60)

    found = bootstrap(
        (members, others), statistic, n_resamples=299, method="percentile", batch=100, rng=np.random.default_rng(5)
    ).confidence_interval
    assert area(members, others, seed=5).interval() == pytest.approx((found.low, found.high), rel=1e-12)


@pytest.mark.parametrize("models", [3, 5, 8])
def test_intervals_over_models_cover_the_truth_as_often_as_they_say(models):
    """Samples of one model depend on each other: an interval over pooled samples would be too narrow."""
    rng = np.random.default_rng(0)
    hits, pooled = [], []
    for _ in range(400):
        values = rng.normal(0.6, 0.1, models)[:, None] + rng.normal(0, 0.2, (models, 50))
        low, high = mean_over_models(values.mean(axis=1)).interval()
        hits.append(low <= 0.6 <= high)
        half = 1.96 * values.std(ddof=1) / np.sqrt(values.size)
        pooled.append(abs(values.mean() - 0.6) <= half)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)
    assert np.mean(pooled) < 0.7


def test_an_interval_of_a_share_over_models_stays_within_its_range():
    values = np.array([0.97, 0.99, 0.995])
    middle, half = values.mean(), stats.t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
    assert middle + half > 1
    assert mean_over_models(values, within=(0, 1)).interval() == (pytest.approx(middle - half), 1.0)
    assert mean_over_models(1 - values, within=(0, 1)).interval() == (0.0, pytest.approx(1 - middle + half))
    assert mean_over_models(values).interval()[1] == pytest.approx(middle + half)


def test_one_model_has_no_interval_over_models():
    with pytest.raises(NotAvailable, match="one model has no interval"):
        mean_over_models(np.array([0.5])).interval()
    with pytest.raises(NotAvailable, match="no model"):
        mean_over_models(np.array([]))
