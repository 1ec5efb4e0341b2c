"""Noise has the norm that was asked for, comes from the key alone, and finds what closed forms say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_function
from cujax.audit.residual import residual_knowledge, share_correct_under_noise
from cujax.data.batches import DeviceImages
from cujax.model import Variables


def linear_apply(params, model_state, images, *, train, key):
    embedding = images.reshape(images.shape[0], -1)
    return (embedding, embedding @ params), model_state


def near_apply(params, model_state, images, *, train, key):
    """Class 0 for what lies within a relative distance of one of some points, else class 1."""
    points, radius = params
    flat = images.reshape(images.shape[0], 1, -1)
    distances = jnp.linalg.norm(flat - points[None], axis=2) / jnp.linalg.norm(points, axis=1)[None]
    inside = radius - distances.min(axis=1)
    return (flat[:, 0], jnp.stack([inside, -inside], axis=1)), model_state


LINEAR = from_function(lambda key, images: (jnp.zeros((3, 2)), {}), linear_apply)
NEAR = from_function(lambda key, images: ((jnp.ones((1, 1)), 0.0), {}), near_apply)
SIGNS = Variables(jnp.array([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]), {})  # class 0 where the first pixel is above 0


def device_images(images, labels=None, mean=0.0, std=1.0):
    images = jnp.asarray(images)
    labels = jnp.zeros(len(images), jnp.int32) if labels is None else jnp.asarray(labels, jnp.int32)
    channels = images.shape[-1]
    return DeviceImages(images, labels, jnp.full(channels, mean), jnp.full(channels, std))


def shares(images, indices, variables=SIGNS, model=LINEAR, *, norm, draws=8, seed=0):
    indices = np.asarray(indices)
    return share_correct_under_noise(model, variables, images, indices, norm=norm, draws=draws, key=jax.random.key(seed))


@pytest.mark.parametrize("norm", [0.05, 0.3])
def test_the_noise_has_the_norm_that_was_asked_for_relative_to_each_normalised_image(norm):
    pixels = np.zeros((5, 2, 3, 2), np.uint8)
    pixels.reshape(5, 12)[range(5), range(5)] = [255, 250, 200, 150, 100]
    images = device_images(pixels, mean=0.1, std=0.25)
    normalised = jnp.asarray((pixels.reshape(5, 12) / 255 - 0.1) / 0.25, jnp.float32)
    for radius, expected in ((0.998 * norm, 0.0), (1.002 * norm, 1.0)):
        variables = Variables((normalised, jnp.float32(radius)), {})
        np.testing.assert_array_equal(shares(images, np.arange(5), variables, NEAR, norm=norm), expected)


@pytest.mark.parametrize("margin", [-0.6, 0.0, 0.3])
def test_the_share_is_that_of_the_sphere_on_the_right_side(margin):
    # In three dimensions each coordinate of a point on a sphere is uniform.
    image = np.array([margin, 0.0, np.sqrt(4 - margin**2)], np.float32)
    images = device_images(np.tile(image, (1024, 1)).reshape(1024, 1, 1, 3))
    found = shares(images, np.arange(1024), norm=0.5, draws=4)
    # 4,096 draws: a standard error of at most 0.008.
    assert found.mean() == pytest.approx((1 + margin) / 2, abs=0.03)
    assert len(np.unique(found)) == 5
    # Copies are independent, and so are draws: binomial.
    p = found.mean()
    assert found.std() == pytest.approx(np.sqrt(p * (1 - p) / 4), rel=0.1)


def random_images(n=30, seed=0):
    rng = np.random.default_rng(seed)
    return device_images(rng.normal(size=(n, 1, 3, 1)).astype(np.float32), rng.integers(0, 2, n))


def test_without_noise_the_share_is_whether_the_answer_is_right():
    images, indices = random_images(), np.array([7, 3, 3, 29, 0, 11])
    first = np.asarray(images.images)[indices, 0, 0, 0]
    expected = [float((value > 0) == (label == 0)) for value, label in zip(first, images.labels[indices], strict=True)]
    assert 0 < sum(expected) < 6
    np.testing.assert_array_equal(shares(images, indices, norm=0.0, draws=3), expected)


def test_shares_are_fractions_of_the_draws():
    found = shares(random_images(), np.arange(30), norm=1.0, draws=5)
    assert found.dtype == np.float64
    np.testing.assert_allclose(5 * found, np.round(5 * found))
    assert len(np.unique(found)) > 3


def test_the_key_decides_the_noise():
    images, indices = random_images(), np.arange(30)
    found = shares(images, indices, norm=1.0)
    np.testing.assert_array_equal(shares(images, indices, norm=1.0), found)
    assert (shares(images, indices, norm=1.0, seed=1) != found).any()


def test_models_are_shown_the_same_noise():
    images, indices = random_images(), np.arange(30)
    reverse = Variables(-SIGNS.params, {})
    np.testing.assert_allclose(shares(images, indices, norm=1.0) + shares(images, indices, reverse, norm=1.0), 1.0)


def test_what_the_other_images_are_and_in_which_order_does_not_matter_to_an_image():
    images = random_images()
    found = shares(images, [4, 5, 6, 7], norm=1.0, draws=16)
    for others in ([7, 5, 6], [20, 20, 0]):
        assert shares(images, [4, *others], norm=1.0, draws=16)[0] == found[0]


def test_the_images_and_their_augmentation_are_left_alone():
    images, indices = random_images(), np.arange(30)
    flipping = DeviceImages(images.images, images.labels, images.mean, images.std, "crop_flip")
    np.testing.assert_array_equal(shares(flipping, indices, norm=1.0), shares(images, indices, norm=1.0))
    assert flipping.augmentation == "crop_flip"
    np.testing.assert_array_equal(images.images, random_images().images)


def test_an_image_of_zeros_has_no_noise():
    images = device_images(np.zeros((2, 1, 1, 3), np.float32))
    np.testing.assert_array_equal(shares(images, [0, 1], norm=2.0), 1.0)  # a tie is class 0


def test_knowing_as_much_as_a_retrained_model_is_not_residual_knowledge():
    found = residual_knowledge(np.array([0.5, 0.6, 0.4, 1.0, 0.0]), np.array([0.5, 0.5, 0.5, 1.0, 0.0]))
    np.testing.assert_array_equal(found, [False, True, False, False, False])
