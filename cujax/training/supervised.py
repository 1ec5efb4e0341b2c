"""Supervised training of the original model, and of models retrained without the forget set, with one recipe."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cujax._ranges import Count, NotNegative, Positive, ProportionBelowOne, check_fields
from cujax.batch import Examples, Rows
from cujax.data.batches import (
    Augmentation,
    DeviceImages,
    ImageSet,
    StreamedImages,
    batches_of_all,
    check_augmentation,
    input_shapes,
    preprocess,
)
from cujax.losses import cross_entropy
from cujax.model import Model, PyTree, Variables
from cujax.progress import Progress, silent
from cujax.step import Metrics, Step, UnlearnState, accuracy, update
from cujax.training.loop import NOTHING_YET, Cost, Log, NotFiniteError, Phase, Stepper, memory_of_step
from cujax.training.resume import NO_RESUME_POINT, Position, ResumePoint

OptimizerName = Literal["adamw", "sgd", "adam"]


def optimizer_name(name: OptimizerName) -> OptimizerName:
    """The canonical name: "adam", which was the name of AdamW in 0.1, becomes "adamw"."""
    return "adamw" if name == "adam" else name


@dataclass(frozen=True)
class Training:
    """The recipe of supervised training.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        optimizer: "adamw" (Adam with decoupled weight decay; "adam" is an alias), or "sgd" with heavy-ball momentum 0.9.
        learning_rate: The peak learning rate; it decays to 0 along half a cosine.
        warmup: Share of the steps over which the learning rate first rises linearly from 0 to its peak.
        weight_decay: Strength of L2 decay.
        augmentation: How images are augmented: "none", "crop" (padded and cropped at random) or "crop_flip" (also mirrored
            at random).
    """

    epochs: Count = 20
    batch_size: Count = 64
    optimizer: OptimizerName = "adamw"
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.0
    augmentation: Augmentation = "none"
    warmup: ProportionBelowOne = field(default=0.0, metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", optimizer_name(self.optimizer))
        check_fields(self, "training.")

    def make_optimizer(self, steps: int) -> optax.GradientTransformation:
        """The optimiser for a run of this many steps; the same object for equal settings."""
        return _optimizer(self.optimizer, self.learning_rate, self.weight_decay, steps, round(self.warmup * steps))


@functools.cache
def _optimizer(
    name: OptimizerName, learning_rate: float, weight_decay: float, steps: int, rising: int
) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(learning_rate, steps - rising)
    if rising:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, rising), schedule], [rising])
    return make_optimizer(name, schedule, weight_decay=weight_decay)


def make_optimizer(
    name: OptimizerName,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array = 0.9,
    weight_decay: float | jax.Array = 0.0,
) -> optax.GradientTransformation:
    """Returns the optimiser with this name; every number may be traced.

    Args:
        name: "adamw" (Adam with decoupled weight decay; it ignores `momentum`), or "sgd" with heavy-ball momentum, where
            the weight decay is part of the gradient.
        learning_rate: A number or a schedule.
        momentum: Momentum of "sgd".
        weight_decay: Strength of L2 decay.
    """
    if optimizer_name(name) == "adamw":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate, momentum=momentum))


def epochs_at(recipe: Training, share: float) -> int:
    """The number of epochs that is a share of the recipe's: the nearest integer, at least one."""
    return max(1, round(share * recipe.epochs))


# The public name: cujax.TrainingRecipe.
TrainingRecipe = Training


# The rest is for what the compiler does not count: fragmentation, and metrics on their way to the host.
_SHARE_OF_FREE_MEMORY = 0.7


def free_memory() -> int | None:
    """Bytes that are free on the first device; None for a CPU, and if the device does not report them."""
    statistics = None if jax.default_backend() == "cpu" else jax.local_devices()[0].memory_stats()
    if not statistics or "bytes_limit" not in statistics:
        return None
    return int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))


# Makes a pure step `step(state, examples) -> (state, metrics)` from the network and the optimiser.
MakeStep = Callable[[Model, optax.GradientTransformation], Step]


def make_train_step(model: Model, tx: optax.GradientTransformation) -> Step:
    """The pure supervised update: `step(state, examples) -> (state, metrics)`, on the masked cross-entropy."""
    return jax.tree_util.Partial(_TrainStep(model, tx))


@dataclass(frozen=True)
class _TrainStep:
    model: Model
    tx: optax.GradientTransformation

    def __call__(self, state: UnlearnState, examples: Examples) -> tuple[UnlearnState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)

        def objective(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            outputs, model_state = self.model.apply(params, state.model_state, examples.inputs, train=True, key=key)
            loss = cross_entropy(outputs.logits, examples.labels, examples.mask)
            metrics = {"loss": loss, "accuracy": accuracy(outputs.logits, examples)}
            return loss, (model_state, metrics)

        gradients, (model_state, metrics) = jax.grad(objective, has_aux=True)(state.params)
        return update(self.tx, state, gradients, model_state, metrics, model=self.model)


def fresh_variables(model: Model, images: ImageSet, key: jax.Array) -> Variables:
    """A new initialisation of the model, for inputs like these."""
    return model.init(key, jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), input_shapes(images)))


@dataclass(frozen=True)
class Trained:
    """A trained network and its cost."""

    variables: Variables
    cost: Cost


@dataclass(frozen=True)
class Trainer:
    """What the training runs of an experiment share.

    Attributes:
        recipe: The recipe.
        images: The training images.
        progress: Shows progress.
        log: Receives a record (a dict) of each step.
        steps_per_call: As in `cujax.training.loop.Stepper`.
        resume_point: Saves the progress of the run; if it has saved progress, training resumes from there.
    """

    recipe: Training
    images: ImageSet
    progress: Progress = silent
    log: Log = field(default=lambda record: None)
    steps_per_call: Count | None = None
    resume_point: ResumePoint = NO_RESUME_POINT

    def __post_init__(self) -> None:
        check_fields(self)

    def train(
        self,
        model: Model,
        indices: np.ndarray,
        key: jax.Array,
        *,
        description: str = "training",
        frozen: Variables | None = None,
        start: Callable[[Variables], Variables] = lambda fresh: fresh,
        make_step: MakeStep = make_train_step,
    ) -> Trained:
        """Trains parameters on the images at `indices`; initialisation and order both come from `key`.

        Training starts from what `start` makes of a fresh initialisation, and takes the steps of `make_step`. Frozen
        parameters are taken from `frozen`, the arrays of a network that has them.

        Raises:
            ValueError: if the batch is larger than the number of images; if augmentation is requested for inputs that are
                not images; or if the model freezes parameters and `frozen` is not given: they would stay at their
                initialisation.
            FloatingPointError: if the loss becomes non-finite.
        """
        tx = self._optimizer(model, indices, description, frozen)
        state, order_key = self._start(model, tx, key, frozen, start)

        def batches(epoch: int) -> Iterator[Rows]:
            return batches_of_all(indices, self.recipe.batch_size, jax.random.fold_in(order_key, epoch))

        state, cost = self._fit(state, make_step(model, tx), batches, description)
        return Trained(Variables(state.params, state.model_state), cost)

    def train_together(
        self,
        model: Model,
        indices: np.ndarray,
        keys: Sequence[jax.Array],
        *,
        description: str = "training",
        frozen: Variables | None = None,
    ) -> list[Trained]:
        """As `train` with each of the keys, but all models take each step in one compiled call; equal up to rounding.

        The log receives one record per step, in which each metric is a list with a value per model. The cost of all is
        divided equally.

        Raises:
            ValueError: as `train`, and if the images are read from disk.
            FloatingPointError: if the loss of one of them becomes non-finite.
        """
        if isinstance(self.images, StreamedImages):
            raise ValueError("images on disk are read for one model at a time; train the models one by one.")
        tx = self._optimizer(model, indices, description, frozen)
        states, order_keys = zip(*(self._start(model, tx, key, frozen) for key in keys), strict=True)

        def batches(epoch: int) -> Iterator[Rows]:
            each = (batches_of_all(indices, self.recipe.batch_size, jax.random.fold_in(key, epoch)) for key in order_keys)
            for rows in zip(*each, strict=True):
                yield jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        stacked, cost = self._fit(stacked, make_train_step(model, tx), batches, description, together=True)
        n = len(keys)
        share = Cost(cost.seconds / n, cost.steps, cost.samples // n, None if cost.flops is None else cost.flops / n)
        own = (jax.tree.map(lambda leaf, number=number: leaf[number], stacked) for number in range(n))
        return [Trained(Variables(state.params, state.model_state), share) for state in own]

    def models_at_once(self, model: Model, frozen: Variables | None = None) -> int:
        """How many models `train_together` can hold on the device.

        It is one on a CPU, where training models one by one is faster; if a model is spread over several devices; and if the
        device does not report its memory.
        """
        images = self.images
        if isinstance(images, StreamedImages) or images.mesh is not None or (free := free_memory()) is None:
            return 1
        indices = np.arange(self.recipe.batch_size)
        tx = self._optimizer(model, indices, "training", frozen)
        state, _ = self._start(model, tx, jax.random.key(0), frozen)
        phase = Phase(make_train_step(model, tx), preprocess, batches_of_all(indices, self.recipe.batch_size))
        needed = memory_of_step(state, phase, replace(images, augmentation=self.recipe.augmentation))
        return max(1, int(_SHARE_OF_FREE_MEMORY * free / needed))

    def _optimizer(
        self, model: Model, indices: np.ndarray, description: str, frozen: Variables | None
    ) -> optax.GradientTransformation:
        """The recipe's optimiser for some images, after checks."""
        recipe = self.recipe
        are_images = not isinstance(self.images, DeviceImages) or self.images.are_images
        check_augmentation(recipe.augmentation, are_images=are_images)
        if recipe.batch_size > len(indices):
            raise ValueError(
                f"training.batch_size is {recipe.batch_size}, but there are only {len(indices)} images to train on; "
                f"make it at most {len(indices)}."
            )
        if model.freezes and frozen is None:
            raise ValueError(
                f"{description}: the network freezes parameters (trainable=...), which would stay at a random "
                "initialisation. Give the original that has them (--original), or train all of the network."
            )
        return recipe.make_optimizer(recipe.epochs * -(-len(indices) // recipe.batch_size))

    def _start(
        self,
        model: Model,
        tx: optax.GradientTransformation,
        key: jax.Array,
        frozen: Variables | None,
        start: Callable[[Variables], Variables] = lambda fresh: fresh,
    ) -> tuple[UnlearnState, jax.Array]:
        """The state before the first step, and the key of the order of images."""
        init_key, state_key, order_key = jax.random.split(key, 3)
        variables = start(fresh_variables(model, self.images, init_key))
        if frozen is not None:
            variables = model.keep_frozen_variables(variables, frozen)
        return UnlearnState.create(*variables, tx, state_key), order_key

    def _fit(
        self,
        state: UnlearnState,
        step: Step,
        batches: Callable[[int], Iterator[Rows]],
        description: str,
        *,
        together: bool = False,
    ) -> tuple[UnlearnState, Cost]:
        """The state after all epochs, and the cost."""
        recipe = self.recipe
        images = replace(self.images, augmentation=recipe.augmentation)
        position, cost = Position(), NOTHING_YET
        kept = self.resume_point.resume({"state": state})
        if kept is not None:
            tree, record = kept
            state, position, cost = tree["state"], Position(**record["position"]), Cost(**record["cost"])
        stepper = Stepper(images, self.log, self.steps_per_call, cost, self.resume_point.due)

        def keep(epoch: int, state: UnlearnState, batches: int) -> None:
            record = {"position": asdict(Position(epoch, 0, batches)), "cost": asdict(stepper.cost)}
            self.resume_point.keep({"state": state}, record)

        with self.progress(description, recipe.epochs) as advance:
            if position.passes:
                advance(position.passes)
            for epoch in range(position.passes, recipe.epochs):
                skip = position.batches if epoch == position.passes else 0
                try:
                    phase = Phase(step, preprocess, batches(epoch), together)
                    state = stepper.run(state, phase, skip=skip, keep=functools.partial(keep, epoch))
                except NotFiniteError as error:
                    raise FloatingPointError(
                        f"{description} diverged: {error} Lower training.learning_rate, now {recipe.learning_rate}."
                    ) from error
                advance()
        return state, stepper.cost
