"""Selective synaptic dampening (Foster et al., arXiv:2308.07707, AAAI 2024)."""

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cujax._ranges import Count, NotNegative, Positive, ProportionBelowOne, check_fields
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.gradient_sums import GradientSums, squared_gradient_sum, squared_mean_gradient
from cujax.methods.search_space import LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.sharding import replicate
from cujax.training.loop import NOTHING_YET, Cost


@dataclass(frozen=True)
class SelectiveSynapticDampening:
    """Shrinks, in one step, the parameters that matter more for the forget set than for all training data.

    The importance I is the mean of the squared gradients of the cross-entropy, in eval mode, over the forget set (I_f) and
    over all training data (I_D). A parameter with `I_f > alpha · I_D` is multiplied by `min(lambda · I_D / I_f, 1)`. Since
    I_D includes I_f, no parameter is selected unless `alpha` is below the ratio of all training data to the forget set: for
    a tenth of the data, 10 does nothing.

    Attributes:
        alpha: Selection threshold; 10 for convolutional networks, 5 for vision transformers.
        dampening: Strength of the shrinking (lambda).
        per_sample: Whether gradients are squared per sample, as the paper defines, or per batch, as in its authors' code,
            which produced their results; the importance then depends on the batch size.
        batch_size: Rows of a batch. With `per_sample`, the gradients of all its samples are in memory at once.
        forgotten_accuracy: If whole classes are to be forgotten, they count as forgotten when accuracy on them is at most
            this. None: one divided by the number of classes.
    """

    alpha: Positive = 10.0
    dampening: NotNegative = 1.0
    per_sample: bool = False
    batch_size: Count = 64
    forgotten_accuracy: ProportionBelowOne | None = 0.01

    search_space: ClassVar[SearchSpace] = {
        "alpha": LogUniform(0.3, 30.0),
        "dampening": LogUniform(0.03, 1.0),
    }
    reproduction: ClassVar[Reproduction] = {"class": {}}

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; no randomness is involved."""
        del key

        def make() -> tuple[Variables, Cost]:
            everything = np.sort(np.concatenate([split.forget.indices, split.retain.indices]))
            sums = GradientSums(model, original, self.batch_size, loop)
            of_forget, of_all = (self._importance(sums, indices) for indices in (split.forget.indices, everything))
            started = time.perf_counter()
            before = replicate(original.params, loop.images.mesh)
            params = jax.block_until_ready(dampen(before, of_forget, of_all, self.alpha, self.dampening))
            seconds = time.perf_counter() - started
            return Variables(params, original.model_state), sums.cost + replace(NOTHING_YET, seconds=seconds, steps=1)

        return loop.once(model, original, make, split, forgotten_accuracy=self.forgotten_accuracy)

    def _importance(self, sums: GradientSums, indices: np.ndarray) -> PyTree:
        total = sums.over(indices, squared_gradient_sum if self.per_sample else squared_mean_gradient)
        n = len(indices) if self.per_sample else -(-len(indices) // min(self.batch_size, len(indices)))
        return jax.tree.map(lambda leaf: leaf / n, total)


@jax.jit
def dampen(
    params: PyTree, of_forget: PyTree, of_all: PyTree, alpha: float | jax.Array, dampening: float | jax.Array
) -> PyTree:
    """The parameters, shrunk where they matter more for the forget set; the importances are trees like the parameters."""

    def shrink(weight: jax.Array, forget: jax.Array, everything: jax.Array) -> jax.Array:
        selected = forget > alpha * everything
        factor = jnp.minimum(dampening * everything / jnp.where(selected, forget, 1.0), 1.0)
        return jnp.where(selected, weight * factor, weight)

    return jax.tree.map(shrink, params, of_forget, of_all)
