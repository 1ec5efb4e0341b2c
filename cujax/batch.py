"""Batches in the form that a step takes (arrays of samples) and in the form in which they are drawn (indices); pytrees."""

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
            `{"tokens": [B, length], "mask": [B, length]}`. The old name, `images`, works until the next release.
        labels: `[B]` int32.
        mask: `[B]` bool, True for rows that count in losses and metrics. The other rows pad a short batch; they pass
            through the network like any other row. None: all rows count.

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
        """The old name of `inputs`, which will be removed in the next release."""
        warn_renamed("Examples.images", "Examples.inputs")
        return self.inputs

    @property
    def counts(self) -> jax.Array:
        """`[B]` bool: the mask, or True for all rows if none was given."""
        return jnp.ones(self.labels.shape, bool) if self.mask is None else self.mask


@functools.partial(jax.tree_util.register_dataclass, data_fields=("forget", "retain"), meta_fields=())
@dataclass(frozen=True)
class Batch:
    """Forget samples together with retain samples."""

    forget: Examples
    retain: Examples


@functools.partial(jax.tree_util.register_dataclass, data_fields=("indices", "mask", "values"), meta_fields=())
@dataclass(frozen=True)
class Rows:
    """Samples by their indices.

    Attributes:
        indices: `[B]` int32.
        mask: `[B]` bool, False for rows that only pad a short batch.
        values: `[B]` float32, a value that a method assigns to each row; None if it assigns none.
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
