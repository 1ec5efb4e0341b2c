"""The convolution of the reference networks."""

from typing import Any

import jax


def convolve(images: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated` of an input that CPUs hold in memory, where that trains a sixth faster.

    XLA's CPU compiler begins a kernel's gradient by transposing the input, and would compute all that the input is made
    from (normalisations, activations, sums since the convolutions before) once more inside that transposition; see
    docs/performance.md. Other platforms are left alone.
    """
    images = jax.lax.platform_dependent(images, cpu=jax.lax.optimization_barrier, default=lambda images: images)
    return jax.lax.conv_general_dilated(images, *arguments, **options)
