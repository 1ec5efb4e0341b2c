"""The convolution of the reference networks."""

from typing import Any

import jax


def convolve(images: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """A `jax.lax.conv_general_dilated` whose input CPUs hold in memory, which makes training on them a sixth faster.

    XLA's CPU compiler begins the gradient of a kernel by transposing the input. It would otherwise recompute everything from
    which the input is made (normalisations, activations and sums since the previous convolutions) inside that transposition;
    see docs/performance.md. Nothing changes on other platforms.
    """
    images = jax.lax.platform_dependent(images, cpu=jax.lax.optimization_barrier, default=lambda images: images)
    return jax.lax.conv_general_dilated(images, *arguments, **options)
