"""Times the unlearning step against the same network's plain training step on as many samples, in one run.

Both are compiled, given the same optimiser and the same images, and timed in turns, so that whatever else the machine does
falls on both. Prints the median of each, and of their ratio.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from cujax import Batch, ContrastiveUnlearning, Examples, UnlearnState, from_linen, make_unlearn_step
from cujax.networks.cnn import CNN
from cujax.progress import bar
from cujax.training import make_train_step


@dataclass(frozen=True)
class Benchmark:
    """What to time.

    Attributes:
        image_size: Height and width of the images.
        forget_batch_size: Rows of the forget batch.
        retain_batch_size: Rows of the retain batch; the training step gets both together.
        rounds: How often each step is timed.
        steps: Steps a round.
        json: File for the figures; none where not given.
    """

    image_size: int = 28
    forget_batch_size: int = 64
    retain_batch_size: int = 64
    rounds: int = 30
    steps: int = 10
    json: Path | None = None


def timed(step: Callable, state: UnlearnState, batch: Any, steps: int) -> tuple[UnlearnState, float]:
    """The state after some steps, and the seconds of one."""
    started = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return state, (time.perf_counter() - started) / steps


def run(benchmark: Benchmark) -> dict[str, float]:
    """Times both steps in turns."""
    model = from_linen(CNN(10, features=(16, 32, 64), hidden_dim=64, embedding_dim=64))
    config = ContrastiveUnlearning()
    tx, key = config.optimizer(), jax.random.key(0)
    n_forget, n = benchmark.forget_batch_size, benchmark.forget_batch_size + benchmark.retain_batch_size
    images = jax.random.normal(key, (n, benchmark.image_size, benchmark.image_size, 1))
    everything = Examples(images, jnp.arange(n) % 10, jnp.ones(n, bool))
    forget, retain = (
        jax.tree.map(lambda rows, part=part: rows[part], everything) for part in (slice(n_forget), slice(n_forget, n))
    )
    variables = model.init(key, images)
    steps: dict[str, tuple[Callable, Any]] = {
        "training": (make_train_step(model, tx), everything),
        "unlearning": (make_unlearn_step(model, tx, config), Batch(forget, retain)),
    }
    compiled, states = {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name, (step, batch) in steps.items():
        compiled[name] = jax.jit(step, donate_argnums=0)
        started = time.perf_counter()
        states[name], _ = timed(compiled[name], UnlearnState.create(*variables, tx, key), batch, 1)
        print(f"{name}: compiled in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    with bar("timing", benchmark.rounds) as advance:
        for _ in range(benchmark.rounds):
            for name, (_, batch) in steps.items():
                states[name], taken = timed(compiled[name], states[name], batch, benchmark.steps)
                seconds[name].append(taken)
            advance()
    ratios = [unlearning / training for unlearning, training in zip(seconds["unlearning"], seconds["training"], strict=True)]
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables.params)),
        "samples": n,
        "training_ms": 1e3 * statistics.median(seconds["training"]),
        "unlearning_ms": 1e3 * statistics.median(seconds["unlearning"]),
        "ratio": statistics.median(ratios),
    }


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark, description=__doc__)
    figures = run(benchmark)
    table = Table(title=f"one step on {figures['samples']} samples, {jax.devices()[0].device_kind}")
    for name in figures:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" for value in figures.values()))
    Console().print(table)
    if benchmark.json is not None:
        benchmark.json.write_text(json.dumps(figures, indent=2) + "\n")
