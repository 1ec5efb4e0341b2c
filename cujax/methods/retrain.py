"""Retraining from scratch, the target of every other method, and shortened retraining, which a method should beat."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax

from cujax._ranges import ProportionAboveZero, check_fields
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.model import Model, Variables
from cujax.training.loop import Cost
from cujax.training.supervised import MakeStep, Trainer, Training, epochs_at, make_train_step


def given_recipe(training: Training | None, method: str, setting: str = "training=") -> Training:
    """The recipe of a method that trains from scratch.

    Raises:
        ValueError: if there is none.
    """
    if training is None:
        raise ValueError(f"{method} needs the recipe with which the original was trained: {method}({setting}Training(...)).")
    return training


def shortened_recipe(training: Training | None, share: float, method: str) -> Training:
    """The recipe with a share of its epochs, into which the whole learning rate schedule is compressed.

    Raises:
        ValueError: if there is none.
    """
    recipe = given_recipe(training, method)
    return replace(recipe, epochs=epochs_at(recipe, share))


def train_on_retain_set(
    recipe: Training,
    model: Model,
    original: Variables,
    split: Split,
    *,
    key: jax.Array,
    loop: Loop,
    start: Callable[[Variables], Variables] = lambda fresh: fresh,
    make_step: MakeStep = make_train_step,
) -> tuple[Variables, Cost]:
    """The arrays of a network that is trained on `split.retain`, and the cost.

    Args:
        recipe: How it is trained.
        model: The network.
        original: Arrays from which frozen parameters are taken.
        split: The forget set and the retain set.
        key: Key of the initialisation and the order.
        loop: The images and the run.
        start: Makes the arrays with which training starts from a fresh initialisation.
        make_step: Makes the step from the network and the optimiser; by default, one on the cross-entropy.

    Raises:
        ValueError: if the recipe's batch is larger than the retain set.
        FloatingPointError: if training diverges.
    """
    trainer = Trainer(recipe, loop.images, loop.progress, loop.log, loop.steps_per_call, resume_point=loop.resume_point)
    trained = trainer.train(
        model, split.retain.indices, key, description="retraining", frozen=original, start=start, make_step=make_step
    )
    return trained.variables, trained.cost


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
        recipe = given_recipe(self.training, "Retrain", setting="")

        def make() -> tuple[Variables, Cost]:
            return train_on_retain_set(recipe, model, original, split, key=key, loop=loop)

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
        recipe = shortened_recipe(self.training, self.share, "RetrainShort")
        return Retrain(recipe)(model, original, split, key=key, loop=loop)
