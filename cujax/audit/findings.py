"""What an audit found: every metric with its values, what is known of each model, and the verdict."""

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
        family: What kind it is of.
        heading: Its name for people.
        question: What it asks.
        values: By model ("original", "unlearned", "masked"), the estimate, or why there is none.
        retrained: Of each retrained model; empty where one of them has none.
        judged: What the verdict makes of it; None where it takes no part in the verdict.
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

        `(u - m) / (s √(1 + 1/K))`, in the metric's own unit; of a key metric as the verdict has it. None with fewer than
        two retrained models, and where they do not differ.
        """
        if self.judged is not None:
            return self.judged.t
        unlearned, retrained = self.values["unlearned"], [estimate.value for estimate in self.retrained]
        if isinstance(unlearned, str) or len(retrained) < 2 or not (spread := float(np.std(retrained, ddof=1))):
            return None
        return float((unlearned.value - np.mean(retrained)) / (spread * np.sqrt(1 + 1 / len(retrained))))


@dataclass(frozen=True, eq=False)
class Findings:
    """What an audit found.

    Attributes:
        level: How much was computed.
        metrics: Every metric.
        verdict: What they say together.
        models: What is known of each model, for pictures; retrained models under "retrained".
        likelihood: The likelihood-ratio attack on "original", "unlearned" and "retrained" models; empty below level full.
        shadows: How many shadow models there were.
        earlier: Of each earlier request, in words, what was measured again on its samples.
        seconds_to_judge: About how long training the missing retrained models would take; None where none is missing, or
            it is not known.
    """

    level: str
    metrics: Sequence[MeasuredMetric]
    verdict: Verdict
    models: dict[str, list[Evidence]]
    likelihood: dict[str, LikelihoodAttack] = field(default_factory=dict)
    shadows: int = 0
    earlier: Sequence[tuple[str, Sequence[MeasuredMetric]]] = ()
    seconds_to_judge: float | None = None
