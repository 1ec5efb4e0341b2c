"""Measures what a step costs: plain training, unlearning and the loops around them, next to a hand-written training step.

The measurements alternate in one process, so that other work on the machine affects all of them.
"""

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cujax._ranges import Count, Pixels, Positive, check_fields
from cujax.batch import Batch, Examples
from cujax.benchmark.pytorch import Counterpart, check_versus
from cujax.data.batches import (
    DeviceImages,
    FlatRows,
    StreamedImages,
    batches_of_all,
    gather,
    paired_batches,
    placed,
    preprocess,
)
from cujax.data.decoding import ImageFiles
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.model import Model, PyTree
from cujax.networks.registry import MODULES, make_network
from cujax.progress import Progress, silent
from cujax.step import UnlearnState, make_unlearn_step
from cujax.training.loop import Phase, Stepper
from cujax.training.supervised import make_train_step


@dataclass(frozen=True)
class Benchmark:
    """What to time.

    Attributes:
        network: A reference network, such as cnn or resnet18; an unknown name lists them all.
        dtype: The dtype in which the network computes.
        image_size: Height and width of the images.
        channels: Channels of the images.
        num_classes: Number of classes.
        forget_batch_size: Rows of the forget batch.
        retain_batch_size: Rows of the retain batch. Steps other than unlearning take both batches as one.
        rounds: How many times each step is timed.
        steps: Number of steps in each round.
        peak_tflops: The device's peak, in 10^12 operations per second; by default measured with a large matrix product.
        versus: With "torch", also time the same network, batch and losses in PyTorch, channels last (needs the
            extra [torch]).
    """

    network: str = "cnn"
    dtype: Literal["float32", "bfloat16"] = "float32"
    image_size: Pixels = 28
    channels: Count = 1
    num_classes: Count = 10
    forget_batch_size: Count = 64
    retain_batch_size: Count = 64
    rounds: Count = 15
    steps: Count = 10
    peak_tflops: Positive | None = None
    versus: Literal["torch"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.versus is not None:
            check_versus(self.network, self.dtype)

    @property
    def samples(self) -> int:
        """Rows per step."""
        return self.forget_batch_size + self.retain_batch_size


# Runs some steps (or passes) and returns when they are complete.
_Timed = Callable[[], None]


def measure(benchmark: Benchmark, progress: Progress = silent) -> dict[str, Any]:
    """Times everything and returns plain data.

    Returns:
        `device`, `settings`, `parameters`, `peak_tflops`; for each row of `steps` (forward, bare, training, unlearning,
        training loop, unlearning loop, and those of PyTorch if requested) `ms` and `ms_least` per step,
        `images_per_second`, `compile_seconds`, `gflop`, `share_of_peak`, `memory_mib`; `ratios`; `pipeline`, in images per
        second; `peak_memory_mib` of the device, if it reports it.

    Raises:
        ValueError: if the network is unknown or does not take such images.
    """
    model = make_network(benchmark.network, benchmark.num_classes, benchmark.dtype)
    images = _random_images(benchmark)
    config = ContrastiveUnlearning()
    tx, key = config.optimizer(), jax.random.key(0)
    everything = preprocess(images, next(batches_of_all(np.arange(benchmark.samples), benchmark.samples)), key)
    parts = (slice(benchmark.forget_batch_size), slice(benchmark.forget_batch_size, None))
    batch = Batch(*(jax.tree.map(lambda rows, part=part: rows[part], everything) for part in parts))
    variables = model.init(key, everything.inputs)
    start = UnlearnState.create(*variables, tx, key)

    train, unlearn = make_train_step(model, tx), make_unlearn_step(model, tx, config)
    compiled = {
        "forward": _compile(functools.partial(_forward, model), start, everything),
        "bare": _compile(functools.partial(_bare_step, model, tx), start, everything),
        "training": _compile(train, start, everything),
        "unlearning": _compile(unlearn, start, batch),
    }
    timed: dict[str, _Timed] = {
        name: _repeat(step, start, batch if name == "unlearning" else everything, benchmark.steps)
        for name, (step, _) in compiled.items()
    }
    timed |= _loops(benchmark, images, train, unlearn, start)
    if benchmark.versus is not None:
        pytorch = Counterpart(MODULES[benchmark.network](benchmark.num_classes), variables, batch, config)
        for name, examples in (("training", everything), ("unlearning", batch)):
            _, metrics = compiled[name][0](jax.tree.map(jnp.copy, start), examples)
            pytorch.check_same(name, float(metrics["loss"]), float(metrics["gradient_norm"]))
            timed[f"PyTorch {name}"] = _repeat_pytorch(pytorch, name, benchmark.steps)
    peak = benchmark.peak_tflops or _matrix_peak(benchmark.dtype)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with progress("timing", benchmark.rounds + 1) as advance:
        for number in range(benchmark.rounds + 1):
            for name, run in timed.items():
                started = time.perf_counter()
                run()
                if number:  # the first round warms up, and compiles the loops
                    seconds[name].append((time.perf_counter() - started) / benchmark.steps)
            advance()

    def row(name: str) -> dict[str, float | None]:
        median = statistics.median(seconds[name])
        figures = dict(compiled[name][1]) if name in compiled else {}
        gflop = figures.get("gflop")
        return {
            "ms": 1e3 * median,
            "ms_least": 1e3 * min(seconds[name]),
            "images_per_second": benchmark.samples / median,
            "share_of_peak": gflop / median / (1e3 * peak) if gflop else None,
            **figures,
        }

    return {
        "device": jax.devices()[0].device_kind,
        "settings": asdict(benchmark),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables.params)),
        "peak_tflops": peak,
        "steps": {name: row(name) for name in timed},
        "ratios": {
            f"{one} / {other}": statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
            for one, other in (
                ("unlearning", "training"),
                ("training", "bare"),
                ("training loop", "training"),
                ("unlearning loop", "unlearning"),
                ("training loop", "bare"),
                ("training", "PyTorch training"),
                ("unlearning", "PyTorch unlearning"),
            )
            if other in seconds
        },
        "pipeline": _pipeline(benchmark, images),
        "peak_memory_mib": _device_peak(),
    }


def _random_images(benchmark: Benchmark) -> DeviceImages:
    rng = np.random.default_rng(0)
    n, side = max(4 * benchmark.samples, 256), benchmark.image_size
    pixels = rng.integers(0, 256, (n, side, side, benchmark.channels), dtype=np.uint8)
    labels = rng.integers(0, benchmark.num_classes, n)
    channels = jnp.ones(benchmark.channels)
    stored = FlatRows.of(jnp.asarray(pixels))
    return DeviceImages(stored, jnp.asarray(labels, jnp.int32), 0.5 * channels, 0.25 * channels)


def _forward(model: Model, state: UnlearnState, examples: Examples) -> tuple[UnlearnState, jax.Array]:
    outputs, _ = model.apply(state.params, state.model_state, examples.inputs, train=False)
    return state, outputs.logits


def _bare_step(
    model: Model, tx: optax.GradientTransformation, state: UnlearnState, examples: Examples
) -> tuple[UnlearnState, jax.Array]:
    """A hand-written training step: no masks, no metrics except the loss, no guard."""

    def objective(params: PyTree) -> tuple[jax.Array, PyTree]:
        outputs, model_state = model.apply(params, state.model_state, examples.inputs, train=True, key=state.key)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, examples.labels)
        return losses.mean(), model_state

    (loss, model_state), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return replace(state, params=params, model_state=model_state, opt_state=opt_state), loss


def _compile(step: Callable, state: UnlearnState, examples: Any) -> tuple[Callable, dict[str, float | None]]:
    """The compiled step, with its state donated, and what the compiler reports about it."""
    started = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, examples).compile()
    seconds = time.perf_counter() - started
    flops, memory = (compiled.cost_analysis() or {}).get("flops"), compiled.memory_analysis()
    mib = None
    if memory is not None:
        # Donated arguments are counted with the results that take their place.
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        mib = (memory.argument_size_in_bytes + results + memory.temp_size_in_bytes) / 2**20
    return compiled, {"compile_seconds": seconds, "gflop": flops and flops / 1e9, "memory_mib": mib}


def _repeat(step: Callable, start: UnlearnState, examples: Any, steps: int) -> _Timed:
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), start)

    def run() -> None:
        nonlocal state
        for _ in range(steps):
            state, result = step(state, examples)
        jax.block_until_ready((state, result))

    return run


def _repeat_pytorch(pytorch: Counterpart, name: str, steps: int) -> _Timed:
    step = pytorch.step(name)

    def run() -> None:
        for _ in range(steps):
            step()
        pytorch.synchronize()

    return run


def _loops(
    benchmark: Benchmark, images: DeviceImages, train: Callable, unlearn: Callable, start: UnlearnState
) -> dict[str, _Timed]:
    """As many steps through the loops of training and unlearning: index batches, gathering, normalising, metrics."""
    key, steps = jax.random.key(1), benchmark.steps
    rows = np.arange(len(images.labels))
    forget, retain = rows[: benchmark.forget_batch_size], rows[benchmark.forget_batch_size :]

    def training_batches() -> Iterator[Any]:
        return batches_of_all(np.resize(rows, steps * benchmark.samples), benchmark.samples, key)

    def unlearning_batches() -> Iterator[Any]:
        return paired_batches(
            forget,
            retain,
            forget_batch_size=benchmark.forget_batch_size,
            retain_batch_size=benchmark.retain_batch_size,
            retain_draws=steps,
            forget_pass=0,
            key=key,
        )

    def loop(step: Callable, prepare: Callable, batches: Callable[[], Iterator[Any]]) -> _Timed:
        state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), start)
        stepper = Stepper(images, lambda record: None)

        def run() -> None:
            nonlocal state
            state = stepper.run(state, Phase(step, prepare, batches()))

        return run

    return {
        "training loop": loop(train, preprocess, training_batches),
        "unlearning loop": loop(unlearn, gather, unlearning_batches),
    }


def _matrix_peak(dtype: str) -> float:
    """The rate of a large matrix product, in 10^12 operations per second."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    product(matrix, matrix).block_until_ready()
    best = math.inf
    for _ in range(8):
        started = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12


def _pipeline(benchmark: Benchmark, images: DeviceImages) -> dict[str, float]:
    """Images per second from memory (gathered, cropped, mirrored, normalised) and from PNG files (decoded and placed)."""
    from PIL import Image

    rows, size = np.arange(len(images.labels)), min(benchmark.samples, len(images.labels))
    prepare = jax.jit(preprocess)

    def rate(source: DeviceImages | StreamedImages) -> float:
        def run() -> None:
            batches = batches_of_all(rows, size, jax.random.key(0))
            for arrays, batch in placed(source, batches):
                done = prepare(arrays, batch, jax.random.key(1))
            jax.block_until_ready(done)

        run()
        started = time.perf_counter()
        run()
        return len(rows) / (time.perf_counter() - started)

    augmented = replace(images, augmentation="crop_flip")
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{row}.png" for row in rows]
        for path, pixels in zip(paths, np.asarray(images.images.whole), strict=True):
            Image.fromarray(pixels[..., 0] if benchmark.channels == 1 else pixels).save(path)
        side = benchmark.image_size
        files = ImageFiles(np.array(paths), (side, side, benchmark.channels), resized=False)
        streamed = StreamedImages(files, np.asarray(images.labels), images.mean, images.std, "crop_flip")
        return {"from memory": rate(augmented), "from PNG files": rate(streamed)}


def _device_peak() -> float | None:
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    peak = statistics_of_device.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20
