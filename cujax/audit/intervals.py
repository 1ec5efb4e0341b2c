"""Figures with their intervals: 95 % confidence over the samples or models from which a figure was computed."""

from collections.abc import Callable
from dataclasses import dataclass

import lazy_loader
import numpy as np
import scipy

# Loaded when first used: importing it takes as long as JAX.
sklearn = lazy_loader.load("sklearn")

CONFIDENCE = 0.95
FEWEST = 10
_RESAMPLES = 299


class NotAvailable(Exception):  # noqa: N818 - an answer, not a failure
    """Raised, with the reason, if a metric or its interval cannot be computed."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, which is computed on request.

    Attributes:
        value: The figure.
        interval: Returns its lower and upper end; may raise `NotAvailable`. None if nothing was sampled.
        n: Number of samples from which it was computed; for an area, of the forget set. None if it is not over samples.
    """

    value: float
    interval: Callable[[], tuple[float, float]] | None = None
    n: int | None = None


def share(successes: np.ndarray) -> Estimate:
    """The share of successes with Wilson's interval, which is also valid for few samples and for shares of 0 and 1.

    For these, a bootstrap would give an interval of zero width.

    Args:
        successes: `[n]` bool.

    Raises:
        NotAvailable: if there are none.

    >>> low, high = share(np.array([False] * 10)).interval()
    >>> low, round(high, 4)
    (0.0, 0.2775)
    """
    if not len(successes):
        raise NotAvailable("there are no such samples")

    def interval() -> tuple[float, float]:
        found = scipy.stats.binomtest(int(np.sum(successes)), len(successes)).proportion_ci(CONFIDENCE, "wilson")
        return float(found.low), float(found.high)

    return Estimate(float(np.mean(successes)), interval, len(successes))


def mean(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean with a percentile bootstrap over its values, `[n]`: samples, or models."""
    if not len(values):
        raise NotAvailable("there are no such samples")
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise NotAvailable("values are not all finite, so they have no mean")
    return Estimate(float(np.mean(values)), lambda: _bootstrap((values,), np.mean, seed), len(values))


def mean_over_models(values: np.ndarray, n: int | None = None, *, within: tuple[float, float] | None = None) -> Estimate:
    """The mean over models with Student's t interval: there are few models, and a bootstrap over few is too narrow.

    Args:
        values: `[M]`, one for each model, or for each group of dependent models.
        n: Number of samples behind each value.
        within: The range of the figure, (0, 1) for shares and areas; the interval ends there.

    Raises:
        NotAvailable: if there is no model, or a value is not finite.

    >>> low, high = mean_over_models(np.array([0.4, 0.6])).interval()
    >>> round(low, 2), round(high, 2)
    (-0.77, 1.77)
    >>> mean_over_models(np.array([0.4, 0.6]), within=(0, 1)).interval()
    (0.0, 1.0)
    """
    values = np.asarray(values, np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise NotAvailable("there is no model to average over" if not len(values) else "values are not all finite")

    def interval() -> tuple[float, float]:
        if len(values) < 2:
            raise NotAvailable("one model has no interval over models")
        half = float(
            scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        )
        lowest, highest = within or (-np.inf, np.inf)
        middle = float(np.mean(values))
        return max(middle - half, float(lowest)), min(middle + half, float(highest))

    return Estimate(float(np.mean(values)), interval, n)


def area(members: np.ndarray, others: np.ndarray, seed: int = 0) -> Estimate:
    """The area under the ROC curve of scores that should be higher for members, with a bootstrap over both sides.

    Args:
        members: `[n]` scores.
        others: `[m]` scores.
        seed: Seed of the bootstrap.

    Raises:
        NotAvailable: if a side is empty or a score is not finite.
    """
    if not len(members) or not len(others):
        raise NotAvailable(f"there are {len(members)} samples on one side and {len(others)} on the other")
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise NotAvailable("scores are not all finite, so no threshold on them means anything")
    scores = np.concatenate([members, others])
    value = sklearn.metrics.roc_auc_score(np.repeat([1, 0], [len(members), len(others)]), scores)
    places = np.unique(scores, return_inverse=True)[1]
    sides = places[: len(members)], places[len(members) :]
    return Estimate(float(value), lambda: _bootstrap(sides, _areas, seed), len(members))


def _areas(members: np.ndarray, others: np.ndarray, axis: int = -1) -> np.ndarray:
    """Areas of many resamples at once, from the ranks of their scores, `[..., n]` and `[..., m]`.

    Mann and Whitney's U over the number of pairs. Counting at each rank takes a tenth of the time of sorting each resample
    (`scipy.stats.mannwhitneyu`), which was half of an audit.
    """
    del axis  # SciPy resamples along the last
    n_places = 1 + int(max(members.max(), others.max()))

    def counts(places: np.ndarray) -> np.ndarray:
        rows = places.reshape(-1, places.shape[-1])
        numbered = rows + n_places * np.arange(len(rows))[:, None]
        return np.bincount(numbered.ravel(), minlength=n_places * len(rows)).reshape(*places.shape[:-1], n_places)

    at = counts(others)
    below = np.cumsum(at, axis=-1) - at
    pairs = members.shape[-1] * others.shape[-1]
    return np.sum(counts(members) * (below + at / 2), axis=-1) / pairs


def _bootstrap(samples: tuple[np.ndarray, ...], statistic: Callable, seed: int) -> tuple[float, float]:
    fewest = min(map(len, samples))
    if fewest < FEWEST:
        raise NotAvailable(f"there are only {fewest} values, but a bootstrap needs at least {FEWEST}")
    found = scipy.stats.bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
