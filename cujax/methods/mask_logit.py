"""Masks the logits of the forgotten classes: the control that any method must beat, since it forgets nothing."""

from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp

from cujax.data.requests import Split, check_whole_classes
from cujax.methods.base import Loop, Unlearned
from cujax.model import Model, PyTree, Variables
from cujax.training.loop import NOTHING_YET


@dataclass(frozen=True)
class MaskLogit:
    """Never predicts the forgotten classes: sets their logits to minus infinity. No training; embeddings are unchanged.

    Requested by reviewers of contrastive unlearning (Lee et al., arXiv:2401.10458). For whole classes only.
    """

    def check(self, split: Split) -> None:
        """Raises ValueError if the request is for samples, not classes."""
        check_whole_classes(split, "mask_logit hides")

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Returns the original's arrays, and a model that masks `split.forgotten_classes`.

        Raises:
            ValueError: if the request is for samples, not classes.
        """
        del key
        self.check(split)
        masked = MaskedModel.of(model, split.forgotten_classes)
        return loop.once(model, original, lambda: (original, NOTHING_YET), split, forgotten_accuracy=0.0, made_model=masked)


@dataclass(frozen=True)
class MaskedModel(Model):
    """A model with the logits of some classes at minus infinity.

    Attributes:
        model: The model.
        masked_classes: The classes.
    """

    model: Model
    masked_classes: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, masked_classes: tuple[int, ...]) -> Self:
        """A model with some of its classes masked."""
        return cls(model.declared_num_classes, model.layers, model.axis_name, model, masked_classes)

    @property
    def freezes(self) -> bool:
        return self.model.freezes

    def is_trainable(self, path: str) -> bool:
        return self.model.is_trainable(path)

    def _state_path(self, path: str) -> str:
        return self.model._state_path(path)

    def _init(self, key: jax.Array, images: jax.Array) -> Variables:
        return self.model.init(key, images)

    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]:
        model = self.model if self.axis_name is None else self.model.with_axis_name(self.axis_name)
        outputs, model_state = model.apply(*variables, images, train=train, key=key)
        logits = outputs.logits.at[:, jnp.array(self.masked_classes)].set(-jnp.inf)
        return replace(outputs, logits=logits), model_state
