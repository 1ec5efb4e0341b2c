"""UNSIR: impairs with noise that is the opposite of a class, then repairs (Tarun et al., arXiv:2111.08947)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cujax._ranges import Count, Positive
from cujax.batch import Batch, Examples, Rows
from cujax.data.batches import batches_of_all, check_float_inputs, input_shapes, noise_like, preprocess
from cujax.data.requests import Split, check_whole_classes
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.fine_tune import retain_objective
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables, num_rows
from cujax.step import Metrics, UnlearnState, apply_to_batch
from cujax.training.loop import Cost, Phase, Stepper
from cujax.training.supervised import OptimizerName

_NOISE_STEPS = 40
_NOISE_LEARNING_RATE = 0.1
_NOISE_PENALTY = 0.1


@dataclass(frozen=True)
class Unsir(Descent):
    """Trains on noise labelled as the class together with retain samples (impair), then on retain samples alone (repair).

    The noise maximises the cross-entropy of the original for its class: 40 steps of Adam at 0.1 on
    `-CE + 0.1 · mean of the squared norm`, in eval mode, from standard normal images. All of it is added to every batch of
    the impair phase. A pass is both phases over some retain samples of each class; each phase has its own optimiser.

    Attributes:
        repair_learning_rate: Learning rate of the second phase; `learning_rate` is that of the first.
        retain_per_class: Number of randomly drawn retain samples of each class.
        noise_batch_size: Number of noise images, shared between the forgotten classes. Published code has 0.57 for each
            retain sample; here, with batches of 256, it is 0.5.
    """

    optimizer: OptimizerName = "adamw"
    learning_rate: Positive = 0.02
    max_passes: Count = 1
    repair_learning_rate: Positive = 0.01
    retain_per_class: Count = 1000
    noise_batch_size: Count = 128

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.3), adamw=LogUniform(3e-4, 0.03)),
        "repair_learning_rate": ByOptimizer(sgd=LogUniform(0.001, 0.1), adamw=LogUniform(2e-4, 0.02)),
        "max_passes": LogUniform(1, 5),
    }
    reproduction: ClassVar[Reproduction] = {"class": {}}

    def check(self, split: Split) -> None:
        """Raises ValueError if the request is for samples, or there are more classes than noise images."""
        check_whole_classes(split, "unsir makes noise against")
        if self.noise_batch_size < len(split.forgotten_classes):
            raise ValueError(
                f"noise_batch_size is {self.noise_batch_size}, but {len(split.forgotten_classes)} classes are to be "
                "forgotten; make it at least that, so that there is an image for each class."
            )

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Raises:
            ValueError: if the request is for samples, or there are more classes than noise images.
            NotFiniteError: if the noise is not finite.
        """
        self.check(split)
        check_float_inputs(loop.images, "unsir learns noise in place of inputs")
        state_key, noise_key, retain_key, batch_key = jax.random.split(key, 4)
        noise, cost = self.learn_noise(model, original, split, noise_key, loop)
        retain = _some_of_each_class(split.retain.indices, np.asarray(loop.images.labels), self.retain_per_class, retain_key)
        impair = _with_own_optimizer(0, self.step(model, _impair, noise))
        repair = _with_own_optimizer(1, replace(self, learning_rate=self.repair_learning_rate).step(model, retain_objective))

        def passes(number: int) -> list[Phase]:
            keys = jax.random.split(jax.random.fold_in(batch_key, number))
            size = min(self.batch_size, len(retain))
            return [
                Phase(step, preprocess, batches_of_all(retain, size, phase_key))
                for step, phase_key in zip((impair, repair), keys, strict=True)
            ]

        state = self.state(original, state_key)
        own = replace(state, opt_state=(state.opt_state, jax.tree.map(jnp.copy, state.opt_state)))
        return loop.run(
            model,
            own,
            passes,
            split,
            max_passes=self.max_passes,
            forgotten_accuracy=self.forgotten_accuracy,
            repairs=True,
            spent=cost,
        )

    def learn_noise(
        self, model: Model, original: Variables, split: Split, key: jax.Array, loop: Loop
    ) -> tuple[Examples, Cost]:
        """The noise with its labels, and its cost."""
        own = np.asarray(loop.images.labels)[split.forget.indices]
        labels = np.resize(np.asarray(split.forgotten_classes), self.noise_batch_size)
        # The step is driven by rows of the classes: it takes their labels, and leaves the images alone.
        rows = np.array([split.forget.indices[np.flatnonzero(own == label)[0]] for label in labels], np.int32)
        noise = noise_like(key, input_shapes(loop.images, self.noise_batch_size))
        maker = Descent(optimizer="adamw", learning_rate=_NOISE_LEARNING_RATE)
        step = maker.step(model, _noise_objective, original)
        stepper = Stepper(loop.images, lambda record: None, loop.steps_per_call)
        batches = [Rows(rows, np.ones(len(rows), bool))] * _NOISE_STEPS
        state = stepper.run(maker.state(Variables(noise, {}), key), Phase(step, preprocess, batches))
        return Examples(state.params, jnp.asarray(labels, jnp.int32)), replace(stepper.cost, steps=0)


def _noise_objective(
    model: Model, noise: Variables, batch: Examples, original: Variables, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    del key
    inputs = noise.params
    outputs, _ = model.apply(*original, inputs, train=False)
    # Rows that pad the batch for several devices have no noise of their own.
    size = sum(jnp.mean(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))) for leaf in jax.tree.leaves(inputs))
    return -cross_entropy(outputs.logits, batch.labels[: num_rows(inputs)]) + _NOISE_PENALTY * size, {}


def _impair(
    model: Model, variables: Variables, batch: Examples, noise: Examples, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    of_noise, of_retain, model_state = apply_to_batch(model, *variables, Batch(noise, batch), key, "joint")
    logits, labels, mask = (
        jnp.concatenate(rows)
        for rows in (
            (of_noise.logits, of_retain.logits),
            (noise.labels, batch.labels),
            (noise.counts, batch.counts),
        )
    )
    return cross_entropy(logits, labels, mask), model_state


def _some_of_each_class(indices: np.ndarray, labels: np.ndarray, most: int, key: jax.Array) -> np.ndarray:
    order = np.asarray(jax.random.permutation(key, indices))
    return np.concatenate([order[labels[order] == label][:most] for label in np.unique(labels[order])])


class _OwnOptimizer(NamedTuple):
    number: int

    def __call__(self, step: Any, state: UnlearnState, batch: Any) -> tuple[UnlearnState, Metrics]:
        states = list(state.opt_state)
        moved, metrics = step(replace(state, opt_state=states[self.number]), batch)
        states[self.number] = moved.opt_state
        return replace(moved, opt_state=tuple(states)), metrics


def _with_own_optimizer(number: int, step: Any) -> Any:
    """The step on the optimiser state with this number, for a state that contains several."""
    return jax.tree_util.Partial(_OwnOptimizer(number), step)
