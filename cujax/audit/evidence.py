"""What is known about one model on a split: its answers, and the results of deeper inspection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cujax.training.predict import Predictions


@dataclass(frozen=True)
class Relearning:
    """A course of fine-tuning on the forget set.

    Attributes:
        steps: Optimiser steps at which the accuracy was measured, starting from 0.
        accuracies: Accuracies on the forget set at these steps.
        target: The accuracy to regain.
        diverged: Whether the loss became non-finite before.
    """

    steps: tuple[int, ...]
    accuracies: tuple[float, ...]
    target: float
    diverged: bool = False

    @property
    def has_regained(self) -> bool:
        """Whether the target was reached."""
        return self.accuracies[-1] >= self.target

    @property
    def steps_to_regain(self) -> int:
        """Steps until the target was reached or, if it never was, the number of steps made."""
        return self.steps[-1]


@dataclass(frozen=True)
class RetainCourse:
    """What fine-tuning on the retain set alone restored.

    Attributes:
        right: Whether the model is right on each forget sample afterwards.
        diverged: Whether the loss became non-finite.
    """

    right: tuple[bool, ...]
    diverged: bool = False


@dataclass(frozen=True)
class Line:
    """The straight line from a model to the original.

    Attributes:
        distance: Euclidean distance of all parameters.
        points: Positions from 0, the model, to 1, the original.
        forget: Accuracy on forget samples at these points.
        retain: Accuracy on retained samples at these points.
    """

    distance: float
    points: tuple[float, ...]
    forget: tuple[float, ...]
    retain: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Answers:
    """One model's answers on each part of a split."""

    forget: Predictions
    retain: Predictions
    validation: Predictions
    test: Predictions

    def masked(self, classes: Sequence[int]) -> "Answers":
        """The rule-based control: the same answers with some logits set to minus infinity; no training."""
        return Answers(*(part.masked(classes) for part in (self.forget, self.retain, self.validation, self.test)))


@dataclass(frozen=True, eq=False)
class Evidence:
    """The data from which metrics of one model are computed; what was not measured is empty.

    Attributes:
        answers: Answers on each part of the split.
        features: By depth, `[n, d]`, of some test samples that are the same for every model.
        probes: By depth, whether a linear probe on frozen features is right on held-out forgotten samples, `[m]` bool.
        nearest_mean: The same for the nearest class mean of the embeddings.
        relearning: The course of fine-tuning on the forget set.
        shares_under_noise: `[k]`, for forget samples, the share of noisy copies classified as labelled.
        recalibrated: Whether the model is right on each forget sample after batch statistics are recomputed on retained
            data, bool; of length 0 if the network has none.
        from_retain: What fine-tuning on the retain set alone restored.
        line: The straight line to the original.
        few_shot: By number of labelled samples, how often a new classifier is right on held-out forgotten samples, `[m]`.
    """

    answers: Answers
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    probes: Mapping[str, np.ndarray] = field(default_factory=dict)
    nearest_mean: np.ndarray | None = None
    relearning: Relearning | None = None
    shares_under_noise: np.ndarray | None = None
    recalibrated: np.ndarray | None = None
    from_retain: RetainCourse | None = None
    line: Line | None = None
    few_shot: Mapping[int, np.ndarray] | None = None
