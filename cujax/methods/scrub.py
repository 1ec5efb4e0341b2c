"""SCRUB: a student that moves away from its teacher on the forget set (Kurmanji et al., arXiv:2302.09880, NeurIPS 2023)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

from cujax._ranges import Count, NotNegative, Positive
from cujax.batch import Examples
from cujax.data.batches import preprocess
from cujax.data.requests import Split
from cujax.losses import cross_entropy, distillation
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent, shuffled
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, Choice, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.training.loop import Phase

_STEP_AWAY = 1e-3


@dataclass(frozen=True)
class Scrub(Descent):
    """Alternates between moving away from the original on the forget set and staying close to it on the retain set.

    With the original f0 as teacher, in eval mode, and `D = T² · KL(f0 ‖ f)` at temperature T, pass e = 1, 2, ... consists of
    one pass over the forget set that maximises D, if `e <= max_steps`, then one over the retain set that minimises
    `gamma · CE + alpha · D`. Defaults are those published for large forget sets, such as a class; `small` has the others.

    The student starts a small random step away from the teacher. In a network without batch statistics and dropout, both
    would otherwise give the same answers, and the gradient of D would be exactly zero.

    Attributes:
        gamma: Weight of the cross-entropy.
        alpha: Weight of distillation on the retain set.
        temperature: Temperature of distillation (T).
        max_steps: Number of passes that begin with the pass over the forget set (msteps).
        forget_batch_size: Rows of a forget batch; `batch_size` applies to the retain set.
        rewind: SCRUB+R: run all passes, then go back to the one whose forget accuracy is nearest to that of held-out
            samples of the same classes.
    """

    learning_rate: Positive = 5e-4
    weight_decay: NotNegative = 5e-4
    batch_size: Count = 128
    max_passes: Count = 3
    gamma: NotNegative = 0.99
    alpha: NotNegative = 0.001
    temperature: Positive = 4.0
    max_steps: Count = 2
    forget_batch_size: Count = 512
    rewind: bool = False

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(5e-4, 0.05), adamw=LogUniform(5e-5, 5e-3)),
        "gamma": LogUniform(0.1, 1.0),
        "alpha": LogUniform(0.001, 0.1),
        "max_steps": LogUniform(1, 5),
        "max_passes": LogUniform(3, 12),
        "forget_batch_size": Choice((64, 128)),
    }
    reproduction: ClassVar[Reproduction] = {
        "class": {
            "optimizer": "adamw",
            "weight_decay": 0.0,
            "gamma": 1.0,
            "alpha": 0.1,
            "max_steps": 3,
            "max_passes": 4,
            "forget_batch_size": 64,
        },
    }

    @classmethod
    def small(cls) -> Self:
        """The settings published for small forget sets."""
        return cls(
            optimizer="adamw",
            weight_decay=0.1,
            batch_size=64,
            max_passes=10,
            gamma=1.0,
            alpha=0.5,
            temperature=2.0,
            max_steps=3,
            forget_batch_size=32,
        )

    @classmethod
    def official(cls, task: Literal["class", "samples"] = "class") -> Self:
        """The settings published for class-sized sets, or for a few samples."""
        return cls() if task == "class" else cls.small()

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`."""
        state_key, forget_key, retain_key = jax.random.split(key, 3)
        student = _apart(original, jax.random.fold_in(key, 3))
        depart = self.step(model, _depart, _Terms(original, self.temperature, self.gamma, self.alpha))
        stay = self.step(model, _stay, _Terms(original, self.temperature, self.gamma, self.alpha))

        def passes(number: int) -> list[Phase]:
            maximise = Phase(depart, preprocess, shuffled(split.forget, self.forget_batch_size, forget_key, number))
            minimise = Phase(stay, preprocess, shuffled(split.retain, self.batch_size, retain_key, number))
            return [maximise, minimise] if number < self.max_steps else [minimise]

        options = {"rewind": self.rewind, "repairs": True, "original": original}
        return self.run(model, student, split, passes, key=state_key, loop=loop, **options)


@jax.jit
def _apart(original: Variables, key: jax.Array) -> Variables:
    """The arrays with each parameter array moved by `_STEP_AWAY` of its root mean square, in a random direction."""
    leaves, structure = jax.tree.flatten(original.params)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + (_STEP_AWAY * jnp.sqrt(jnp.mean(leaf**2)) * jax.random.normal(own, leaf.shape)).astype(leaf.dtype)
        for leaf, own in zip(leaves, keys, strict=True)
    ]
    return Variables(jax.tree.unflatten(structure, moved), original.model_state)


class _Terms(NamedTuple):
    teacher: Variables
    temperature: float | jax.Array
    gamma: float | jax.Array
    alpha: float | jax.Array


def _depart(model: Model, variables: Variables, batch: Examples, terms: _Terms, key: jax.Array) -> tuple[jax.Array, PyTree]:
    teacher, _ = model.apply(*terms.teacher, batch.inputs, train=False)
    student, model_state = model.apply(*variables, batch.inputs, train=True, key=key)
    return -distillation(student.logits, teacher.logits, batch.mask, temperature=terms.temperature), model_state


def _stay(model: Model, variables: Variables, batch: Examples, terms: _Terms, key: jax.Array) -> tuple[jax.Array, PyTree]:
    teacher, _ = model.apply(*terms.teacher, batch.inputs, train=False)
    student, model_state = model.apply(*variables, batch.inputs, train=True, key=key)
    agreement = distillation(student.logits, teacher.logits, batch.mask, temperature=terms.temperature)
    loss = terms.gamma * cross_entropy(student.logits, batch.labels, batch.mask) + terms.alpha * agreement
    return loss, model_state
