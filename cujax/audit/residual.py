"""Residual knowledge: near a forgotten sample, does the model still know more than one that never saw it?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from cujax.data.batches import DeviceImages, ImageSet, examples_at
from cujax.inference import correct, predict
from cujax.model import Model, Variables


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


def residual_knowledge(shares: np.ndarray, oracle_shares: np.ndarray) -> np.ndarray:
    """Whether a model knows each sample's neighbourhood better than a retrained one, `[n]` bool.

    `P[f(x + δ) = y] > P[g(x + δ) = y]` over Gaussian noise δ (Hsu et al., arXiv:2601.22359).

    Args:
        shares: `[n]` of `share_correct_under_noise`.
        oracle_shares: The same of the retrained model.
    """
    return shares > oracle_shares


def _normalised(images: ImageSet, indices: np.ndarray) -> DeviceImages:
    """Some images as the network takes them, in memory."""
    examples = examples_at(images, indices)
    n = len(indices)
    return DeviceImages(examples.images[:n], examples.labels[:n], images.mean, images.std)


def _norms(images: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3), keepdims=True))
