"""Shrink and perturb: shortened retraining from a mixture of the original's weights and fresh ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax

from cujax._ranges import Proportion, ProportionAboveZero, check_fields
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.retrain import shortened_recipe, train_on_retain_set
from cujax.methods.search_space import LogUniform, SearchSpace
from cujax.model import Model, Variables
from cujax.training.loop import Cost
from cujax.training.supervised import Training


@dataclass(frozen=True)
class ShrinkPerturb:
    """Trains `shrink · original + (1 - shrink) · fresh` on the retain set for a share of the epochs.

    The start is that of Ash and Adams (arXiv:1910.08475), who warm-start a network on grown data; they add noise of a chosen
    scale to the shrunk weights, where the fresh initialisation is scaled by the rest here. A small part of the original
    speeds up training, and what was memorised of single samples is lost in the mixture. Parameters and batch statistics are
    mixed alike. The learning rate schedule is compressed as in `RetrainShort`, which is the same with `shrink=0`.

    Attributes:
        shrink: Share of the original in the weights with which training starts.
        share: The part of the recipe's epochs for which the mixture is trained; at least one epoch.
        training: The recipe to shorten; None for that of the original.
    """

    shrink: Proportion = 0.2
    share: ProportionAboveZero = 0.4
    training: Training | None = None

    search_space: ClassVar[SearchSpace] = {"shrink": LogUniform(0.05, 0.8), "share": LogUniform(0.1, 0.6)}

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used.

        Raises:
            ValueError: if there is no recipe, or its batch is larger than the retain set.
            FloatingPointError: if training diverges.
        """
        recipe = shortened_recipe(self.training, self.share, "ShrinkPerturb")

        def make() -> tuple[Variables, Cost]:
            start = mixture(original, self.shrink)
            return train_on_retain_set(recipe, model, original, split, key=key, loop=loop, start=start)

        return loop.once(model, original, make, split, forgotten_accuracy=None)


def mixture(original: Variables, shrink: float) -> Callable[[Variables], Variables]:
    """The function that makes `shrink · original + (1 - shrink) · fresh` of a fresh initialisation."""

    def mixed(fresh: Variables) -> Variables:
        found: Variables = jax.tree.map(lambda old, new: shrink * old + (1.0 - shrink) * new, original, fresh)
        return found

    return mixed
