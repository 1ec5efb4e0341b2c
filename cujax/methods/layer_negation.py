"""Negating the first layer, then fine-tuning, after NoT (Khalil et al., arXiv:2503.05657, CVPR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cujax.data.requests import Split
from cujax.methods.descent import Descent
from cujax.methods.fine_tune import retain_objective
from cujax.methods.layers import in_layers, named_layers
from cujax.model import Model, PyTree, Variables
from cujax.search_space import LogUniform, SearchSpace
from cujax.unlearning import Loop, Unlearned


@dataclass(frozen=True)
class LayerNegation(Descent):
    """Negates the weights of the first layer, and trains on the retain set. A pass is a pass over it; all are made.

    Only kernels are negated: a normalisation whose scale were negated, too, would undo it.
    """

    weight_decay: float = 5e-4

    search_space: ClassVar[SearchSpace] = {
        "learning_rate": LogUniform(0.003, 0.3),
        "max_passes": LogUniform(5, 40),
    }

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Makes `original` forget `split.forget`, which is never looked at.

        Raises:
            ValueError: if the network does not name its layers.
        """
        state_key, batch_key = jax.random.split(key)
        first = named_layers(model, original.params, "LayerNegation")[0]
        start = Variables(negated(original.params, first), original.model_state)
        step = self.step(model, retain_objective)
        passes = self.passes_over(split.retain, step, batch_key)
        return self.run(model, start, split, passes, key=state_key, loop=loop, all_passes=True, original=original)


def negated(params: PyTree, layer: str) -> PyTree:
    """The parameters, with the kernels of a layer (its arrays of more than one axis) negated.

    >>> negated({"conv": {"bias": jnp.ones(1), "kernel": jnp.ones((1, 1))}}, "conv")
    {'conv': {'bias': Array([1.], dtype=float32), 'kernel': Array([[-1.]], dtype=float32)}}
    """
    return jax.tree.map(
        lambda chosen, leaf: -leaf if chosen and jnp.ndim(leaf) > 1 else leaf, in_layers(params, [layer]), params
    )
