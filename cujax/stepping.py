"""Drives compiled steps over index batches: the inner loop that training and unlearning share.

One compiled call a step: XLA's CPU backend runs convolutions inside a compiled loop many times slower.
"""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax

from cujax.data.batches import DeviceImages
from cujax.step import Metrics, UnlearnState

# Called with one record a step or check; a script writes them to a file.
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
        seconds: Wall time without compilation.
        steps: Optimiser steps.
        samples: Samples passed forward and backward, forget and retain together.
        flops: Floating-point operations by the compiler's count; None where it gives none.
    """

    seconds: float
    steps: int
    samples: int
    flops: float | None


class NotFiniteError(FloatingPointError):
    """A loss or a gradient was NaN or infinite; the state was left as it was before."""


@functools.partial(jax.jit, static_argnames="prepare", donate_argnames="state")
def _advance(
    prepare: Callable, step: Callable, state: UnlearnState, arrays: DeviceImages, index_batch: Any
) -> tuple[UnlearnState, Metrics]:
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    return step(state, prepare(arrays, index_batch, key))


@dataclass
class Stepper:
    """Runs a pure step over index batches and keeps account of it.

    Attributes:
        prepare: `prepare(arrays, index_batch, key)` gives what the step takes; compiled together with it.
        step: `step(state, examples) -> (state, metrics)`, a `jax.tree_util.Partial`, so that equal steps share one
            compilation.
        arrays: The images.
        log: Where the metrics of each step go.
    """

    prepare: Callable
    step: Callable
    arrays: DeviceImages
    log: Log
    _seconds: float = field(default=0.0, init=False)
    _timed_steps: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _step_samples: int = field(default=0, init=False)
    _step_flops: float | None = field(default=None, init=False)

    def run(self, state: UnlearnState, batches: Iterable[Any]) -> UnlearnState:
        """Takes one step a batch. Metrics are read one step late, so that the device need not wait for the host.

        Raises:
            NotFiniteError: after the step whose loss or gradient was not finite.
        """
        pending: Metrics | None = None
        started = time.perf_counter()
        for index_batch in batches:
            first = self._steps == 0
            if first:
                self._step_flops = _flops(_advance.lower(self.prepare, self.step, state, self.arrays, index_batch))
                self._step_samples = sum(leaf.size for leaf in jax.tree.leaves(index_batch)) // 2  # indices and masks
            state, metrics = _advance(self.prepare, self.step, state, self.arrays, index_batch)
            self._steps += 1
            if first:  # the first call compiles: it is not timed
                jax.block_until_ready(state.params)
                started = time.perf_counter()
            else:
                self._timed_steps += 1
            if pending is not None:
                self._read(pending, self._steps - 1)
            pending = metrics
        if pending is not None:
            self._read(pending, self._steps)
        jax.block_until_ready(state.params)
        self._seconds += time.perf_counter() - started
        return state

    def _read(self, metrics: Metrics, step: int) -> None:
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self.log({"step": step, **values})
        if not values["finite"]:
            raise NotFiniteError(f"the loss or a gradient was not finite at step {step} (loss {values['loss']}).")

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._steps

    @property
    def cost(self) -> Cost:
        """The cost so far; the first step, which compiles, counts as long as the mean of the others."""
        seconds = self._seconds * self._steps / max(self._timed_steps, 1)
        flops = None if self._step_flops is None else self._step_flops * self._steps
        return Cost(seconds, self._steps, self._step_samples * self._steps, flops)


def _flops(lowered: jax.stages.Lowered) -> float | None:
    analysis = lowered.cost_analysis()
    return None if not analysis else analysis.get("flops")
