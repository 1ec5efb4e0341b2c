"""Combines the figures of an unlearned model, its original and retrained models into one verdict.

Training is random, so a model that never saw the forget set is a distribution. Each key metric of the unlearned model is
compared with the predictive distribution of K retrained models (a t distribution). Holm's method controls the level of 5 %
over all key metrics, and a difference is named by its side: toward the original, away from it, or neither.

Everything here is a pure function of numbers. Out of scope: how metrics are computed (`cujax.audit.registry`), and attacks
that have one value for all models together (U-LiRA, KLOM, ε). Fitted-SVM accuracies are bimodal between retrained models
and are not key metrics. For verdicts without retrained models, see `cujax.audit.verdict_without_retrained`; for sentences,
see `cujax.audit.verdict_words`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from cujax.audit.key_metrics import Family, KeyMetric, Task, key_metrics

LEVEL = 0.05
FEWEST_FOR_FAULTS = 5
FEWEST_FOR_NO_TRACE = 8
INFORMATIVE = 4.0
HALF_WAY = 0.5
LARGEST_LOSS = 0.01
_ROUNDING = 1e-9

Word = Literal["damaged", "not_forgotten", "hidden", "over_forgotten", "distinguishable", "no_trace", "not_judged"]

FAULTS: tuple[Word, ...] = ("damaged", "not_forgotten", "hidden", "over_forgotten", "distinguishable")
"""In the order in which the first that applies names the verdict."""

ORDER: tuple[Word, ...] = ("no_trace", "not_judged", *reversed(FAULTS))
"""All verdicts from best to worst, as tables rank them: a known fault is worse than no judgement."""


def is_worse(word: Word, required: Word) -> bool:
    """Whether a verdict falls short of a required one.

    As in `ORDER`, except that `not_judged` falls short of every requirement but itself: what was not shown is not met.

    >>> is_worse("hidden", "no_trace"), is_worse("no_trace", "hidden")
    (True, False)
    >>> is_worse("not_judged", "hidden"), is_worse("not_judged", "not_judged")
    (True, False)
    """
    if word == "not_judged":
        return required != "not_judged"
    return ORDER.index(word) > ORDER.index(required)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The values of a key metric.

    Attributes:
        unlearned: Value of the model that is judged.
        original: Value of the original; None if it has none, and then c does not decide the side.
        retrained: Values of the K retrained models; for a pairwise metric, each against the K − 1 others.
        n: Number of samples behind one value of a share or an area (for an area, of the forget set); otherwise unused.
    """

    unlearned: float
    original: float | None
    retrained: Sequence[float]
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedMetric:
    """A key metric and its result. Values are in its own unit; u, o, m, s are transformed (`KeyMetric.kind`).

    Attributes:
        metric: The metric.
        unlearned: The unlearned model's value.
        original: The original's value.
        mean: The retrained models' mean.
        low: The lower end of their range.
        high: The upper end of their range.
        n: Number of samples behind one value.
        t: (u − m) / (max(s, floor) √(1 + 1/K)): the distance in prediction standard deviations.
        dof: K − 1.
        p: Two-sided p-value; for retained data one-sided, of a value this low.
        p_holm: Adjusted over all key metrics; those of retained data among themselves.
        different: Whether `p_holm` is at most .05 and the difference is not too small to count.
        c: (u − m) / (o − m): 0 for the retrained models, 1 for the original. None without a side or without an original.
        c_bound: Its upper 95 % bound: the margin. Not part of the verdict.
        side: "original", "away", or None if it is not different and c < ½.
        informative: Whether it has a side and |o − m| ≥ 4 max(s, floor): whether it could have shown remembering.
        phi: Share of the original's trace that would go unnoticed by this metric alone, at 5 %.
        phi_holm: The same at the level of Holm's first and strictest step, as in the verdict.
        fault: The fault that it is evidence of.
        note: A note on censored values; otherwise empty.
    """

    metric: KeyMetric
    unlearned: float
    original: float | None
    mean: float
    low: float
    high: float
    n: int | None
    t: float
    dof: int
    p: float
    p_holm: float
    different: bool
    c: float | None
    c_bound: float | None
    side: Literal["original", "away"] | None
    informative: bool
    phi: float | None
    phi_holm: float | None
    fault: Word | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict, in a word and in detail.

    Attributes:
        word: The first fault in the order of `FAULTS`, or "no_trace", or "not_judged".
        faults: All faults that apply, in that order.
        unchanged: Whether the parameters are the original's; noted next to the word.
        task: "class" or "samples".
        n_retrained: K.
        metrics: The key metrics that were judged.
        missing: Why others were not judged, by key.
        missing_families: Families that are required for "no trace" but have no informative metric.
        reasons: The reasons for the word, in plain words.
        seen_alone: Without retrained models, by family: whether it is a fault, and what was found.
    """

    word: Word
    faults: tuple[Word, ...]
    unchanged: bool
    task: Task
    n_retrained: int
    metrics: tuple[JudgedMetric, ...]
    missing: Mapping[str, str]
    missing_families: tuple[str, ...]
    reasons: tuple[str, ...]
    seen_alone: Mapping[Family, tuple[bool, str]] = field(default_factory=dict)


def judge(
    figures: Mapping[str, Figure | str],
    task: Task,
    *,
    unchanged: bool = False,
    metrics: Sequence[KeyMetric] | None = None,
    headings: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on an unlearned model, based on K retrained models.

    A key metric is different if t = (u − m) / (max(s, floor) √(1 + 1/K)) is too large for K − 1 degrees of freedom,
    two-sided, by Holm's method at 5 % over all key metrics. s of pairwise metrics is multiplied by (K − 1)/(K − 2).
    An informative metric also counts as remembering if it lies at least halfway to the original (c ≥ ½).
    Loss of accuracy on retained data has its own one-sided test, with Holm's method at 5 % over its metrics, and counts
    above 1 point.

    | K | possible verdicts |
    |---|---|
    | 0 to 4 | `not_judged` |
    | 5 to 7 | every fault; `not_judged` if none is found |
    | from 8 | every fault; `no_trace` if none is found and answers (or attack), features and return are informative |

    tests/audit/test_verdict.py measures how often a retrained model is assigned a fault, with 25 retrained digits models,
    of which K are drawn and the others are judged as if unlearned.

    Args:
        figures: Figures by key; a string is the reason why there is none. A key that is left out was not measured.
        task: "class" or "samples".
        unchanged: Whether the parameters are the original's.
        metrics: The table; `key_metrics(task)` by default.
        headings: Display names by key, for the reasons; by default the key.

    Raises:
        ValueError: if a key is not in the table, figures have different numbers of retrained models, or a value is out of
            its range. Non-finite values do not raise: the metric is missing.
    """
    table = key_metrics(task) if metrics is None else tuple(metrics)
    if unknown := figures.keys() - {metric.key for metric in table}:
        raise ValueError(f"{', '.join(sorted(unknown))}: not among the key metrics of the task {task!r}.")
    given = {key: figure for key, figure in figures.items() if isinstance(figure, Figure)}
    counts = {len(figure.retrained) for figure in given.values()}
    if len(counts) > 1:
        raise ValueError(f"figures must have equally many retrained models, but have {sorted(counts)}.")
    count = counts.pop() if counts else 0
    missing: dict[str, str] = {}
    measured: list[tuple[KeyMetric, Figure]] = []
    for metric in table:
        figure = figures.get(metric.key, "was not measured")
        if isinstance(figure, str):
            missing[metric.key] = figure
        elif count < FEWEST_FOR_FAULTS:
            missing[metric.key] = f"{count} retrained models are too few; it takes {FEWEST_FOR_FAULTS}"
        elif not np.isfinite([figure.unlearned, *figure.retrained, figure.original or 0.0]).all():
            missing[metric.key] = "a value is not a number"
        else:
            measured.append((metric, figure))
    judged: list[JudgedMetric] = []
    for family_is_retained in (False, True):
        group = [pair for pair in measured if (pair[0].family == "retained") == family_is_retained]
        compared = [_compared(metric, figure, len(group)) for metric, figure in group]
        adjusted = holm([found.p for found in compared])
        judged += [_decided(found, p_holm) for found, p_holm in zip(compared, adjusted, strict=True)]
    faults = tuple(fault for fault in FAULTS if any(found.fault == fault for found in judged))
    informative = {found.metric.family for found in judged if found.informative}
    needed = {"answers or attack": {"answers", "attack"}, "features": {"features"}, "return": {"return"}}
    lacking = tuple(name for name, families in needed.items() if not informative & families)
    word: Word
    if faults:
        word = faults[0]
        reasons = tuple(_reason(found, headings or {}) for fault in faults for found in judged if found.fault == fault)
    elif count >= FEWEST_FOR_NO_TRACE and not lacking:
        word, reasons = "no_trace", ("no key metric distinguishes it from a retrained model",)
    else:
        word, reasons = "not_judged", _why_not_judged(count, lacking)
    return Verdict(
        word=word,
        faults=faults,
        unchanged=unchanged,
        task=task,
        n_retrained=count,
        metrics=tuple(judged),
        missing=missing,
        missing_families=lacking,
        reasons=reasons,
    )


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values adjusted by Holm's step-down method, `[m]`: at most the level where Holm rejects.

    >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def required_samples(accuracy: float, n_retrained: int, n_metrics: int = 7) -> int:
    """How many forget samples are needed to notice, with a power of 80 %, an original that still knows all of them.

    n ≥ ((t √(1 + 1/K) + .84) / (2 (π/2 − arcsin √p₀)))², with t at the level .05 / `n_metrics` of Holm's first step.

    Args:
        accuracy: p₀, the accuracy of retrained models on the samples: what they get right anyway shows nothing.
        n_retrained: K.
        n_metrics: The number of key metrics.

    Raises:
        ValueError: if the accuracy is not in 0 to below 1, or there are fewer than 2 retrained models.

    >>> required_samples(0.885, 5), required_samples(0.885, 8)
    (86, 49)
    """
    if not 0 <= accuracy < 1:
        raise ValueError(
            f"accuracy must be at least 0 and below 1, but is {accuracy}: samples that every model gets right show nothing."
        )
    if n_retrained < 2:
        raise ValueError(f"n_retrained must be at least 2, but is {n_retrained}.")
    t = float(stdtrit(n_retrained - 1, 1 - LEVEL / 2 / n_metrics))
    away = 2 * (math.pi / 2 - math.asin(math.sqrt(accuracy)))
    return math.ceil(((t * math.sqrt(1 + 1 / n_retrained) + 0.84) / away) ** 2)


def _compared(metric: KeyMetric, figure: Figure, n_metrics: int) -> JudgedMetric:
    """Everything except what Holm's method decides."""
    retrained = np.asarray(figure.retrained, np.float64)
    count = len(retrained)
    own = metric.transformed(retrained)
    unlearned = float(metric.transformed(np.array([figure.unlearned]))[0])
    mean = float(own.mean())
    spread = float(own.std(ddof=1)) * ((count - 1) / (count - 2) if metric.pairwise else 1.0)
    deviation = max(spread, metric.floor(figure.n))
    scale = deviation * math.sqrt(1 + 1 / count)
    t = (unlearned - mean) / scale
    below = float(stdtr(count - 1, t))
    trace = c = c_bound = None
    if figure.original is not None and metric.family != "retained":
        trace = float(metric.transformed(np.array([figure.original]))[0]) - mean
        if metric.remembered and abs(trace) > _ROUNDING:
            c = (unlearned - mean) / trace
            c_bound = c + float(stdtrit(count - 1, 0.95)) * scale / abs(trace)

    def unnoticed(level: float) -> float | None:
        if trace is None:
            return None
        return float(stdtrit(count - 1, 1 - level / 2)) * scale / abs(trace) if abs(trace) > _ROUNDING else math.inf

    ended = metric.ended_at is not None and int(np.sum(retrained >= metric.ended_at))
    return JudgedMetric(
        metric=metric,
        unlearned=figure.unlearned,
        original=figure.original,
        mean=float(retrained.mean()),
        low=float(retrained.min()),
        high=float(retrained.max()),
        n=figure.n,
        t=t,
        dof=count - 1,
        p=below if metric.family == "retained" else 2 * float(stdtr(count - 1, -abs(t))),
        p_holm=1.0,
        different=False,
        c=c,
        c_bound=c_bound,
        side=None,
        informative=trace is not None and metric.remembered != 0 and abs(trace) >= INFORMATIVE * deviation,
        phi=unnoticed(LEVEL),
        phi_holm=unnoticed(LEVEL / n_metrics),
        fault=None,
        note=f"ended at {metric.ended_at:g} in {ended} of {count} retrained models" if ended else "",
    )


def _decided(found: JudgedMetric, p_holm: float) -> JudgedMetric:
    """Whether the metric is different, on which side, and which fault that is."""
    metric = found.metric
    difference = found.unlearned - found.mean
    different = p_holm <= LEVEL and abs(difference) >= metric.smallest_difference(found.n) - _ROUNDING
    found = replace(found, p_holm=float(p_holm), different=different)
    if metric.family == "retained":
        return replace(found, fault="damaged" if different and difference < -LARGEST_LOSS - _ROUNDING else None)
    if not metric.remembered:
        return replace(found, fault="distinguishable" if different else None)
    if found.informative and found.c is not None and found.c >= HALF_WAY:
        toward = True
    elif different:
        # If the original is like retrained models, the sign of (o - m) is chance, but that of remembering is known.
        toward = found.c is not None and found.c > 0 if found.informative else found.t * metric.remembered > 0
    else:
        return found
    if not toward:
        return replace(found, side="away", fault="over_forgotten")
    return replace(found, side="original", fault="not_forgotten" if metric.family in ("answers", "attack") else "hidden")


def _reason(found: JudgedMetric, headings: Mapping[str, str]) -> str:
    where = {"original": "toward the original", "away": "away from the original", None: "different"}[found.side]
    if found.fault == "damaged":
        where = "lower"
    name = headings.get(found.metric.key, found.metric.key)
    return (
        f"{name} is {found.unlearned:.4g}, retrained models {found.low:.4g} to {found.high:.4g}: {where} "
        f"by {abs(found.t):.1f} standard deviations" + (f" ({found.note})" if found.note else "")
    )


def _why_not_judged(count: int, lacking: Sequence[str]) -> tuple[str, ...]:
    if count < FEWEST_FOR_FAULTS:
        return (
            f"{count} retrained models are too few: {FEWEST_FOR_FAULTS} are needed to name a fault, and "
            f"{FEWEST_FOR_NO_TRACE} to say that there is no trace",
        )
    reasons = ["no fault found"]
    if count < FEWEST_FOR_NO_TRACE:
        reasons = [f"no fault found; {FEWEST_FOR_NO_TRACE} retrained models are needed to say that there is no trace"]
    return (*reasons, *(f"{name}: no figure could have shown the original's trace" for name in lacking))
