"""A convolutional network for 32x32 colour images that trains fast, after airbench (Jordan, arXiv:2404.00498)."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cujax.model import Outputs
from cujax.networks.convolution import convolve
from cujax.networks.heads import Head, classify, head_layers

# Patches of 2x2 pixels in terms of averages and differences: of the pixels, and of the colours.
_PIXELS = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
# Their variances in normalised CIFAR-10 training images; natural images have hardly others.
_VARIANCES = np.array(
    [[9.97, 0.82, 0.186], [0.396, 0.0164, 0.0049], [0.331, 0.0139, 0.0045], [0.0549, 0.0016, 0.0006]]
)  # fmt: skip
_ADDED_TO_VARIANCES = 5e-4


def whitening_filters() -> np.ndarray:
    """Filters `[2, 2, 3, 24]` float32, after which patches of natural images have nearly uncorrelated values of variance 1.

    The published network uses eigenvectors of training images. These filters are fixed, so they contain nothing of a
    training image. On 5,000 training images of CIFAR-10, their variances differ from the eigenvalues by at most 12 %.
    """
    patterns = np.stack([np.outer(pixels, colours) for pixels, colours in itertools.product(_PIXELS, _COLOURS)])
    scaled = patterns / np.sqrt(_VARIANCES + _ADDED_TO_VARIANCES).reshape(-1, 1, 1)
    filters = scaled.reshape(-1, 2, 2, 3).transpose(1, 2, 3, 0)
    return np.concatenate([filters, -filters], axis=-1).astype(np.float32)


def _dirac(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The first output channels pass the input on; the others are drawn as usual."""
    height, width, n_in, n_out = shape
    kernel = nn.initializers.lecun_uniform()(key, shape, dtype)
    passed_on = jnp.zeros((height, width, n_in, n_in), dtype).at[height // 2, width // 2].set(jnp.eye(n_in, dtype=dtype))
    return kernel.at[..., : min(n_in, n_out)].set(passed_on[..., :n_out])


_Conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=_dirac, conv_general_dilated=convolve)


def _max_pool(x: jax.Array) -> jax.Array:
    """The largest of 2x2 values each. On a CPU the gradient of `nn.max_pool` makes the whole step a third slower."""
    _, height, width, _ = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return functools.reduce(jnp.maximum, (x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)))


class Airbench(nn.Module):
    """Fixed whitening filters, and groups of two 3x3 convolutions, each of half the height and width of the one before.

    Attributes:
        num_classes: Number of logits.
        widths: Channels of the groups; the published network has (64, 256, 256) and a linear head.
        head: "official" or "linear"; see `cujax.networks.heads`.
        dtype: The dtype in which the groups compute; parameters, batch statistics and the head are float32.
        axis_name: Mapped device axis over which batch statistics are averaged, if any.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 256, 256)
    head: Head = "official"
    dtype: DTypeLike = "float32"
    axis_name: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Parameter-path prefixes in order of depth; the last is the head."""
        return (*(f"group_{number}" for number in range(1, len(self.widths) + 1)), *head_layers(self.head))

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images `[B, H, W, 3]` to `Outputs` with the taps `group_1`, ..., `encoder` and `hidden`.

        Groups are tapped as means over pixels; `encoder`, which the head reads, has the last group's largest values.

        Raises:
            ValueError: if the images are not of three colours, or too small to be halved by each group.
        """
        smallest = 2 ** len(self.widths) + 1
        if images.shape[-1] != 3 or min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"an airbench network takes colour images [B, H, W, 3] of at least {smallest}x{smallest} pixels, but these "
                f"are {list(images.shape)}; choose another network, such as cnn."
            )
        filters = jnp.asarray(whitening_filters(), self.dtype)
        x = nn.gelu(jax.lax.conv_general_dilated(
            images.astype(self.dtype), filters, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ))  # fmt: skip
        taps = {}
        for number, width in enumerate(self.widths, start=1):
            x = Group(width, self.dtype, self.axis_name, name=f"group_{number}")(x, train)
            taps[f"group_{number}"] = x.mean(axis=(1, 2), dtype=jnp.float32)
        taps.popitem()
        features = x.max(axis=(1, 2))
        return classify(
            features,
            taps,
            num_classes=self.num_classes,
            head=self.head,
            hidden_dim=features.shape[1],
            embedding_dim=128,
        )


class Group(nn.Module):
    """Two convolutions, normalised; max-pooling after the first halves height and width."""

    features: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for number in (1, 2):
            x = _Conv(self.features, dtype=self.dtype, name=f"conv_{number}")(x)
            if number == 1:
                x = _max_pool(x)
            norm = nn.BatchNorm(
                not train, use_scale=False, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name, name=f"norm_{number}"
            )
            x = nn.gelu(norm(x))
        return x
