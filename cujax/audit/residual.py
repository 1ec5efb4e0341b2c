"""Residual knowledge: near a forgotten sample, does the model still know more than a model that never saw it?"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, mean
from cujax.audit.metric import Metric, MetricContext, not_looked_at
from cujax.data.batches import DeviceImages, ImageSet, examples_at, input_shapes, is_float, noise_like
from cujax.model import Model, PyTree, Variables
from cujax.training.predict import correct, predict


def share_correct_under_noise(
    model: Model, variables: Variables, images: ImageSet, indices: np.ndarray, *, norm: float, draws: int, key: jax.Array
) -> np.ndarray | None:
    """The share of noisy copies of each sample that are classified as labelled, `[n]` float64.

    Args:
        model: The network.
        variables: Its arrays.
        images: The training images.
        indices: `[n]`, indices of the images to perturb.
        norm: Euclidean norm of the noise relative to the image's, both normalised as the network takes them.
        draws: Number of noisy copies of each image; the same copies for every model with the same key.
        key: Key of the noise.

    Returns:
        None if no input is floating-point (such as tokens): noise cannot be added to it.
    """
    if not any(map(is_float, jax.tree.leaves(input_shapes(images)))):
        return None
    clean = _normalised(images, indices)
    rows = np.arange(len(indices), dtype=np.int32)
    found = np.zeros(len(indices))
    for draw in range(draws):
        noise = noise_like(jax.random.fold_in(key, draw), clean.images)
        size = norm * _norms(clean.images) / _norms(noise)
        noisy = replace(clean, images=jax.tree.map(functools.partial(_added, size=size), clean.images, noise))
        found += correct(predict(model, variables, noisy, rows))
    return found / draws


def residual_knowledge(shares: np.ndarray, reference_shares: np.ndarray) -> np.ndarray:
    """Whether a model knows each sample's neighbourhood better than a retrained one, `[n]` bool.

    `P[f(x + δ) = y] > P[g(x + δ) = y]` over Gaussian noise δ (Hsu et al., arXiv:2601.22359).

    Args:
        shares: `[n]`, the result of `share_correct_under_noise`.
        reference_shares: The same for the retrained model.
    """
    return shares > reference_shares


def _normalised(images: ImageSet, indices: np.ndarray) -> DeviceImages:
    """Some images as the network takes them, in memory."""
    examples = examples_at(images, indices)
    n = len(indices)
    return DeviceImages(jax.tree.map(lambda rows: rows[:n], examples.inputs), examples.labels[:n], images.mean, images.std)


def _norms(inputs: PyTree) -> jax.Array:
    """The Euclidean norm of each row over all arrays of floating-point numbers, `[n]`."""
    floats = [leaf for leaf in jax.tree.leaves(inputs) if is_float(leaf)]
    return jnp.sqrt(sum(jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in floats))


def _added(clean: jax.Array, noise: jax.Array, *, size: jax.Array) -> jax.Array:
    return clean + size.reshape(-1, *[1] * (clean.ndim - 1)) * noise if is_float(clean) else clean


def _residual(context: MetricContext, model: Evidence) -> Estimate:
    if model.shares_under_noise is None:
        raise not_looked_at(
            "noise was not added, because the model was not inspected or its inputs are not floating-point numbers"
        )
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
