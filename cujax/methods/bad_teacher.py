"""Bad teacher: a random network teaches the forget set, the original the retain set (Chundawat et al., arXiv:2205.08096)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cujax._ranges import Count, Positive, ProportionAboveZero
from cujax.batch import Batch, IndexBatch, Rows
from cujax.data.batches import gather
from cujax.data.requests import Split
from cujax.losses import distillation
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.step import apply_to_batch
from cujax.training.loop import Phase
from cujax.training.supervised import OptimizerName, fresh_variables


@dataclass(frozen=True)
class BadTeacher(Descent):
    """Minimises `KL(teacher ‖ student)`, where a random network teaches the forget set, and the original the retain set.

    Both teachers are in eval mode. A pass goes over the forget set and a share of the retain set together; the rows are the
    same in every pass.

    Attributes:
        retain_share: Share of the retain set that is used.
    """

    optimizer: OptimizerName = "adamw"
    learning_rate: Positive = 1e-4
    max_passes: Count = 1
    retain_share: ProportionAboveZero = 0.3

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.001, 0.1), adamw=LogUniform(1e-4, 1e-2)),
        "retain_share": LogUniform(0.1, 1.0),
        "max_passes": LogUniform(1, 10),
    }
    reproduction: ClassVar[Reproduction] = {"class": {"learning_rate": 0.008, "retain_share": 1.0, "max_passes": 4}}

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`."""
        state_key, teacher_key, retain_key, batch_key = jax.random.split(key, 4)
        step = self.step(model, _objective, _Teachers(fresh_variables(model, loop.images, teacher_key), original))
        used = max(round(self.retain_share * len(split.retain)), 1)
        retain = np.asarray(jax.random.permutation(retain_key, split.retain.indices))[:used]

        def passes(number: int) -> list[Phase]:
            pass_key = jax.random.fold_in(batch_key, number)
            return [Phase(step, gather, mixed_batches(split.forget.indices, retain, self.batch_size, pass_key))]

        return self.run(model, original, split, passes, key=state_key, loop=loop)


def mixed_batches(forget: np.ndarray, retain: np.ndarray, batch_size: int, key: jax.Array) -> Iterator[IndexBatch]:
    """Yields every row of both sets once, shuffled, in batches with the same proportion of both (up to rounding).

    Shapes must not vary between batches, so if the rows do not divide evenly, batches are padded with masked rows.

    Args:
        forget: Indices of the forget set.
        retain: Indices of the retain set.
        batch_size: Rows of a batch, of both sets together; up to two more if shares are rounded up.
        key: Random key of the order.
    """
    batches = -(-(len(forget) + len(retain)) // batch_size)

    def spread(rows: np.ndarray, key: jax.Array) -> Iterator[Rows]:
        order = np.asarray(jax.random.permutation(key, rows), np.int32)
        size = -(-len(order) // batches)
        for part in np.array_split(order, batches):
            filler = np.resize(order, size - len(part))
            yield Rows(np.concatenate([part, filler]), np.arange(size) < len(part))

    yield from map(IndexBatch, *map(spread, (forget, retain), jax.random.split(key)))


class _Teachers(NamedTuple):
    random: Variables
    original: Variables


def _objective(
    model: Model, variables: Variables, batch: Batch, teachers: _Teachers, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    bad, _ = model.apply(*teachers.random, batch.forget.inputs, train=False)
    good, _ = model.apply(*teachers.original, batch.retain.inputs, train=False)
    forget, retain, model_state = apply_to_batch(model, *variables, batch, key, "joint")
    student, teacher, mask = (
        jnp.concatenate(rows)
        for rows in (
            (forget.logits, retain.logits),
            (bad.logits, good.logits),
            (batch.forget.counts, batch.retain.counts),
        )
    )
    return distillation(student, teacher, mask), model_state
