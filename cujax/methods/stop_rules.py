"""When a run may end before its last pass. A stop rule sees only validation data, and makes no claim about forgetting."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import scipy

from cujax.registry import Registry
from cujax.training.predict import Predictions, nearest_class_mean, sample_losses


@dataclass(frozen=True)
class Check:
    """The result of a check after a pass; all accuracies are fractions.

    Attributes:
        step: Optimiser steps so far.
        forget_accuracy: Class task: on validation samples of the forgotten classes or on the forget set, whichever is
            higher (a small class has too few validation samples to decide alone). Sample task: on the forget set.
        target: What `forget_accuracy` should be. Class task: a threshold near 0. Sample task: the accuracy on validation
            samples of the same classes, now or before the first step, whichever is higher: a run that harms the model
            must not lower its own bar. None if no samples are held out.
        retain_accuracy: On validation samples of the retained classes; on some of the retain set if there are none.
        reason: Why the stop rule is met, in words; "" if it is not.
    """

    step: int
    forget_accuracy: float
    target: float | None
    retain_accuracy: float
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the stop rule is met."""
        return bool(self.reason)

    @property
    def distance(self) -> float:
        """The distance of the accuracy on the forget set from its target, on either side; 0 if there is no target."""
        return 0.0 if self.target is None else abs(self.forget_accuracy - self.target)

    @property
    def in_words(self) -> str:
        """The accuracies, for a progress bar."""
        target = "" if self.target is None else f" (to {self.target:.2f})"
        return f"forget {self.forget_accuracy:.2f}{target}, retain {self.retain_accuracy:.2f}"

    def as_record(self) -> dict[str, Any]:
        """The numbers of this check, for the metrics of a run."""
        values = asdict(self)
        values.pop("reason")
        return {"check": values.pop("step"), **values}


@dataclass(frozen=True, eq=False)
class Observation:
    """The information on which a stop rule decides.

    Attributes:
        check: The accuracies.
        forget: The model's answers on the forget set.
        held_out: Its answers on validation samples of the same classes; empty if there are none.
        retained: Its answers on validation samples of the retained classes; None if they were not computed.
    """

    check: Check
    forget: Predictions
    held_out: Predictions
    retained: Predictions | None = None


class StopRule(Protocol):
    """Decides whether a run may end: a frozen dataclass, so that equal rules are equal values."""

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run now, in words; None to continue."""


@dataclass(frozen=True)
class AccuracyRule:
    """Is met when accuracy on the forget set is at most its target."""

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run now, in words; None to continue."""
        check = observation.check
        if check.target is None or check.forget_accuracy > check.target:
            return None
        return f"accuracy {check.forget_accuracy:.3f} on the forget set is at most {check.target:.3f}"


@dataclass(frozen=True)
class LossRule:
    """Is met when the loss of the forget set is no lower than that of held-out samples of the same classes.

    Then the area under the ROC curve of an attacker who takes a low loss as a sign of membership is at most 0.5. The loss
    can still change when accuracies cannot: samples that any model gets right have lower losses if they were learned.
    """

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run now, in words; None to continue, also if there are no held-out samples."""
        forget, held_out = sample_losses(observation.forget), sample_losses(observation.held_out)
        if not len(forget) or not len(held_out):
            return None
        ranks = scipy.stats.rankdata(np.concatenate([held_out, forget]))[len(held_out) :]
        lower = len(held_out) - (ranks.sum() / len(forget) - (len(forget) + 1) / 2)
        area = float(lower / len(held_out))
        reason = f"the loss of the forget set is no lower than that of held-out samples (AUC {area:.3f})"
        return None if area > 0.5 else reason


@dataclass(frozen=True)
class ProbeRule:
    """Is met when the nearest class mean of the embeddings finds at most half of a forgotten class's samples.

    The means are those of the forget set and of validation samples of the retained classes; they are evaluated on validation
    samples of the forgotten classes. Half is where retrained models lie on digits (.31 to .50, the original at .98). The
    figure can still change when answers cannot, such as those of a head that never predicts the class.
    """

    at_most: float = 0.5

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run, in words; None to continue, also if a class is also retained or not held out."""
        asked, forget, retained = observation.held_out, observation.forget, observation.retained
        if retained is None or not len(asked.labels) or np.isin(retained.labels, forget.labels).any():
            return None
        embeddings = np.concatenate([forget.embeddings, retained.embeddings]).astype(np.float64)
        labels = np.concatenate([forget.labels, retained.labels])
        read = float(np.mean(nearest_class_mean(embeddings, labels, asked.embeddings, asked.labels)))
        if read > self.at_most:
            return None
        return f"the nearest class mean finds the class in {read:.3f} of validation samples, at most {self.at_most:.3f}"


@dataclass(frozen=True)
class NoRule:
    """Is never met: the run makes all its passes."""

    def holds(self, observation: Observation) -> None:
        """Returns None: continue."""
        del observation


def rule_that_can_tell(rule: StopRule, before: Observation, *, class_task: bool) -> StopRule:
    """The stop rule that a run uses: the given one, unless it is met before the first step and so carries no information.

    In that case, a sample request uses the loss rule and a class request the probe rule. If that rule is also met from the
    start, all passes are run.

    Args:
        rule: The stop rule that was chosen for the run.
        before: The observation before the first step.
        class_task: Whether whole classes are to be forgotten.
    """
    if rule.holds(before) is None:
        return rule
    other: StopRule = ProbeRule() if class_task else LossRule()
    usable = len(before.held_out.labels) and other.holds(before) is None
    if class_task:
        usable = usable and before.retained is not None
    return other if usable else NoRule()


# By their names in configurations; other packages add theirs as entry points `cujax.stop_rules`.
STOP_RULES: Registry[type[StopRule]] = Registry(
    "stop rule", "cujax.stop_rules", {"accuracy": AccuracyRule, "loss": LossRule, "none": NoRule}
)
