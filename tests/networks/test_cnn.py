"""The reference CNN: its size, its head, its taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.networks import NETWORKS


def test_the_size_is_as_documented():
    variables = NETWORKS["cnn"](10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == 651_402
    assert variables.model_state == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_name_the_parameters_in_order_of_depth(name):
    model = NETWORKS[name](7)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert set(model.layers) == set(variables.params)
    assert model.layers[-1] == "head"
    assert model.num_classes == 7


def test_the_head_reads_the_very_embedding_the_loss_acts_on():
    model = NETWORKS["small_cnn"](5)
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
