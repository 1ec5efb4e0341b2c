"""How few labelled samples a new classifier needs to read a forgotten class from the embedding.

After "classifier-only probes" (arXiv:2604.08271). With all labelled samples, this is the probe at z (`representation`).
Networks that never saw a class can be read too, so only the difference from retrained models counts.
"""

from collections.abc import Callable, Sequence

import numpy as np

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, NotAvailable, mean
from cujax.audit.metric import Metric, MetricContext, not_looked_at_closely
from cujax.audit.representation import fitted_probe

SHOTS = (1, 5, 10)
_DRAWS = 3
_RETAINED = 1000


def few_shot_probe(
    features: np.ndarray,
    labels: np.ndarray,
    held_out_features: np.ndarray,
    held_out_labels: np.ndarray,
    *,
    classes: Sequence[int],
    shots: int,
) -> np.ndarray:
    """How often a linear classifier that has seen few samples of some classes is right on held-out ones, `[m]`.

    The classifier is a logistic regression on standardised features with equal class weights. The result is the mean over
    three draws of the few samples, which are the same for every model.

    Args:
        features: `[n, d]` of labelled samples, of the classes in question and of others; 1,000 of the others are drawn.
        labels: `[n]`.
        held_out_features: `[m, d]`.
        held_out_labels: `[m]`.
        classes: The classes of which few samples are used.
        shots: The number of samples of each.

    Raises:
        ValueError: if there are fewer labelled samples of a class.
    """
    rng = np.random.default_rng(0)
    others = np.flatnonzero(~np.isin(labels, classes))
    others = rng.choice(others, min(_RETAINED, len(others)), replace=False)
    right = np.zeros(len(held_out_labels))
    for _ in range(_DRAWS):
        few = []
        for label in classes:
            own = np.flatnonzero(labels == label)
            if len(own) < shots:
                raise ValueError(f"there are {len(own)} labelled samples of class {label}, but {shots} are needed.")
            few.append(rng.choice(own, shots, replace=False))
        rows = np.concatenate([others, *few])
        probe = fitted_probe(features[rows], labels[rows], class_weight="balanced")
        right += probe.predict(held_out_features) == held_out_labels
    return right / _DRAWS


def _read(shots: int) -> Callable[[MetricContext, Evidence], Estimate]:
    def compute(context: MetricContext, model: Evidence) -> Estimate:
        if not context.split.is_class_task:
            raise NotAvailable("the request is for samples, not classes")
        if model.few_shot is None:
            raise not_looked_at_closely()
        if shots not in model.few_shot:
            raise NotAvailable(f"there are fewer than {shots} labelled samples of a forgotten class")
        return mean(model.few_shot[shots])

    return compute


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family."""
    del depths
    return [
        Metric(
            f"few_shot_{shots}",
            "few-shot probes",
            f"probe at z, {shots} labelled",
            f"How often does a new classifier on the embedding recognise the class when trained with {shots} labelled "
            f"{'sample' if shots == 1 else 'samples'} of it?",
            _read(shots),
        )
        for shots in SHOTS
    ]
