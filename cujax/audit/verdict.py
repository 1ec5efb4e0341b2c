"""Whether a figure lies where those of retrained models lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cujax.audit.intervals import Estimate, NotAvailable

FEWEST_RETRAINED = 5

Word = Literal["within", "above", "below", "not judged"]


@dataclass(frozen=True)
class Verdict:
    """How a figure lies to the retrained models'.

    Attributes:
        word: "within" their range, "above" or "below" it, or "not judged".
        outside_by: How far outside of it.
        low: Where the range begins: at the lowest of the lower ends of the retrained models' intervals.
        high: Where it ends.
        reason: Why it was not judged.
    """

    word: Word
    outside_by: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def judge(estimate: Estimate, references: Sequence[Estimate], fewest: int = FEWEST_RETRAINED) -> Verdict:
    """Holds a figure against the range of at least 5 retrained models, widened by their bootstrap intervals, on both sides.

    More forgotten than any retrained model is distinguishable, too.

    Args:
        estimate: The figure.
        references: The same of each retrained model.
        fewest: How many there must be.
    """
    if len(references) < fewest:
        return Verdict("not judged", reason=f"{len(references)} retrained models are too few for a range; it takes {fewest}")
    try:
        ends = [
            reference.interval() if reference.interval else (reference.value, reference.value) for reference in references
        ]
    except NotAvailable as reason:
        return Verdict("not judged", reason=str(reason))
    if not np.isfinite([estimate.value, *np.ravel(ends)]).all():
        return Verdict("not judged", reason="a figure is not a number")
    low = min(start for start, _ in ends)
    high = max(end for _, end in ends)
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    if estimate.value > high + slack:
        return Verdict("above", estimate.value - high, low, high)
    if estimate.value < low - slack:
        return Verdict("below", low - estimate.value, low, high)
    return Verdict("within", 0.0, low, high)
