"""Drives compiled steps over index batches: the inner loop that training and unlearning share.

On an accelerator, one compiled call runs many steps, so that the device never waits for the host. On a CPU, it runs one:
XLA's CPU backend runs convolutions inside a compiled loop many times slower (docs/performance.md).
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cujax.data.batches import DeviceImages, ImageSet, StreamedImages, placed
from cujax.sharding import on_mesh, replicate, shard
from cujax.step import Metrics, UnlearnState

# Called with one record per step or check; a script writes them to a file.
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        seconds: Wall time without compilation.
        steps: Optimiser steps.
        samples: Samples in forward and backward passes, forget and retain together.
        flops: Floating-point operations as counted by the compiler; None if it does not count them.
    """

    seconds: float
    steps: int
    samples: int
    flops: float | None

    def __add__(self, other: "Cost") -> "Cost":
        flops = None if self.flops is None or other.flops is None else self.flops + other.flops
        return Cost(self.seconds + other.seconds, self.steps + other.steps, self.samples + other.samples, flops)


NOTHING_YET = Cost(0.0, 0, 0, 0.0)


class NotFiniteError(FloatingPointError):
    """Raised if a loss or a gradient is NaN or infinite; the state is left unchanged.

    Attributes:
        cost: The cost up to that point.
    """

    def __init__(self, sentence: str, cost: Cost = NOTHING_YET) -> None:
        super().__init__(sentence)
        self.cost = cost


_STEPS_PER_CALL_ON_ACCELERATORS = 128


@functools.partial(jax.jit, static_argnames=("prepare", "together"), donate_argnames="state")
def _advance(
    prepare: Callable[..., Any],
    step: Callable[..., Any],
    state: UnlearnState,
    arrays: DeviceImages,
    index_batches: Any,
    together: bool = False,
) -> tuple[UnlearnState, Metrics]:
    """One step for each of the index batches, which are stacked along a leading axis; so are the metrics."""

    def one(state: UnlearnState, index_batch: Any) -> tuple[UnlearnState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
        result: tuple[UnlearnState, Metrics] = step(state, prepare(arrays, index_batch, key))
        return result

    take = jax.vmap(one) if together else one
    if _length(index_batches) > 1:
        return jax.lax.scan(take, state, index_batches)
    state, metrics = take(state, jax.tree.map(lambda leaf: leaf[0], index_batches))
    return state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], metrics)


def _length(stacked: Any) -> int:
    return int(jax.tree.leaves(stacked)[0].shape[0])


class Phase(NamedTuple):
    """One step over some batches; an epoch of training is one phase, a pass of a method one or several.

    Attributes:
        step: `step(state, examples) -> (state, metrics)`, a `jax.tree_util.Partial`, so that equal steps share one
            compilation.
        prepare: `prepare(arrays, index_batch, key)` returns the examples that the step takes; compiled together with it.
        batches: Index batches, all of the same shape.
        together: Whether the state and each index batch are stacks with a leading axis of models, which all take the step.
    """

    step: Callable[..., tuple[UnlearnState, Metrics]]
    prepare: Callable[..., Any]
    batches: Iterable[Any]
    together: bool = False


class _StepCost(NamedTuple):
    samples: int
    flops: float | None


@dataclass
class Stepper:
    """Runs pure steps over index batches and tracks their cost.

    Attributes:
        images: The images. If they are on a mesh of devices, each step is spread over it.
        log: Receives the metrics of each step.
        steps_per_call: The maximum number of steps in one compiled call; None for 1 on a CPU, 128 on an accelerator. With
            streamed images, each call runs one step.
        cost: The cost so far; for a resumed run, including its earlier cost.
        due: Whether to save the state now; called after each compiled call, with the number of steps so far.
    """

    images: ImageSet
    log: Log
    steps_per_call: int | None = None
    cost: Cost = NOTHING_YET
    due: Callable[[int], bool] = lambda steps: False
    _compiled: dict[Any, _StepCost] = field(default_factory=dict, init=False)

    def run(
        self,
        state: UnlearnState,
        phase: Phase,
        *,
        skip: int = 0,
        keep: Callable[[UnlearnState, int], None] = lambda state, batches: None,
    ) -> UnlearnState:
        """Runs one step per batch. Metrics are read one call late, so that the device need not wait for the host.

        Metrics of a stack of models are lists with a value for each; the cost is that of all of them.

        Args:
            state: The state before the first step; it is donated.
            phase: The phase to run.
            skip: The number of batches, from the start, that were already done.
            keep: Called if `due` returns True, with the state and the number of batches it has seen, after the metrics of
                all of them were logged.

        Raises:
            NotFiniteError: after a step whose loss or gradient is not finite.
        """
        mesh = self.images.mesh
        state = replicate(state, mesh)
        # A step holds arrays, too: teachers, importances. What is a number stays one.
        step = jax.tree.map(lambda leaf: replicate(leaf, mesh) if isinstance(leaf, jax.Array) else leaf, phase.step)
        phase = phase._replace(step=step)
        with on_mesh(mesh):
            return self._run(state, phase, skip, keep)

    def _run(self, state: UnlearnState, phase: Phase, skip: int, keep: Callable[[UnlearnState, int], None]) -> UnlearnState:
        pending: tuple[Metrics, _StepCost] | None = None
        done, started = skip, time.perf_counter()
        for arrays, index_batches in self._calls(phase.batches, skip):
            compiling = time.perf_counter()
            cost = self._step_cost(phase, state, arrays, index_batches)
            started += time.perf_counter() - compiling
            state, metrics = _advance(phase.prepare, phase.step, state, arrays, index_batches, phase.together)
            if pending is not None:
                self._read(*pending)
            pending = metrics, cost
            done += _length(index_batches)
            if self.due(self.steps + _length(index_batches)):
                self._read(*pending)
                pending = None
                started = self._add_seconds_since(started)
                keep(state, done)
        if pending is not None:
            self._read(*pending)
        jax.block_until_ready(state.params)
        self._add_seconds_since(started)
        return state

    def _add_seconds_since(self, started: float) -> float:
        now = time.perf_counter()
        self.cost = replace(self.cost, seconds=self.cost.seconds + now - started)
        return now

    def _calls(self, batches: Iterable[Any], skip: int) -> Iterator[tuple[DeviceImages, Any]]:
        """The arguments of each compiled call: the same number of steps in each, and the remaining steps one by one.

        A resumed run makes the same calls as an uninterrupted one, so that its bits are the same.
        """
        at_most = self.steps_per_call
        if at_most is None:
            at_most = 1 if jax.default_backend() == "cpu" else _STEPS_PER_CALL_ON_ACCELERATORS
        if at_most == 1 or isinstance(self.images, StreamedImages):
            for arrays, index_batch in placed(self.images, itertools.islice(batches, skip, None)):
                yield arrays, self._stack([index_batch])
            return
        waiting, stop = [index_batch for _, index_batch in placed(self.images, batches)], 0
        while stop < len(waiting):
            calls = -(-(len(waiting) - stop) // at_most)
            length = (len(waiting) - stop) // calls
            for _ in range(calls):
                start, stop = stop, stop + length
                if stop > skip:
                    yield self.images, self._stack(waiting[max(start, skip) : stop])
            at_most = 1

    def _stack(self, index_batches: list[Any]) -> Any:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *index_batches)
        return shard(stacked, self.images.mesh, axis=1)

    def _step_cost(self, phase: Phase, state: UnlearnState, arrays: DeviceImages, index_batches: Any) -> _StepCost:
        """The cost of one step; a new step is compiled ahead of the call, so that compilation is not timed."""
        shapes = (leaf.shape for leaf in jax.tree.leaves(index_batches))
        signature = (phase.prepare, jax.tree.structure(phase.step), phase.together, *shapes)
        if signature not in self._compiled:
            jax.block_until_ready(state.params)
            lowered = _advance.lower(phase.prepare, phase.step, state, arrays, index_batches, phase.together)
            lowered.compile()
            single = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), index_batches)
            # The compiler counts the body of a loop once, however often it runs: count a step outside of one.
            if _length(index_batches) > 1:
                lowered = _advance.lower(phase.prepare, phase.step, state, arrays, single, phase.together)
            samples = sum(leaf.size for leaf in jax.tree.leaves(single) if np.issubdtype(leaf.dtype, np.integer))
            self._compiled[signature] = _StepCost(samples, flops_of(lowered))
        return self._compiled[signature]

    def _read(self, stacked: Metrics, step_cost: _StepCost) -> None:
        metrics = jax.device_get(stacked)
        for position in range(_length(metrics)):
            values = {name: value[position].tolist() for name, value in metrics.items()}
            before = self.cost
            flops = None
            if step_cost.flops is not None and (before.flops is not None or not before.steps):
                flops = (before.flops or 0.0) + step_cost.flops
            self.cost = Cost(before.seconds, before.steps + 1, before.samples + step_cost.samples, flops)
            self.log({"step": self.steps, **values})
            if not np.all(values["finite"]):
                raise NotFiniteError(
                    f"the loss or a gradient was not finite at step {self.steps} (loss {values['loss']}).", self.cost
                )

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self.cost.steps


def flops_of(lowered: jax.stages.Lowered) -> float | None:
    """Floating-point operations as counted by the compiler; None if it does not count them."""
    analysis = lowered.cost_analysis()
    return None if not analysis else analysis.get("flops")


def memory_of_step(state: UnlearnState, phase: Phase, images: DeviceImages) -> int:
    """Bytes that a phase's step takes on the device besides images: the states before and after, and temporary arrays."""
    index_batches = jax.tree.map(lambda leaf: np.asarray(leaf)[None], next(iter(phase.batches)))
    compiled = _advance.lower(phase.prepare, phase.step, state, images, index_batches, phase.together).compile()
    analysis = compiled.memory_analysis()
    own: int = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return 2 * own + (0 if analysis is None else int(analysis.temp_size_in_bytes))
