"""The settings, the step and the run of all methods that descend on an objective.

Such a method consists of an objective and the phases of one pass; docs/adding_a_method.md has an example.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cujax._ranges import Count, NotNegative, Positive, ProportionBelowOne, check_fields
from cujax.batch import Rows
from cujax.data.batches import batches_of_all, preprocess
from cujax.data.requests import Part, Split
from cujax.methods.base import Loop, Unlearned
from cujax.model import Model, PyTree, Variables
from cujax.step import Metrics, UnlearnState, update
from cujax.training.loop import Phase
from cujax.training.supervised import OptimizerName, make_optimizer, optimizer_name

# `objective(model, variables, batch, terms, key) -> (loss, model_state)`: pure, defined at module level, so that equal
# steps are equal values. `batch` is what the phase's `prepare` gives; `terms` is a tree of arrays and floats, such as
# weights and teachers.
Objective = Callable[[Model, Variables, Any, Any, jax.Array], tuple[jax.Array, PyTree]]


@dataclass(frozen=True)
class Descent:
    """Settings that these methods have in common; each has its own published defaults.

    Attributes:
        optimizer: "sgd" with momentum, or "adamw" with decoupled weight decay ("adam" is an alias).
        learning_rate: Learning rate of the optimiser.
        momentum: Momentum of "sgd".
        weight_decay: Strength of L2 decay.
        batch_size: Rows of a batch; a smaller set forms one batch.
        max_passes: The maximum number of passes.
        forgotten_accuracy: If whole classes are to be forgotten, the run ends when accuracy on them is at most this. None:
            one divided by the number of classes.
    """

    optimizer: OptimizerName = "sgd"
    learning_rate: Positive = 0.01
    momentum: ProportionBelowOne = 0.9
    weight_decay: NotNegative = 0.0
    batch_size: Count = 256
    max_passes: Count = 10
    forgotten_accuracy: ProportionBelowOne | None = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", optimizer_name(self.optimizer))
        check_fields(self)

    def step(self, model: Model, objective: Objective, terms: Any = (), mask: PyTree | None = None) -> Callable[..., Any]:
        """The pure update on an objective: `step(state, batch) -> (state, metrics)`.

        Returns a `jax.tree_util.Partial`: all numbers among the settings and terms are traced and the rest is compared by
        value, so another learning rate or weight does not trigger a new compilation.

        Args:
            model: The network.
            objective: The objective to minimise.
            terms: Its weights, teachers and so on.
            mask: Which parameters may change, as in `mask_updates`; by default all.
        """
        numbers = self.learning_rate, self.momentum, self.weight_decay
        return jax.tree_util.Partial(_Step(model, objective, self.optimizer), _Traced(*numbers, terms, mask))

    def passes_over(self, part: Part, step: Callable[..., Any], key: jax.Array) -> Callable[[int], list[Phase]]:
        """Passes of one step over all rows of a part, in a new order each time."""
        return lambda number: [Phase(step, preprocess, shuffled(part, self.batch_size, key, number))]

    def state(self, start: Variables, key: jax.Array) -> UnlearnState:
        """The state before the first step."""
        tx = _optimizer(self.optimizer, self.learning_rate, self.momentum, self.weight_decay)
        return UnlearnState.create(*start, tx, key)

    def run(
        self,
        model: Model,
        start: Variables,
        split: Split,
        passes: Callable[..., Iterable[Phase]],
        *,
        key: jax.Array,
        loop: Loop,
        **options: Any,
    ) -> Unlearned:
        """Runs passes, from the original or another start, with the shared stop rule; takes the options of `Loop.run`."""
        return loop.run(
            model,
            self.state(start, key),
            passes,
            split,
            max_passes=self.max_passes,
            forgotten_accuracy=self.forgotten_accuracy,
            **options,
        )


class _Traced(NamedTuple):
    learning_rate: float | jax.Array
    momentum: float | jax.Array
    weight_decay: float | jax.Array
    terms: Any
    mask: PyTree | None


@dataclass(frozen=True)
class _Step:
    """The static part of the step; equal values share one compilation."""

    model: Model
    objective: Objective
    optimizer: OptimizerName

    def __call__(self, traced: _Traced, state: UnlearnState, batch: Any) -> tuple[UnlearnState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)

        def objective(params: PyTree) -> tuple[jax.Array, PyTree]:
            return self.objective(self.model, Variables(params, state.model_state), batch, traced.terms, key)

        (loss, model_state), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        tx = _optimizer(self.optimizer, traced.learning_rate, traced.momentum, traced.weight_decay, traced.mask)
        return update(tx, state, gradients, model_state, {"loss": loss}, model=self.model)


def mask_updates(mask: PyTree) -> optax.GradientTransformation:
    """Zeroes the updates where the mask (a tree like the parameters, bool) is False.

    Use it last in a chain, after momentum and weight decay, which would still move masked weights if gradients were masked.
    """

    def masked(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        return jax.tree.map(lambda update, keep: jnp.where(keep, update, 0), updates, mask)

    return optax.stateless(masked)


def _optimizer(
    name: OptimizerName,
    learning_rate: float | jax.Array,
    momentum: float | jax.Array,
    weight_decay: float | jax.Array,
    mask: PyTree | None = None,
) -> optax.GradientTransformation:
    """The optimiser; its state has the same structure with and without a mask."""
    tx = make_optimizer(name, learning_rate, momentum=momentum, weight_decay=weight_decay)
    return optax.chain(tx, optax.identity() if mask is None else mask_updates(mask))


def shuffled(part: Part, batch_size: int, key: jax.Array, number: int) -> Iterable[Rows]:
    """The batches of pass `number` over a part: every row once, in an order that depends on the pass."""
    return batches_of_all(part.indices, min(batch_size, len(part)), jax.random.fold_in(key, number))
