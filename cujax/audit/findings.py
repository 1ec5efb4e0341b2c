"""What an audit found: every metric, judged, and what is known of each model."""

from dataclasses import dataclass

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate
from cujax.audit.likelihood import LikelihoodAttack
from cujax.audit.verdict import Verdict


@dataclass(frozen=True, eq=False)
class JudgedMetric:
    """One metric: its figure for each model, and how the unlearned one's lies to the retrained models'.

    Attributes:
        key: Its name in reports.
        family: What kind it is of.
        heading: Its name for people.
        question: What it asks.
        figures: By model ("original", "unlearned", "masked"), the estimate, or why there is none.
        retrained: Of each retrained model.
        verdict: On the unlearned model.
    """

    key: str
    family: str
    heading: str
    question: str
    figures: dict[str, Estimate | str]
    retrained: list[Estimate]
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Findings:
    """What an audit found.

    Attributes:
        level: How much was computed.
        judged: Every metric.
        models: What is known of each model, for pictures; retrained models under "retrained".
        likelihood: The likelihood-ratio attack on "original", "unlearned" and "retrained" models; empty below level full.
        false_alarms: Of the values of retrained models, each judged by the others: how many lie outside, and how many
            there are.
        shadows: How many shadow models there were.
        earlier: Of each earlier request, in words, what was measured again on its samples.
    """

    level: str
    judged: list[JudgedMetric]
    models: dict[str, list[Evidence]]
    likelihood: dict[str, LikelihoodAttack]
    false_alarms: tuple[int, int]
    shadows: int
    earlier: dict[str, list[JudgedMetric]]
