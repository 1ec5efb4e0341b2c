"""Retraining from scratch, the target of every other method, and shortened retraining, which a method should beat."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax

from cujax._ranges import ProportionAboveZero, check_fields
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.model import Model, Variables
from cujax.training.loop import Cost
from cujax.training.supervised import Trainer, Training, epochs_at


@dataclass(frozen=True)
class Retrain:
    """Trains a fresh initialisation on the retain set.

    Attributes:
        training: The recipe; None for that of the original.
    """

    training: Training | None = None

    is_reference: ClassVar[bool] = True

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """A model that never saw `split.forget`; the original is only checked.

        Raises:
            ValueError: if there is no recipe, or its batch is larger than the retain set.
            FloatingPointError: if training diverges.
        """
        if self.training is None:
            raise ValueError("Retrain needs the recipe with which the original was trained: Retrain(Training(...)).")
        trainer = Trainer(
            self.training, loop.images, loop.progress, loop.log, loop.steps_per_call, resume_point=loop.resume_point
        )

        def make() -> tuple[Variables, Cost]:
            trained = trainer.train(model, split.retain.indices, key, description="retraining", frozen=original)
            return trained.variables, trained.cost

        return loop.once(model, original, make, split, forgotten_accuracy=0.0, by_construction=True)


@dataclass(frozen=True)
class RetrainShort:
    """Retrains on the retain set for a share of the epochs, into which the whole learning rate schedule is compressed.

    This is the simplest control: a method is worthwhile only if it is nearer to retrained models than this control is at the
    same number of operations.

    Attributes:
        share: The part of the recipe's epochs for which a new network is trained from scratch; at least one epoch.
        training: The recipe to shorten; None for that of the original.
    """

    share: ProportionAboveZero = 0.7
    training: Training | None = None

    is_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """A model that never saw `split.forget`; the original is only checked.

        Raises:
            ValueError: if there is no recipe, or its batch is larger than the retain set.
            FloatingPointError: if training diverges.
        """
        if self.training is None:
            raise ValueError(
                "RetrainShort needs the recipe with which the original was trained: RetrainShort(training=Training(...))."
            )
        recipe = replace(self.training, epochs=epochs_at(self.training, self.share))
        return Retrain(recipe)(model, original, split, key=key, loop=loop)
