"""The metrics on which the verdict on an unlearned model is based, their families, and the scales of comparison."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Task = Literal["class", "samples"]
Family = Literal["answers", "attack", "features", "return", "noise", "likeness", "retained"]
Kind = Literal["share", "area", "divergence", "steps", "ratio"]


@dataclass(frozen=True)
class KeyMetric:
    """A metric on which the verdict is based.

    Attributes:
        key: Its name in reports.
        family: What it is evidence of.
        kind: "share" and "area" (an AUC) are compared as 2·arcsin √x, "divergence" as log x (at least 1e-6), "steps" as
            log(steps + 1), "ratio" (of steps, to retrained models' mean) as log x (at least .02).
        remembered: +1 if remembering makes it larger, −1 if smaller, 0 if it has no side and can only be different.
        pairwise: Whether a retrained model is compared with the K − 1 others. This shrinks their spread.
        ended_at: The largest value that is searched for; larger values are censored there.
    """

    key: str
    family: Family
    kind: Kind
    remembered: Literal[-1, 0, 1] = 1
    pairwise: bool = False
    ended_at: float | None = None

    def transformed(self, values: np.ndarray) -> np.ndarray:
        """The values, `[k]`, on the scale on which they are compared.

        Raises:
            ValueError: if a share or an area is not in 0 to 1, or another value is negative.
        """
        highest = 1.0 if self.kind in ("share", "area") else math.inf
        if (values < -1e-6).any() or (values > highest + 1e-6).any():
            raise ValueError(f"{self.key} must be from 0 to {highest:g}, but is {values.tolist()}.")
        if self.kind in ("share", "area"):
            return np.asarray(2 * np.arcsin(np.sqrt(np.clip(values, 0, 1))))
        if self.kind == "steps":
            return np.asarray(np.log1p(np.maximum(values, 0)))
        return np.asarray(np.log(np.maximum(values, 1e-6 if self.kind == "divergence" else 0.02)))

    def floor(self, n: int | None) -> float:
        """The minimum standard deviation on that scale: 1/√n for a share or an area of n samples, .05 for a logarithm.

        Retrained models with equal values have no spread of their own. All models see the same samples, which 1/√n ignores:
        it errs on the side of caution.

        Raises:
            ValueError: if a share or an area has no samples.
        """
        if self.kind not in ("share", "area"):
            return 0.05
        if n is None or n < 1:
            raise ValueError(f"n of {self.key} must be at least 1, but is {n}.")
        return 1 / math.sqrt(n)

    def smallest_difference(self, n: int | None) -> float:
        """The smallest difference, in the metric's own unit, that counts: 2 samples for a share, .02 for an area."""
        return {"share": 2 / (n or 1), "area": 0.02}.get(self.kind, 0.0)


def key_metrics(task: Task, below_z: str = "hidden") -> tuple[KeyMetric, ...]:
    """The key metrics of a task, family by family.

    Args:
        task: "class" if whole classes were to be forgotten, "samples" otherwise.
        below_z: The depth one layer below the embedding z.

    >>> [metric.key for metric in key_metrics("class") if metric.family == "features"]
    ['probe_z', 'probe_hidden', 'nearest_class_mean']
    """
    only_class, only_samples = task == "class", task == "samples"
    table = (
        (only_class, KeyMetric("forget_test_accuracy", "answers", "share")),
        (only_samples, KeyMetric("forget_train_accuracy", "answers", "share")),
        (True, KeyMetric("mia_loss_auc", "attack", "area")),
        (only_samples, KeyMetric("mia_confidence_auc", "attack", "area")),
        (True, KeyMetric("probe_z", "features", "share")),
        (only_class, KeyMetric(f"probe_{below_z}", "features", "share")),
        (only_class, KeyMetric("nearest_class_mean", "features", "share")),
        (True, KeyMetric("relearning_steps", "return", "steps", remembered=-1, ended_at=300)),
        (only_samples, KeyMetric("residual_knowledge", "noise", "share")),
        (True, KeyMetric("js_to_retrained", "likeness", "divergence", remembered=0, pairwise=True)),
        (True, KeyMetric("agreement", "likeness", "share", remembered=0, pairwise=True)),
        (only_class, KeyMetric("class_inference_auc", "likeness", "area", remembered=0)),
        (True, KeyMetric("retain_test_accuracy", "retained", "share", remembered=0)),
        (True, KeyMetric("test_accuracy", "retained", "share", remembered=0)),
    )
    return tuple(metric for belongs, metric in table if belongs)
