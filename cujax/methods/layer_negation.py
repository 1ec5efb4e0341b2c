"""Negating the first layer, then fine-tuning, after NoT (Khalil et al., arXiv:2503.05657, CVPR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.fine_tune import FineTune
from cujax.methods.layers import in_layers, named_layers
from cujax.methods.search_space import Reproduction
from cujax.model import Model, PyTree, Variables


@dataclass(frozen=True)
class LayerNegation(FineTune):
    """Negates the weights of the first layer, then trains on the retain set. It runs all passes over the retain set.

    Only kernels are negated: also negating the scale of a normalisation would undo it.
    """

    reproduction: ClassVar[Reproduction] = {
        "class": {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 64, "max_passes": 4},
    }

    def check_network(self, model: Model, params: PyTree, split: Split) -> None:
        """Raises ValueError if the network does not name its layers."""
        del split
        named_layers(model, params, "LayerNegation")

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used.

        Raises:
            ValueError: if the network does not name its layers.
        """
        first = named_layers(model, original.params, "LayerNegation")[0]
        start = Variables(negated(original.params, first), original.model_state)
        return self.tune(model, start, split, key=key, loop=loop, all_passes=True, original=original)


def negated(params: PyTree, layer: str) -> PyTree:
    """The parameters, with the kernels of a layer (its arrays of more than one axis) negated.

    >>> negated({"conv": {"bias": jnp.ones(1), "kernel": jnp.ones((1, 1))}}, "conv")
    {'conv': {'bias': Array([1.], dtype=float32), 'kernel': Array([[-1.]], dtype=float32)}}
    """
    return jax.tree.map(
        lambda chosen, leaf: -leaf if chosen and jnp.ndim(leaf) > 1 else leaf, in_layers(params, [layer]), params
    )
