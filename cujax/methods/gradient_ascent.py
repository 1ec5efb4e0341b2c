"""Gradient ascent on the forget set (Thudi et al., arXiv:2109.13398)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from cujax._ranges import Count, NotNegative, Positive
from cujax.batch import Examples
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, Choice, LogUniform, SearchSpace
from cujax.model import Model, PyTree, Variables


@dataclass(frozen=True)
class GradientAscent(Descent):
    """Maximises the cross-entropy of the forget set; nothing protects the retain set. A pass is a pass over the forget set.

    Published learning rates range from 1e-5 to 1e-2 and are tuned for each network; the default is the middle.
    """

    learning_rate: Positive = 3e-4
    weight_decay: NotNegative = 5e-4
    max_passes: Count = 5

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(3e-5, 3e-3), adamw=LogUniform(1e-6, 1e-4)),
        "batch_size": Choice((64, 128)),
        "max_passes": LogUniform(2, 20),
    }

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the retain set is not used."""
        state_key, batch_key = jax.random.split(key)
        step = self.step(model, _objective)
        passes = self.passes_over(split.forget, step, batch_key)
        return self.run(model, original, split, passes, key=state_key, loop=loop)


def _objective(model: Model, variables: Variables, batch: Examples, terms: Any, key: jax.Array) -> tuple[jax.Array, PyTree]:
    del terms
    outputs, model_state = model.apply(*variables, batch.inputs, train=True, key=key)
    return -cross_entropy(outputs.logits, batch.labels, batch.mask), model_state
