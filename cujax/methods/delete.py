"""DELETE: keeps the original's answers on the forget set, except for the true class (arXiv:2503.23751, CVPR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cujax._ranges import Count, Positive
from cujax.batch import Examples
from cujax.data.requests import Split
from cujax.losses import distillation
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, Choice, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables


@dataclass(frozen=True)
class Delete(Descent):
    """Minimises `KL(softmax(logits of the original with the true class at minus infinity) ‖ softmax(logits))`.

    The original answers in eval mode. A pass is a pass over the forget set; the retain set is not needed.
    """

    learning_rate: Positive = 1e-4
    batch_size: Count = 128
    max_passes: Count = 20

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(1e-4, 1e-2), adamw=LogUniform(1e-5, 1e-3)),
        "batch_size": Choice((64, 128)),
        "max_passes": LogUniform(2, 20),
    }
    reproduction: ClassVar[Reproduction] = {"class": {"optimizer": "adamw", "learning_rate": 6e-4, "max_passes": 4}}

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the retain set is not used."""
        state_key, batch_key = jax.random.split(key)
        step = self.step(model, _objective, original)
        passes = self.passes_over(split.forget, step, batch_key)
        return self.run(model, original, split, passes, key=state_key, loop=loop)


def _objective(
    model: Model, variables: Variables, batch: Examples, teacher: Variables, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    answers, _ = model.apply(*teacher, batch.inputs, train=False)
    is_true = batch.labels[:, None] == jnp.arange(answers.logits.shape[1])[None, :]
    outputs, model_state = model.apply(*variables, batch.inputs, train=True, key=key)
    return distillation(outputs.logits, jnp.where(is_true, -jnp.inf, answers.logits), batch.mask), model_state
