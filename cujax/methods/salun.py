"""SalUn: random labels, on the parameters salient for the forget set (Fan et al., arXiv:2310.12508, ICLR 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cujax._ranges import ProportionAboveZero
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.gradient_sums import GradientSums, gradient_sum
from cujax.methods.random_labels import RandomLabels
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, Choice, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables


@dataclass(frozen=True)
class SalUn(RandomLabels):
    """`RandomLabels` with updates only to the salient parameters; the others do not change.

    The salient parameters are those, among all parameters, where the gradient of the forget set's cross-entropy, summed over
    the set in eval mode, is largest in magnitude.

    Attributes:
        salient_share: Share of the parameters that may change.
    """

    salient_share: ProportionAboveZero = 0.5

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.1), adamw=LogUniform(1e-4, 5e-3)),
        "batch_size": Choice((64, 128)),
        "salient_share": LogUniform(0.1, 1.0),
        "max_passes": LogUniform(2, 20),
    }
    reproduction: ClassVar[Reproduction] = {"class": {"batch_size": 64, "max_passes": 4}}

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Raises:
            ValueError: if a sample has no other class to be labelled with.
            NotFiniteError: if the gradient of the forget set is not finite.
        """
        sums = GradientSums(model, original, self.batch_size, loop)
        mask = largest(sums.over(split.forget.indices, gradient_sum), self.salient_share)
        return self.relabel(model, original, split, key=key, loop=loop, mask=mask, spent=sums.cost)


def largest(tree: PyTree, share: float) -> PyTree:
    """Which entries of a tree are among the `share` of all entries that is largest in magnitude; a tree of bool.

    >>> largest({"a": jnp.array([-3.0, 1.0]), "b": jnp.array([[2.0, 0.5]])}, 0.5)
    {'a': Array([ True, False], dtype=bool), 'b': Array([[ True, False]], dtype=bool)}
    """
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.abs(leaf).astype(jnp.float32), tree))
    chosen = jnp.argsort(-flat)[: round(share * flat.size)]
    return jax.tree.map(lambda leaf: leaf > 0, unravel(jnp.zeros_like(flat).at[chosen].set(1.0)))
