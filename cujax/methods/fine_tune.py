"""Fine-tuning: trains on the retain set only (Golatkar et al., arXiv:1911.04933)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from cujax._ranges import NotNegative
from cujax.batch import Examples
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables


@dataclass(frozen=True)
class FineTune(Descent):
    """Minimises the cross-entropy of the retain set; a pass is a pass over it.

    Defaults: 10 passes of SGD at 0.01 in batches of 256, as in the code of Fan et al. (arXiv:2310.12508).
    """

    weight_decay: NotNegative = 5e-4

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.3), adamw=LogUniform(1e-4, 1e-2)),
        "max_passes": LogUniform(5, 40),
    }
    reproduction: ClassVar[Reproduction] = {
        "class": {"optimizer": "adamw", "learning_rate": 1e-2, "weight_decay": 0.0, "batch_size": 64, "max_passes": 15}
    }

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used."""
        return self.tune(model, original, split, key=key, loop=loop)

    def tune(
        self,
        model: Model,
        start: Variables,
        split: Split,
        *,
        key: jax.Array,
        loop: Loop,
        mask: PyTree | None = None,
        **options: Any,
    ) -> Unlearned:
        """Runs the method from any start, with updates where `mask` is True; takes the options of `Loop.run`."""
        state_key, batch_key = jax.random.split(key)
        passes = self.passes_over(split.retain, self.step(model, retain_objective, mask=mask), batch_key)
        return self.run(model, start, split, passes, key=state_key, loop=loop, **options)


def retain_objective(
    model: Model, variables: Variables, batch: Examples, terms: Any, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    """The cross-entropy of a batch of retain samples, in train mode."""
    del terms
    outputs, model_state = model.apply(*variables, batch.inputs, train=True, key=key)
    return cross_entropy(outputs.logits, batch.labels, batch.mask), model_state
