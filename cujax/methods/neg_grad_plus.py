"""NegGrad+: descent on the retain set and ascent on the forget set, in one step (Kurmanji et al., arXiv:2302.09880)."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax

from cujax._ranges import Count, Proportion
from cujax.batch import Batch, IndexBatch, Rows
from cujax.data.batches import gather
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent, shuffled
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.step import apply_to_batch
from cujax.training.loop import Phase


@dataclass(frozen=True)
class NegGradPlus(Descent):
    """Minimises `alpha · CE(retain batch) - (1 - alpha) · CE(forget batch)`.

    A pass is a pass over the retain set; the forget set is repeated alongside it, in a new order each time.

    Attributes:
        alpha: Weight of the retain set; published values range from 0.95 to 0.9999.
    """

    batch_size: Count = 128
    max_passes: Count = 5
    alpha: Proportion = 0.95

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.001, 0.1), adamw=LogUniform(5e-5, 5e-3)),
        "alpha": LogUniform(0.005, 0.5, below_one=True),
        "max_passes": LogUniform(1, 10),
    }
    reproduction: ClassVar[Reproduction] = {"class": {"optimizer": "adamw", "learning_rate": 5e-4, "max_passes": 1}}

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`."""
        state_key, retain_key, forget_key = jax.random.split(key, 3)
        step = self.step(model, _objective, self.alpha)

        def forget_batches(number: int) -> Iterator[Rows]:
            for turn in itertools.count():
                yield from shuffled(split.forget, self.batch_size, jax.random.fold_in(forget_key, number), turn)

        def passes(number: int) -> list[Phase]:
            retain = shuffled(split.retain, self.batch_size, retain_key, number)
            pairs = zip(forget_batches(number), retain, strict=False)
            return [Phase(step, gather, itertools.starmap(IndexBatch, pairs))]

        return self.run(model, original, split, passes, key=state_key, loop=loop)


def _objective(
    model: Model, variables: Variables, batch: Batch, alpha: jax.Array, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    # Each set is normalised by its own statistics, as in two forward passes; those of the retain set are kept.
    forget, retain, model_state = apply_to_batch(model, *variables, batch, key, "retain_only")
    retain_loss = cross_entropy(retain.logits, batch.retain.labels, batch.retain.mask)
    forget_loss = cross_entropy(forget.logits, batch.forget.labels, batch.forget.mask)
    return alpha * retain_loss - (1 - alpha) * forget_loss, model_state
