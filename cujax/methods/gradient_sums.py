"""Gradients of the cross-entropy summed over many samples, in eval mode: the basis of saliency and importance."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cujax.batch import Examples
from cujax.data.batches import batches_of_all, preprocess
from cujax.losses import cross_entropy
from cujax.methods.base import Loop
from cujax.model import Model, PyTree, Variables
from cujax.step import Metrics, UnlearnState
from cujax.training.loop import Cost, Phase, Stepper

# `contribution(model, variables, batch, terms)`: what one batch adds to the sum, a tree like the parameters. Pure, defined
# at module level; `terms` is a tree of arrays.
Contribution = Callable[[Model, Variables, Examples, Any], PyTree]


def gradient_sum(model: Model, variables: Variables, batch: Examples, terms: Any = ()) -> PyTree:
    """The sum, over the rows that count, of the gradient of the cross-entropy."""
    del terms
    total = jax.grad(lambda params: _loss(model, Variables(params, variables.model_state), batch))(variables.params)
    return jax.tree.map(lambda leaf: leaf * jnp.sum(batch.counts), total)


def squared_mean_gradient(model: Model, variables: Variables, batch: Examples, terms: Any = ()) -> PyTree:
    """The square of the batch's mean gradient; its mean over batches depends on their size."""
    del terms
    mean = jax.grad(lambda params: _loss(model, Variables(params, variables.model_state), batch))(variables.params)
    return jax.tree.map(jnp.square, mean)


def squared_gradient_sum(model: Model, variables: Variables, batch: Examples, terms: Any = ()) -> PyTree:
    """The sum over the rows that count of their squared gradients; keeps the gradients of all rows in memory at once."""
    del terms

    def of_one(params: PyTree, row: PyTree, label: jax.Array) -> jax.Array:
        example = Examples(jax.tree.map(lambda leaf: leaf[None], row), label[None])
        return _loss(model, Variables(params, variables.model_state), example)

    gradients = jax.vmap(jax.grad(of_one), in_axes=(None, 0, 0))(variables.params, batch.inputs, batch.labels)
    return sum_of_counted(jax.tree.map(jnp.square, gradients), batch)


def sum_of_counted(by_row: PyTree, batch: Examples) -> PyTree:
    """The sum of arrays `[B, ...]` over the rows of a batch that count."""

    def total(leaf: jax.Array) -> jax.Array:
        counts = batch.counts.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.sum(jnp.where(counts, leaf, 0), axis=0)

    return jax.tree.map(total, by_row)


def _loss(model: Model, variables: Variables, batch: Examples) -> jax.Array:
    outputs, _ = model.apply(*variables, batch.inputs, train=False)
    return cross_entropy(outputs.logits, batch.labels, batch.mask)


class GradientSums:
    """Sums over many samples for one model, with one cost; each contribution is compiled once, however often it is summed.

    Attributes:
        cost: The cost of all sums so far; no optimiser steps.
    """

    def __init__(self, model: Model, variables: Variables, batch_size: int, loop: Loop) -> None:
        self._model, self._variables, self._batch_size = model, variables, batch_size

        def due(steps: int) -> bool:
            del steps
            loop.resume_point.raise_if_interrupted()
            return False

        self._stepper = Stepper(loop.images, lambda record: None, loop.steps_per_call, due=due)

    @property
    def cost(self) -> Cost:
        return replace(self._stepper.cost, steps=0)

    def over(self, indices: np.ndarray, contribution: Contribution, terms: Any = ()) -> PyTree:
        """The sum of the contributions of all batches of the images at `indices`.

        Raises:
            NotFiniteError: if the sum is not finite.
        """
        # The sum is the `params` of a state, so that it runs and is accounted for as training is.
        zeros = jax.tree.map(jnp.zeros_like, self._variables.params)
        state = UnlearnState.create(zeros, {}, optax.identity(), jax.random.key(0))
        step = jax.tree_util.Partial(_Add(self._model, contribution), self._variables, terms)
        batches = batches_of_all(indices, min(self._batch_size, len(indices)))
        return self._stepper.run(state, Phase(step, preprocess, batches)).params


@dataclass(frozen=True)
class _Add:
    model: Model
    contribution: Contribution

    def __call__(
        self, variables: Variables, terms: Any, state: UnlearnState, batch: Examples
    ) -> tuple[UnlearnState, Metrics]:
        total = jax.tree.map(jnp.add, state.params, self.contribution(self.model, variables, batch, terms))
        size = optax.tree.norm(total)
        return replace(state, step=state.step + 1, params=total), {"loss": size, "finite": jnp.isfinite(size)}
