"""The metrics of an audit, family by family: those of this package, and those that other packages register.

A family is a function `metrics(depths) -> [Metric, ...]` (entry points `cujax.metrics`).
"""

from collections.abc import Sequence

from cujax.audit import (
    accuracy,
    class_inference,
    distance,
    few_shot,
    from_retain,
    membership,
    recalibration,
    relearning,
    representation,
    residual,
)
from cujax.audit.metric import Metric, MetricFamily
from cujax.registry import Registry

_FAMILIES: dict[str, MetricFamily] = {
    "accuracy": accuracy.metrics,
    "membership": membership.metrics,
    "distance": distance.metrics,
    "representation": representation.metrics,
    "class_inference": class_inference.metrics,
    "relearning": relearning.metrics,
    "residual": residual.metrics,
    "recalibration": recalibration.metrics,
    "from_retain": from_retain.metrics,
    "few_shot": few_shot.metrics,
}
FAMILIES: Registry[MetricFamily] = Registry("metric family", "cujax.metrics", _FAMILIES)


def all_metrics(depths: Sequence[str]) -> list[Metric]:
    """Every metric of a network with features at these depths.

    Raises:
        ValueError: if two metrics have the same key, or one from another package cannot be loaded.
    """
    found = [metric for name in (*_FAMILIES, *FAMILIES.others()) for metric in FAMILIES.find(name)(depths)]
    keys = [metric.key for metric in found]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"the metrics {', '.join(repeated)} are registered twice; give each its own key.")
    return found


def answer_metrics() -> list[Metric]:
    """The metrics that read only answers, which every run reports."""
    return [metric for metric in all_metrics(()) if metric.of_answers]
