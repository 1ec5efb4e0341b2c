"""Sparsity-aware fine-tuning (Jia et al., arXiv:2304.04934, NeurIPS 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cujax._ranges import NotNegative
from cujax.batch import Examples
from cujax.data.batches import preprocess
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent, shuffled
from cujax.methods.fine_tune import retain_objective
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.training.loop import Phase


@dataclass(frozen=True)
class L1Sparse(Descent):
    """Minimises `CE(retain set) + alpha_t · ‖parameters‖₁` with `alpha_t = alpha · (1 - t / max_passes)` in pass t from 0.

    A pass is a pass over the retain set.

    Attributes:
        alpha: Initial weight of the norm; published values range from 1e-4 to 5e-4.
    """

    weight_decay: NotNegative = 5e-4
    alpha: NotNegative = 5e-4

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.3), adamw=LogUniform(1e-4, 1e-2)),
        "alpha": LogUniform(5e-5, 5e-3),
        "max_passes": LogUniform(5, 40),
    }
    reproduction: ClassVar[Reproduction] = {
        "class": {
            "optimizer": "adamw",
            "learning_rate": 5e-3,
            "weight_decay": 0.0,
            "batch_size": 64,
            "max_passes": 20,
            "alpha": 2e-3,
        }
    }

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used."""
        state_key, batch_key = jax.random.split(key)

        def passes(number: int) -> list[Phase]:
            step = self.step(model, _objective, self.alpha * (1 - number / self.max_passes))
            return [Phase(step, preprocess, shuffled(split.retain, self.batch_size, batch_key, number))]

        return self.run(model, original, split, passes, key=state_key, loop=loop)


def _objective(
    model: Model, variables: Variables, batch: Examples, alpha: jax.Array, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    loss, model_state = retain_objective(model, variables, batch, (), key)
    # Not jnp.abs: its gradient at 0 is 1, which would move every weight that is 0 (biases, often) off it.
    norm = sum(jnp.sum(leaf * jax.lax.stop_gradient(jnp.sign(leaf))) for leaf in jax.tree.leaves(variables.params))
    return loss + alpha * norm, model_state
