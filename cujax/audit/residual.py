"""Residual knowledge: near a forgotten sample, does the model still know more than one that never saw it?"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, mean
from cujax.audit.metric import Metric, MetricContext, not_looked_at
from cujax.data.batches import DeviceImages, ImageSet, examples_at
from cujax.model import Model, Variables
from cujax.training.predict import correct, predict


def share_correct_under_noise(
    model: Model, variables: Variables, images: ImageSet, indices: np.ndarray, *, norm: float, draws: int, key: jax.Array
) -> np.ndarray:
    """The share of noisy copies of each image that is answered with its label, `[n]` float64.

    Args:
        model: The network.
        variables: Its arrays.
        images: The training images.
        indices: `[n]`, of the images to perturb.
        norm: Euclidean norm of the noise relative to the image's, both normalised as the network takes them.
        draws: Noisy copies of each image; the same for every model with the same key.
        key: Of the noise.
    """
    clean = _normalised(images, indices)
    rows = np.arange(len(indices), dtype=np.int32)
    found = np.zeros(len(indices))
    for draw in range(draws):
        noise = jax.random.normal(jax.random.fold_in(key, draw), clean.images.shape)
        size = norm * _norms(clean.images) / _norms(noise)
        noisy = replace(clean, images=clean.images + size * noise)
        found += correct(predict(model, variables, noisy, rows))
    return found / draws


def residual_knowledge(shares: np.ndarray, reference_shares: np.ndarray) -> np.ndarray:
    """Whether a model knows each sample's neighbourhood better than a retrained one, `[n]` bool.

    `P[f(x + δ) = y] > P[g(x + δ) = y]` over Gaussian noise δ (Hsu et al., arXiv:2601.22359).

    Args:
        shares: `[n]` of `share_correct_under_noise`.
        reference_shares: The same of the retrained model.
    """
    return shares > reference_shares


def _normalised(images: ImageSet, indices: np.ndarray) -> DeviceImages:
    """Some images as the network takes them, in memory."""
    examples = examples_at(images, indices)
    n = len(indices)
    return DeviceImages(examples.images[:n], examples.labels[:n], images.mean, images.std)


def _norms(images: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3), keepdims=True))


def _residual(context: MetricContext, model: Evidence) -> Estimate:
    if model.shares_under_noise is None:
        raise not_looked_at()
    others = [other.shares_under_noise for other in context.others(model) if other.shares_under_noise is not None]
    return mean(np.mean([residual_knowledge(model.shares_under_noise, other) for other in others], axis=0))


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metric of this family."""
    del depths
    return [
        Metric(
            "residual_knowledge",
            "residual knowledge",
            "residual knowledge",
            "For what share of forget samples are noisy copies recognised more often than by a retrained model?",
            _residual,
        )
    ]
