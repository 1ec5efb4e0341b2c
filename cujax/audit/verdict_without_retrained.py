"""What can be said about an unlearned model without retrained models: the faults that are visible by themselves.

A model that never saw some samples classifies them like other unseen samples. A model that never saw a class does not
predict it. Features from which a probe reads no more than from those of an untrained network contain nothing learned. A
large enough departure from this is a fault. The reverse is not evidence: without retrained models, there is no "no trace".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import scipy
from scipy.special import ndtr

from cujax.audit.key_metrics import Family, Task
from cujax.audit.verdict import FAULTS, HALF_WAY, INFORMATIVE, LARGEST_LOSS, LEVEL, Verdict, Word, holm

CLASS_MARGIN = 0.05
"""Accuracy on a forgotten class up to which there is no fault: a model that never saw the class has about 0."""

AREA_MARGIN = 0.02
"""By how much a loss AUC must exceed 0.5."""

READABLE = 0.9
"""The part of what training had added to an untrained network that a probe must still read.

Near 1 on purpose: a class that retrained models never saw can also be read, from features that they learned from others.
"""


@dataclass(frozen=True)
class Share:
    """A share of n samples.

    Attributes:
        value: From 0 to 1.
        n: The number of samples.

    Raises:
        ValueError: if the value is not in 0 to 1 or there are no samples.
    """

    value: float
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1 or self.n < 1:
            raise ValueError(f"a share must be from 0 to 1 of at least 1 sample, but is {self.value} of {self.n}.")

    @property
    def count(self) -> int:
        """The number of samples in the share."""
        return round(self.value * self.n)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Accuracy, on held-out forgotten samples, of a linear probe on frozen features of one depth.

    Attributes:
        unlearned: Accuracy with the unlearned model.
        original: Accuracy with the original.
        untrained: Accuracy with each network of the same kind with random weights, on the same samples.
    """

    unlearned: Share
    original: Share
    untrained: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What is known without retrained models. None, or no entry, if it was not measured.

    Attributes:
        forget_before: Accuracy of the original on the forget set; for a class, on its test samples.
        forget_after: The same for the unlearned model.
        held_out_after: Accuracy of the unlearned model on held-out samples of the same kind (validation). Unused for a
            class.
        loss_auc: AUC of distinguishing forget from held-out samples by the unlearned model's loss, with its 95 % interval:
            (value, low, high). Unused for a class, for which it cannot show remembering.
        probes: Probes by depth; give those at the embedding z and one layer below it. Closer to the image, a probe often
            reads an untrained network as well as a trained one: such a depth is not informative and decides nothing.
        retain_before: Accuracy of the original on validation samples of the retained classes.
        retain_after: The same for the unlearned model, on the same samples.
    """

    forget_before: Share | None = None
    forget_after: Share | None = None
    held_out_after: Share | None = None
    loss_auc: tuple[float, float, float] | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    retain_before: Share | None = None
    retain_after: Share | None = None


@dataclass(frozen=True)
class _Test:
    family: Family
    fault: Word
    p: float
    large_enough: bool
    words: str


def judge_without_retrained(known: Alone, task: Task, *, unchanged: bool = False, n_retrained: int = 0) -> Verdict:
    """The verdict that needs no retrained models; never "no_trace", "over_forgotten" or "distinguishable".

    Every test is one-sided, and exact where possible; Holm's method controls 5 % over all tests that are made. Each fault
    must also be large:

    | fault | test | and |
    |---|---|---|
    | `damaged` | retained accuracy below the original's (Fisher) | by more than 1 point |
    | `not_forgotten` | samples: forget accuracy above held-out accuracy (Fisher) | half of the original's excess is left |
    | | class: its accuracy above 5 % (binomial) | at least 2 samples |
    | | samples: loss AUC above .5 (normal, from its interval) | by at least .02 |
    | `hidden` | probe above untrained networks' mean (normal, 2·arcsin √x) | nine tenths of what training added are left |

    `hidden` requires this at every informative depth: one where the original is at least 4 deviations (of a sample of n)
    above the reference. The reference is the untrained networks' mean; for samples, it is at least the held-out accuracy,
    since features read unseen samples as well as that.

    The samples of two shares are treated as independent. They are the same, or similar, which makes real differences clearer
    than the test assumes: it errs on the side of caution. Samples of a request that are easier than the held-out samples
    look known although they are not; requiring that half of the excess is left guards against some of this.

    On digits, class 5, none of 12 retrained models is assigned a fault (docs/auditing.md); other data were not measured. If
    a class can be read from a retrained model nearly as well as from the original (large networks on natural images),
    "hidden" is reported too often; only retrained models can tell.

    Args:
        known: What was measured.
        task: "class" or "samples".
        unchanged: Whether the parameters are the original's.
        n_retrained: The number of retrained models, which is too small to judge by.

    >>> kept = Alone(forget_before=Share(1.0, 36), forget_after=Share(0.9, 36))
    >>> judge_without_retrained(kept, "class").word
    'not_forgotten'
    """
    missing: dict[str, str] = {}
    tests = [
        *_damage(known, missing),
        *_answers(known, task, missing),
        *_loss(known, task, missing),
        *_features(known, task, missing),
    ]
    adjusted = holm([test.p for test in tests])
    found = [test for test, p in zip(tests, adjusted, strict=True) if p <= LEVEL and test.large_enough]
    faults = tuple(fault for fault in FAULTS if any(test.fault == fault for test in found))
    return Verdict(
        word=faults[0] if faults else "not_judged",
        faults=faults,
        unchanged=unchanged,
        task=task,
        n_retrained=n_retrained,
        metrics=(),
        missing=missing,
        missing_families=("answers or attack", "features", "return"),
        reasons=tuple(test.words for fault in faults for test in found if test.fault == fault)
        or ("no fault is visible; 5 retrained models are needed to judge, 8 to say that there is no trace",),
        seen_alone={test.family: (test in found, test.words) for test in tests},
    )


def _damage(known: Alone, missing: dict[str, str]) -> list[_Test]:
    before, after = known.retain_before, known.retain_after
    if before is None or after is None:
        missing["retain_accuracy"] = "was not measured before and after"
        return []
    words = f"accuracy on retained data is {after.value:.3f} (before: {before.value:.3f})"
    return [_Test("retained", "damaged", _fisher(before, after), before.value - after.value > LARGEST_LOSS + 1e-9, words)]


def _answers(known: Alone, task: Task, missing: dict[str, str]) -> list[_Test]:
    before, after, held_out = known.forget_before, known.forget_after, known.held_out_after
    if before is None or after is None:
        missing["forget_accuracy"] = "was not measured before and after"
        return []
    if task == "class":
        p = float(scipy.stats.binom.sf(after.count - 1, after.n, CLASS_MARGIN))
        words = f"accuracy on the class is {after.value:.3f} (before: {before.value:.3f}; never seen: about 0)"
        return [_Test("answers", "not_forgotten", p, after.count >= 2, words)]
    if held_out is None:
        missing["forget_accuracy"] = "there is no held-out accuracy to compare with"
        return []
    excess = before.value - held_out.value
    words = f"accuracy on the samples is {after.value:.3f}, on unseen samples {held_out.value:.3f}"
    remains = after.value - held_out.value >= HALF_WAY * excess
    return [_Test("answers", "not_forgotten", _fisher(after, held_out), remains, words)]


def _loss(known: Alone, task: Task, missing: dict[str, str]) -> list[_Test]:
    if task == "class":
        return []
    if known.loss_auc is None or not all(map(math.isfinite, known.loss_auc)):
        missing["mia_loss_auc"] = "was not measured" if known.loss_auc is None else "a value is not a number"
        return []
    value, low, high = known.loss_auc
    if not low <= value <= high or low == high:
        missing["mia_loss_auc"] = f"{low:.3g} to {high:.3g} is not an interval of {value:.3g}"
        return []
    p = float(ndtr(-(value - 0.5) / ((high - low) / (2 * 1.959964))))
    words = f"the loss distinguishes the samples from unseen samples with an AUC of {value:.3f}"
    return [_Test("attack", "not_forgotten", p, value >= 0.5 + AREA_MARGIN, words)]


def _features(known: Alone, task: Task, missing: dict[str, str]) -> list[_Test]:
    p, large, words = [], [], []
    for depth, probe in known.probes.items():
        if not probe.untrained or not all(0 <= value <= 1 for value in probe.untrained):
            missing[f"probe_{depth}"] = "there is no untrained network to compare with"
            continue
        n, reference = probe.unlearned.n, sum(probe.untrained) / len(probe.untrained)
        variance = 1 / n + 1 / (n * len(probe.untrained))
        if task == "samples":
            if known.held_out_after is None:
                missing[f"probe_{depth}"] = "there is no held-out accuracy to compare with"
                continue
            if known.held_out_after.value > reference:
                reference, variance = known.held_out_after.value, 1 / n + 1 / known.held_out_after.n
        nothing, all_of_it, left = (_arcsine(value) for value in (reference, probe.original.value, probe.unlearned.value))
        if all_of_it - nothing < INFORMATIVE / math.sqrt(probe.original.n):
            missing[f"probe_{depth}"] = "a probe reads no more from the original than from a network that learned nothing"
            continue
        p.append(float(ndtr(-(left - nothing) / math.sqrt(variance))))
        large.append(probe.unlearned.value - reference >= READABLE * (probe.original.value - reference))
        words.append(
            f"{probe.unlearned.value:.3f} at {depth} (original {probe.original.value:.3f}, learned nothing {reference:.3f})"
        )
    if not p:
        missing.setdefault("probes", "no depth is informative")
        return []
    return [_Test("features", "hidden", max(p), all(large), "a feature probe reads " + ", ".join(words))]


def _arcsine(share: float) -> float:
    return 2 * math.asin(math.sqrt(share))


def _fisher(higher: Share, lower: Share) -> float:
    """One-sided exact p-value of the first share being at least this much higher if both are the same."""
    right = higher.count + lower.count
    return float(scipy.stats.hypergeom.sf(higher.count - 1, higher.n + lower.n, right, higher.n))
