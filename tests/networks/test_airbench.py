"""The airbench networks: whitening of real images, and the forward pass against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_linen
from cujax.data.images import Data
from cujax.data.sources import load_source
from cujax.networks import make_network
from cujax.networks.airbench import Airbench, whitening_filters


def patches(images, size):
    return np.lib.stride_tricks.sliding_window_view(np.asarray(images, np.float64), (size, size), axis=(1, 2))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def forward(variables, images, widths):
    """The encoder's features in evaluation mode, in NumPy float64."""
    x = gelu(np.einsum("bhwcij,ijco->bhwo", patches(images, 2), whitening_filters().astype(np.float64)))
    for number, _ in enumerate(widths, start=1):
        params = variables.params[f"group_{number}"]
        statistics = variables.model_state["batch_stats"][f"group_{number}"]
        for place in (1, 2):
            padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
            kernel = np.asarray(params[f"conv_{place}"]["kernel"], np.float64)
            x = np.einsum("bhwcij,ijco->bhwo", patches(padded, 3), kernel)
            if place == 1:
                half = [side // 2 for side in x.shape[1:3]]
                x = x[:, : 2 * half[0], : 2 * half[1]].reshape(len(x), half[0], 2, half[1], 2, -1).max(axis=(2, 4))
            mean, var = (np.asarray(statistics[f"norm_{place}"][name], np.float64) for name in ("mean", "var"))
            x = gelu((x - mean) / np.sqrt(var + 1e-5) + np.asarray(params[f"norm_{place}"]["bias"], np.float64))
    return x.max(axis=(1, 2))


@pytest.mark.parametrize("side", [9, 16])
def test_the_features_equal_those_computed_in_float64(side):
    widths = (6, 8)
    model = from_linen(Airbench(5, widths=widths))
    images = jax.random.normal(jax.random.key(1), (3, side, side, 3))
    variables = model.init(jax.random.key(0), images)
    _, state = model.apply(*variables, images, train=True)
    variables = variables._replace(model_state=state)
    outputs, _ = model.apply(*variables, images, train=False)
    np.testing.assert_allclose(outputs.taps["encoder"], forward(variables, images, widths), rtol=2e-4, atol=2e-4)


def test_convolutions_begin_by_passing_their_input_on():
    model = from_linen(Airbench(5, widths=(30, 40)))
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))).params
    for group, n_in in (("group_1", 24), ("group_2", 30)):
        kernel = np.asarray(params[group]["conv_1"]["kernel"])
        np.testing.assert_array_equal(kernel[1, 1, :, :n_in], np.eye(n_in))
        assert np.count_nonzero(kernel[..., :n_in]) == n_in
        assert np.std(kernel[..., n_in:]) == pytest.approx(1 / np.sqrt(9 * n_in), rel=0.1)


def test_real_patches_come_out_nearly_white(tfds_data_dir):
    images = load_source(Data("cifar10", data_dir=tfds_data_dir, limit=1000)).train.images[:1000] / 255
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    filters = whitening_filters().astype(np.float64)
    np.testing.assert_array_equal(filters[..., 12:], -filters[..., :12])
    x = patches((images - mean) / std, 2).transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12) @ filters[..., :12].reshape(12, 12)
    second = x.T @ x / len(x)
    assert np.all((np.diag(second) > 0.3) & (np.diag(second) < 1.3))
    correlations = second / np.sqrt(np.outer(np.diag(second), np.diag(second))) - np.eye(12)
    assert np.abs(correlations).max() < 0.3


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 3)])
def test_images_that_do_not_fit_are_told_with_another_network(shape):
    with pytest.raises(ValueError, match=rf"at least 9x9 pixels.*{shape[0]}, {shape[1]}, {shape[2]}.*such as cnn"):
        make_network("airbench32", 10).init(jax.random.key(0), jnp.zeros((1, *shape)))
