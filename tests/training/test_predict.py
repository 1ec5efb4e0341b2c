"""Predictions are those of the network, for any number of images, in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_function
from cujax.data.batches import DeviceImages
from cujax.training.predict import predict

IMAGES = DeviceImages(
    jax.random.normal(jax.random.key(0), (700, 2, 2, 1)), jnp.arange(700, dtype=jnp.int32), jnp.zeros(1), jnp.ones(1)
)


def apply(params, model_state, images, *, train, key):
    embedding = images.reshape(images.shape[0], -1)
    return (embedding, embedding @ params), model_state


MODEL = from_function(lambda key, images: (jax.random.normal(key, (4, 3)), {}), apply)


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 700])
def test_predictions_come_in_order(n):
    variables = MODEL.init(jax.random.key(1), IMAGES.images[:1])
    indices = np.random.default_rng(n).permutation(700)[:n].astype(np.int32)
    found = predict(MODEL, variables, IMAGES, indices)
    embeddings = np.asarray(IMAGES.images)[indices].reshape(n, -1)
    np.testing.assert_allclose(found.embeddings, embeddings, rtol=1e-6)
    np.testing.assert_allclose(found.logits, embeddings @ np.asarray(variables.params), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.labels, indices)


def test_no_images_no_predictions():
    variables = MODEL.init(jax.random.key(1), IMAGES.images[:1])
    found = predict(MODEL, variables, IMAGES, np.zeros(0, np.int32))
    assert found.logits.shape == (0, 3)
    assert len(found.labels) == 0
