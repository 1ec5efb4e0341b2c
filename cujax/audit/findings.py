"""The findings of an audit: every metric with its values, what is known about each model, and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate
from cujax.audit.likelihood import LikelihoodAttack
from cujax.audit.verdict import JudgedMetric, Verdict


@dataclass(frozen=True, eq=False)
class MeasuredMetric:
    """One metric: its value for each model.

    Attributes:
        key: Its name in reports.
        family: Its family.
        heading: Its display name.
        question: The question that it answers.
        values: By model ("original", "unlearned", "masked"), the estimate, or the reason why there is none.
        retrained: Values of the retrained models; empty if one of them has none.
        judged: How the verdict judges it; None if it does not affect the verdict.
    """

    key: str
    family: str
    heading: str
    question: str
    values: dict[str, Estimate | str]
    retrained: Sequence[Estimate]
    judged: JudgedMetric | None = None

    @property
    def distance(self) -> float | None:
        """How far the unlearned model lies from the retrained models' mean, in prediction standard deviations.

        `(u - m) / (s √(1 + 1/K))`, in the metric's own unit; for a key metric, as in the verdict. None with fewer than two
        retrained models, or if they do not differ.
        """
        if self.judged is not None:
            return self.judged.t
        unlearned, retrained = self.values["unlearned"], [estimate.value for estimate in self.retrained]
        if isinstance(unlearned, str) or len(retrained) < 2 or not (spread := float(np.std(retrained, ddof=1))):
            return None
        return float((unlearned.value - np.mean(retrained)) / (spread * np.sqrt(1 + 1 / len(retrained))))


@dataclass(frozen=True, eq=False)
class Findings:
    """The findings of an audit.

    Attributes:
        level: How much was computed.
        metrics: Every metric.
        verdict: The verdict based on them.
        models: What is known about each model, for figures; retrained models under "retrained".
        likelihood: The likelihood-ratio attack on "original", "unlearned" and "retrained" models; empty below level full.
        shadows: The number of shadow models.
        earlier: For each earlier request, in words, the metrics measured again on its samples.
        seconds_to_judge: The approximate time to train the missing retrained models; None if none is missing, or if it is
            not known.
    """

    level: str
    metrics: Sequence[MeasuredMetric]
    verdict: Verdict
    models: dict[str, list[Evidence]]
    likelihood: dict[str, LikelihoodAttack] = field(default_factory=dict)
    shadows: int = 0
    earlier: Sequence[tuple[str, Sequence[MeasuredMetric]]] = ()
    seconds_to_judge: float | None = None
