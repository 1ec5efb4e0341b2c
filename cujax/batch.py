"""Batches, as a step takes them (arrays of samples) and as they are drawn (indices). All are pytrees."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.tree_util.register_dataclass, data_fields=("images", "labels", "mask"), meta_fields=())
@dataclass(frozen=True)
class Examples:
    """Preprocessed samples.

    Attributes:
        images: `[B, H, W, C]` float32.
        labels: `[B]` int32.
        mask: `[B]` bool, True where the row counts in losses and metrics. The other rows fill a short batch: they pass
            through the network like any other. None: all rows count.
    """

    images: jax.Array
    labels: jax.Array
    mask: jax.Array | None = None

    @property
    def counts(self) -> jax.Array:
        """`[B]` bool, the mask where it was given."""
        return jnp.ones(self.labels.shape, bool) if self.mask is None else self.mask


@functools.partial(jax.tree_util.register_dataclass, data_fields=("forget", "retain"), meta_fields=())
@dataclass(frozen=True)
class Batch:
    """Samples to forget beside samples to keep."""

    forget: Examples
    retain: Examples


@functools.partial(jax.tree_util.register_dataclass, data_fields=("indices", "mask"), meta_fields=())
@dataclass(frozen=True)
class Rows:
    """`indices` `[B]` int32 of images, and `mask` `[B]` bool, False where a row only fills a short batch."""

    indices: jax.Array | np.ndarray
    mask: jax.Array | np.ndarray


@functools.partial(jax.tree_util.register_dataclass, data_fields=("forget", "retain"), meta_fields=())
@dataclass(frozen=True)
class IndexBatch:
    """A `Batch` before its images are gathered."""

    forget: Rows
    retain: Rows
