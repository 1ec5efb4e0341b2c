"""When a run may end before its last pass. A stop rule sees validation data only, and claims nothing about forgetting."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from scipy.stats import rankdata

from cujax.registry import Registry
from cujax.training.predict import Predictions, nearest_class_mean, sample_losses


@dataclass(frozen=True)
class Check:
    """What was seen after a pass; all accuracies are fractions.

    Attributes:
        step: Optimiser steps so far.
        forget_accuracy: Class task: on validation samples of the forgotten classes or on the forget set, whichever is
            higher (a small class has too few validation samples to decide alone). Sample task: on the forget set.
        target: What `forget_accuracy` should be. Class task: a threshold near 0. Sample task: the accuracy on validation
            samples of the same classes, now or before the first step, whichever is higher: a run that harms the model
            must not lower its own bar; None where no sample is held out.
        retain_accuracy: On validation samples of the retained classes; on some of the retain set where there are none.
        reason: Why the stop rule holds, in words; "" where it does not.
    """

    step: int
    forget_accuracy: float
    target: float | None
    retain_accuracy: float
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the stop rule holds."""
        return bool(self.reason)

    @property
    def distance(self) -> float:
        """How far the accuracy on the forget set is from its target, on either side; 0 where there is none."""
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
    """What a stop rule decides by.

    Attributes:
        check: The accuracies.
        forget: What the model answers on the forget set.
        held_out: What it answers on validation samples of the same classes; empty where there are none.
        retained: What it answers on validation samples of the classes that stay; None where it was not looked at.
    """

    check: Check
    forget: Predictions
    held_out: Predictions
    retained: Predictions | None = None


class StopRule(Protocol):
    """Decides whether a run may end: a frozen dataclass, so that equal rules are equal values."""

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run now, in words; None to go on."""


@dataclass(frozen=True)
class AccuracyRule:
    """Holds where accuracy on the forget set is at most its target."""

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run now, in words; None to go on."""
        check = observation.check
        if check.target is None or check.forget_accuracy > check.target:
            return None
        return f"accuracy {check.forget_accuracy:.3f} on the forget set is at most {check.target:.3f}"


@dataclass(frozen=True)
class LossRule:
    """Holds where the loss of the forget set is no lower than that of held-out samples of the same classes.

    That is where the area under the ROC curve of an attacker who takes a low loss for membership is at most 0.5. It can
    still move where accuracies cannot: samples that any model gets right have lower losses if they were learned.
    """

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run now, in words; None to go on, also where there is no held-out sample."""
        forget, held_out = sample_losses(observation.forget), sample_losses(observation.held_out)
        if not len(forget) or not len(held_out):
            return None
        ranks = rankdata(np.concatenate([held_out, forget]))[len(held_out) :]
        lower = len(held_out) - (ranks.sum() / len(forget) - (len(forget) + 1) / 2)
        area = float(lower / len(held_out))
        return None if area > 0.5 else f"the loss of the forget set is no lower than held-out samples' (AUC {area:.3f})"


@dataclass(frozen=True)
class ProbeRule:
    """Holds where embeddings no longer show a forgotten class: the nearest class mean finds at most half of its samples.

    The means are of the forget set and of validation samples of the classes that stay; it is asked about validation samples
    of the forgotten classes. Half is where retrained models lie on digits (.31 to .50, the original at .98). It can still
    move where answers cannot, such as those of a head that never gives the class.
    """

    at_most: float = 0.5

    def holds(self, observation: Observation) -> str | None:
        """The reason to end the run now, in words; None to go on, also where a class is retained, too, or not held out."""
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
    """Never holds: the run makes all its passes."""

    def holds(self, observation: Observation) -> None:
        """None: go on."""
        del observation


def rule_that_can_tell(rule: StopRule, before: Observation, *, class_task: bool) -> StopRule:
    """The rule that a run ends by: the given one, unless it holds before the first step, where it can tell nothing.

    Then samples are forgotten until their loss shows nothing, and classes until their embeddings do not; where that holds
    from the start, too, all passes are made.

    Args:
        rule: What the run was to end by.
        before: What is seen before the first step.
        class_task: Whether whole classes are to be forgotten.
    """
    if rule.holds(before) is None:
        return rule
    other: StopRule = ProbeRule() if class_task else LossRule()
    usable = len(before.held_out.labels) and other.holds(before) is None
    if class_task:
        usable = usable and before.retained is not None
    return other if usable else NoRule()


# By the name that a configuration gives them; other packages add theirs as entry points `cujax.stop_rules`.
STOP_RULES: Registry[type[StopRule]] = Registry(
    "stop rule", "cujax.stop_rules", {"accuracy": AccuracyRule, "loss": LossRule, "none": NoRule}
)
