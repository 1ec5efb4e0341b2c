"""Random labels: teaches wrong answers for the forget set (Golatkar et al., arXiv:1911.04933)."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cujax._ranges import NotNegative, Positive
from cujax.batch import Examples
from cujax.data.batches import preprocess
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent, shuffled
from cujax.methods.fine_tune import retain_objective
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, Choice, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.training.loop import Phase


@dataclass(frozen=True)
class RandomLabels(Descent):
    """Minimises the cross-entropy of the forget set with random labels, then that of the retain set with its own.

    A pass is a pass over the forget set followed by one over the retain set. New labels are drawn for each batch, uniformly
    from the retained classes. Defaults as in the code of Fan et al. (arXiv:2310.12508).

    Attributes:
        true_label_allowed: Whether a random label may equal the true label, as in published code.
    """

    learning_rate: Positive = 0.013
    weight_decay: NotNegative = 5e-4
    true_label_allowed: bool = False

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.1), adamw=LogUniform(1e-4, 5e-3)),
        "batch_size": Choice((64, 128)),
        "max_passes": LogUniform(2, 20),
    }
    reproduction: ClassVar[Reproduction] = {"class": {"batch_size": 64, "max_passes": 4}}

    def check(self, split: Split) -> None:
        """Raises ValueError if there is no other label for a sample."""
        if not self.true_label_allowed and len(split.retained_classes) == 1 and not split.is_class_task:
            raise ValueError(
                f"only class {split.retained_classes[0]} is retained, so there is no other label for its samples; retain "
                "samples of another class, or set true_label_allowed."
            )

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Raises:
            ValueError: if a sample has no other class to be labelled with.
        """
        return self.relabel(model, original, split, key=key, loop=loop)

    def relabel(
        self,
        model: Model,
        original: Variables,
        split: Split,
        *,
        key: jax.Array,
        loop: Loop,
        mask: PyTree | None = None,
        **options: Any,
    ) -> Unlearned:
        """Runs the method, with updates where `mask` is True; takes the options of `Loop.run`."""
        state_key, forget_key, retain_key = jax.random.split(key, 3)
        forget_step = self.step(model, _objective, self.draw(model, split, loop), mask)
        retain_step = self.step(model, retain_objective, mask=mask)

        def passes(number: int) -> list[Phase]:
            return [
                Phase(forget_step, preprocess, shuffled(split.forget, self.batch_size, forget_key, number)),
                Phase(retain_step, preprocess, shuffled(split.retain, self.batch_size, retain_key, number)),
            ]

        return self.run(model, original, split, passes, key=state_key, loop=loop, **options)

    def draw(self, model: Model, split: Split, loop: Loop) -> "LabelDraw":
        """The classes from which random labels are drawn: those of the retain set.

        Raises:
            ValueError: if a sample has no other class to be labelled with.
        """
        self.check(split)
        classes = np.unique(np.asarray(loop.images.labels)[split.retain.indices])
        return LabelDraw(jnp.zeros(model.num_classes, bool).at[classes].set(True), self.true_label_allowed)


class LabelDraw(NamedTuple):
    """The arguments of `random_labels` that a step holds: `[C]` bool, and whether the draw may hit the true label."""

    classes: jax.Array
    true_label_allowed: bool | jax.Array


def random_labels(
    key: jax.Array, labels: jax.Array, classes: jax.Array, true_label_allowed: bool | jax.Array = False
) -> jax.Array:
    """A label for each sample, drawn uniformly from the given classes.

    Args:
        key: A typed key.
        labels: `[B]` int32, the true labels.
        classes: `[C]` bool, True for the classes to draw from.
        true_label_allowed: Whether a random label may equal the true label.

    Returns:
        `[B]` int32.

    >>> labels = jnp.array([0, 1, 2, 2])
    >>> random_labels(jax.random.key(0), labels, jnp.array([True, True, False]))[:2].tolist()
    [1, 0]
    """
    is_true = labels[:, None] == jnp.arange(classes.shape[0])[None, :]
    possible = classes[None, :] & (~is_true | true_label_allowed)
    return jax.random.categorical(key, jnp.where(possible, 0.0, -jnp.inf)).astype(jnp.int32)


def _objective(
    model: Model, variables: Variables, batch: Examples, draw: LabelDraw, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    label_key, dropout_key = jax.random.split(key)
    labels = random_labels(label_key, batch.labels, *draw)
    outputs, model_state = model.apply(*variables, batch.inputs, train=True, key=dropout_key)
    return cross_entropy(outputs.logits, labels, batch.mask), model_state
