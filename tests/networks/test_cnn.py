"""The reference CNN: its size, its head, its taps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cujax.adapters import from_linen
from cujax.networks import make_network
from cujax.networks.cnn import CNN


def test_the_size_is_as_documented():
    variables = make_network("cnn", 10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == 651_402
    assert variables.model_state == {}


def test_the_head_reads_the_very_embedding_the_loss_acts_on():
    model = make_network("small_cnn", 5)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    variables = model.init(jax.random.key(0), images)
    outputs, _ = model.apply(*variables, images, train=False)
    np.testing.assert_allclose(np.linalg.norm(outputs.embedding, axis=1), 1.0, rtol=1e-5)
    params = variables.params
    logits = np.maximum(outputs.embedding, 0) @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)
    assert list(outputs.taps) == ["encoder", "hidden"]
    hidden = np.maximum(outputs.taps["encoder"] @ params["hidden"]["kernel"] + params["hidden"]["bias"][None], 0)
    np.testing.assert_allclose(outputs.taps["hidden"], hidden, rtol=1e-4, atol=1e-5)


def strided_convolution(images, kernel, bias):
    """3x3, stride 2, zero padding as the networks have it (outputs ceil(n / 2)), ReLU; one number at a time."""
    batch, height, width, _ = images.shape
    result = np.zeros((batch, -(-height // 2), -(-width // 2), kernel.shape[3]))
    top, left = ((max((-(-n // 2) - 1) * 2 + 3 - n, 0)) // 2 for n in (height, width))
    for row in range(result.shape[1]):
        for column in range(result.shape[2]):
            for i in range(3):
                for j in range(3):
                    y, x = 2 * row + i - top, 2 * column + j - left
                    if 0 <= y < height and 0 <= x < width:
                        result[:, row, column] += images[:, y, x] @ kernel[i, j]
    return np.maximum(result + bias, 0)


def test_the_encoder_agrees_with_float64():
    model = from_linen(CNN(3, features=(2, 4), hidden_dim=5, embedding_dim=4))
    images = jax.random.normal(jax.random.key(1), (2, 5, 6, 2))
    variables = model.init(jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables.params)
    x = np.asarray(images, np.float64)
    for name in ("conv_0", "conv_1"):
        x = strided_convolution(x, params[name]["kernel"], params[name]["bias"])
    outputs, _ = model.apply(*variables, images, train=False)
    chex.assert_shape([outputs.embedding, outputs.logits, outputs.taps["hidden"]], [(2, 4), (2, 3), (2, 5)])
    np.testing.assert_allclose(outputs.taps["encoder"], x.reshape(2, -1), rtol=1e-4, atol=1e-5)
    hidden = np.maximum(x.reshape(2, -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    z = hidden @ params["embedding"]["kernel"] + params["embedding"]["bias"]
    np.testing.assert_allclose(outputs.embedding, z / np.linalg.norm(z, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_a_black_image_has_finite_outputs_and_gradients():
    model = from_linen(CNN(3, features=(2, 4), hidden_dim=5, embedding_dim=4))
    images = jnp.zeros((2, 5, 6, 2))
    variables = model.init(jax.random.key(0), images)  # biases are zero, so the embedding has no norm

    def total(params):
        outputs, _ = model.apply(params, {}, images, train=True)
        return outputs.logits.sum() + outputs.embedding.sum()

    value, gradients = jax.value_and_grad(total)(variables.params)
    assert float(value) == 0.0
    chex.assert_tree_all_finite(gradients)
    np.testing.assert_array_equal(gradients["head"]["bias"], [2.0, 2.0, 2.0])
