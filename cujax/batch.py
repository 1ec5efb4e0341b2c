"""Batches, as a step takes them (arrays of samples) and as they are drawn (indices). All are pytrees."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cujax._renamed import NOT_GIVEN, as_inputs, warn_renamed


@functools.partial(jax.tree_util.register_dataclass, data_fields=("inputs", "labels", "mask"), meta_fields=())
@dataclass(frozen=True)
class Examples:
    """Samples as a network takes them.

    Attributes:
        inputs: A pytree of arrays, each `[B, ...]`: images `[B, H, W, C]` float32, a table `[B, features]`, or
            `{"tokens": [B, length], "mask": [B, length]}`. Its old name, `images`, works until the next release.
        labels: `[B]` int32.
        mask: `[B]` bool, True where the row counts in losses and metrics. The other rows fill a short batch: they pass
            through the network like any other. None: all rows count.

    >>> import jax.numpy as jnp
    >>> Examples({"tokens": jnp.zeros((2, 5), jnp.int32)}, jnp.array([0, 1])).counts.tolist()
    [True, True]
    """

    inputs: Any
    labels: jax.Array
    mask: jax.Array | None = None

    def __init__(
        self, inputs: Any = NOT_GIVEN, labels: Any = NOT_GIVEN, mask: jax.Array | None = None, *, images: Any = NOT_GIVEN
    ) -> None:
        if labels is NOT_GIVEN:
            raise TypeError("Examples needs labels, [B] int32.")
        object.__setattr__(self, "inputs", as_inputs("Examples", inputs, images))
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "mask", mask)

    @property
    def images(self) -> Any:
        """The old name of `inputs`; it goes in the next release."""
        warn_renamed("Examples.images", "Examples.inputs")
        return self.inputs

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


@functools.partial(jax.tree_util.register_dataclass, data_fields=("indices", "mask", "values"), meta_fields=())
@dataclass(frozen=True)
class Rows:
    """Samples by their place.

    Attributes:
        indices: `[B]` int32.
        mask: `[B]` bool, False where a row only fills a short batch.
        values: `[B]` float32, what a method wants of each row; None where it wants nothing.
    """

    indices: jax.Array | np.ndarray
    mask: jax.Array | np.ndarray
    values: jax.Array | np.ndarray | None = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=("forget", "retain"), meta_fields=())
@dataclass(frozen=True)
class IndexBatch:
    """A `Batch` before its inputs are gathered."""

    forget: Rows
    retain: Rows
