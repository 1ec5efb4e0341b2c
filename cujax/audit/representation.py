"""What the features of a network still contain, whatever its last layer computes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import lazy_loader
import numpy as np
from threadpoolctl import threadpool_limits

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, NotAvailable, mean, share
from cujax.audit.metric import Metric, MetricContext, not_looked_at
from cujax.data.requests import Split
from cujax.training.predict import Predictions

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Loaded when first used: importing it takes as long as JAX.
sklearn = lazy_loader.load("sklearn")


def class_means(predictions: Predictions) -> dict[int, np.ndarray]:
    """The mean of each class's L2-normalised embeddings, itself normalised, `[d]`."""
    embeddings = _unit(predictions.embeddings)
    labels = predictions.labels
    return {int(label): _unit(embeddings[labels == label].mean(axis=0)) for label in np.unique(labels)}


def cosines_to_class_means(predictions: Predictions, means: dict[int, np.ndarray]) -> np.ndarray:
    """Cosine of each embedding to the mean of its own class, `[n]`; 1 if it coincides with it."""
    own = np.stack([means[int(label)] for label in predictions.labels])
    return np.sum(_unit(predictions.embeddings) * own, axis=1)


def divide_for_probes(split: Split, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Training images on which probes are trained, and forget images on which they are evaluated.

    Probes are trained on the retain set and, so that they know a forgotten class at all, on a random half of that class.

    Args:
        split: The split of the request.
        rng: Draws the half.
    """
    known, asked = split.retain.indices, rng.permutation(split.forget.indices)
    if split.is_class_task:
        half = len(asked) // 2
        known, asked = np.concatenate([known, asked[:half]]), asked[half:]
    return known, asked


def linear_probe(
    features: np.ndarray, labels: np.ndarray, held_out_features: np.ndarray, held_out_labels: np.ndarray
) -> np.ndarray:
    """Whether a linear classifier, trained on frozen features, is right on held-out samples, `[m]` bool.

    A logistic regression on standardised features.

    Args:
        features: `[n, d]` of the training samples.
        labels: `[n]`.
        held_out_features: `[m, d]`.
        held_out_labels: `[m]`.
    """
    return fitted_probe(features, labels).predict(held_out_features) == held_out_labels


def fitted_probe(features: np.ndarray, labels: np.ndarray, class_weight: Literal["balanced"] | None = None) -> "Pipeline":
    """A logistic regression on standardised features, on one thread: more threads spin while other work uses the cores.

    Args:
        features: `[n, d]`.
        labels: `[n]`.
        class_weight: "balanced" weights all classes equally, None all samples.
    """
    regression = sklearn.linear_model.LogisticRegression(C=0.1, tol=1e-3, max_iter=1000, class_weight=class_weight)
    with threadpool_limits(1):
        return sklearn.pipeline.make_pipeline(sklearn.preprocessing.StandardScaler(), regression).fit(features, labels)


def linear_cka(features: np.ndarray, other_features: np.ndarray) -> float:
    """Linear centred kernel alignment of two layers on the same samples, 0 to 1 (Kornblith et al., arXiv:1905.00414).

    `‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)` of the centred features, in Frobenius norms.

    Args:
        features: `[n, d]`.
        other_features: `[n, e]`, of another model or depth.
    """
    x, y = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (features, other_features))
    x_gram, y_gram = x @ x.T, y @ y.T
    norms = np.linalg.norm(x_gram) * np.linalg.norm(y_gram)
    return float(np.sum(x_gram * y_gram) / norms) if norms else 0.0


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


def _probe(depth: str) -> Callable[[MetricContext, Evidence], Estimate]:
    def compute(_: MetricContext, model: Evidence) -> Estimate:
        if depth not in model.probes:
            raise not_looked_at()
        return share(model.probes[depth])

    return compute


def _nearest_mean(_: MetricContext, model: Evidence) -> Estimate:
    if model.nearest_mean is None:
        raise not_looked_at()
    return share(model.nearest_mean)


def _cka_to_references(depth: str) -> Callable[[MetricContext, Evidence], Estimate]:
    def compute(context: MetricContext, model: Evidence) -> Estimate:
        found = [linear_cka(_features(model, depth), _features(other, depth)) for other in context.others(model)]
        return Estimate(float(np.mean(found)))

    return compute


def _cka_to_original(depth: str) -> Callable[[MetricContext, Evidence], Estimate]:
    return lambda context, model: Estimate(linear_cka(_features(model, depth), _features(context.original, depth)))


def _features(model: Evidence, depth: str) -> np.ndarray:
    if depth not in model.features:
        raise not_looked_at()
    return model.features[depth]


def _cosine(context: MetricContext, model: Evidence) -> Estimate:
    if any(model is reference for reference in context.retrained):
        raise NotAvailable("a retrained model has its own embedding space")
    former_means = context.once("former class means", lambda: class_means(context.original.answers.forget))
    return mean(cosines_to_class_means(model.answers.forget, former_means))


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family, some of them at each depth at which a network has features."""
    family = partial(Metric, family="representation")
    return [
        family(
            key="cosine_to_former_class_mean",
            heading="cosine to former class",
            question="How close are the embeddings of the forget samples to the former mean of their class?",
            compute=_cosine,
            of_answers=True,
        ),
        *(
            family(
                key=f"probe_{depth}",
                heading=f"probe at {depth}",
                question=f"How well can a linear classifier read the forget set from the features at {depth}?",
                compute=_probe(depth),
            )
            for depth in depths
        ),
        family(
            key="nearest_class_mean",
            heading="nearest class mean",
            question="For what share of forgotten samples is the nearest class mean of embeddings that of their own class?",
            compute=_nearest_mean,
        ),
        *(
            family(
                key=f"cka_{depth}",
                heading=f"CKA at {depth}, to retrained",
                question=(
                    f"How similar are the features at {depth} to those of retrained models? 1: equal up to rotation and "
                    "scale."
                ),
                compute=_cka_to_references(depth),
            )
            for depth in depths
        ),
        *(
            family(
                key=f"cka_{depth}_to_original",
                heading=f"CKA at {depth}, to original",
                question=(
                    f"How similar are the features at {depth} to those of the original? Retrained models show what to "
                    "expect."
                ),
                compute=_cka_to_original(depth),
            )
            for depth in depths
        ),
    ]
