"""Residual networks (He et al., arXiv:1512.03385) for small and large images, with the paper's head or a linear one.

Layout and padding are PyTorch's, so that weights trained there can be used (`cujax.networks.torch_weights`).
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cujax.model import Outputs
from cujax.networks.convolution import convolve
from cujax.networks.heads import Head, classify, head_layers

_Norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
_Conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=convolve,
)


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        num_classes: Number of logits.
        stage_sizes: Blocks of each stage; each stage except the first halves height and width, and doubles the channels.
        bottleneck: Whether blocks are 1x1, 3x3, 1x1 convolutions with four times the channels at the end, rather than
            two of 3x3.
        width: Channels of the first stage.
        stem: "small" for images up to 64 pixels: one 3x3 convolution. "imagenet" for larger ones: 7x7 of stride 2 and
            max-pooling.
        head: "official" or "linear"; see `cujax.networks.heads`.
        dtype: The dtype in which the encoder computes; parameters, batch statistics and the head are float32.
        axis_name: Mapped device axis over which batch statistics are averaged, if any.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    stem: Literal["small", "imagenet"] = "small"
    head: Head = "official"
    dtype: DTypeLike = "float32"
    axis_name: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Parameter-path prefixes in order of depth; the last is the head."""
        stages = (f"stage_{number}" for number in range(1, len(self.stage_sizes) + 1))
        return ("stem", *stages, *head_layers(self.head))

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Outputs:
        """Images `[B, H, W, C]` to `Outputs` with the taps `stage_1`, ..., `encoder` (the last stage) and `hidden`."""
        x = Stem(self.width, self.stem == "imagenet", self.dtype, self.axis_name, name="stem")(images, train)
        taps = {}
        for number, blocks in enumerate(self.stage_sizes, start=1):
            x = Stage(
                self.width << (number - 1),
                blocks=blocks,
                stride=1 if number == 1 else 2,
                bottleneck=self.bottleneck,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"stage_{number}",
            )(x, train)
            taps[f"stage_{number}"] = x.mean(axis=(1, 2), dtype=jnp.float32)
        features = taps.popitem()[1]
        return classify(
            features,
            taps,
            num_classes=self.num_classes,
            head=self.head,
            hidden_dim=features.shape[1],
            embedding_dim=128,
        )


class Stem(nn.Module):
    """The first convolution, normalised; for large images also max-pooled."""

    features: int
    large: bool
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size, stride = (7, 2) if self.large else (3, 1)
        x = _Conv(self.features, (size, size), stride, padding=size // 2, dtype=self.dtype, name="conv")(x)
        x = nn.relu(_Norm(not train, dtype=self.dtype, axis_name=self.axis_name, name="norm")(x))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if self.large else x


class Stage(nn.Module):
    """Residual blocks of one resolution."""

    features: int
    blocks: int
    stride: int
    bottleneck: bool
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for number in range(self.blocks):
            x = Block(
                self.features,
                stride=self.stride if number == 0 else 1,
                bottleneck=self.bottleneck,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"block_{number}",
            )(x, train)
        return x


class Block(nn.Module):
    """One residual block; where the shape changes, its shortcut is a 1x1 convolution."""

    features: int
    stride: int
    bottleneck: bool
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
            return _Conv(features, (size, size), stride, padding=size // 2, dtype=self.dtype, name=name)

        def norm(name: str) -> nn.BatchNorm:
            return _Norm(not train, dtype=self.dtype, axis_name=self.axis_name, name=name)

        # (channels, kernel size, stride) of each convolution.
        plan = [(self.features, 3, self.stride), (self.features, 3, 1)]
        if self.bottleneck:
            plan = [(self.features, 1, 1), (self.features, 3, self.stride), (4 * self.features, 1, 1)]
        y = x
        for number, (features, size, stride) in enumerate(plan, start=1):
            y = norm(f"norm_{number}")(conv(features, size, stride, f"conv_{number}")(y))
            y = y if number == len(plan) else nn.relu(y)
        if x.shape != y.shape:
            x = norm("shortcut_norm")(conv(y.shape[-1], 1, self.stride, "shortcut")(x))
        return nn.relu(x + y)
