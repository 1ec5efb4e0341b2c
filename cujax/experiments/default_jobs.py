"""How many processes share the models of a command on a CPU if the user does not say."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax

from cujax.data.images import Source
from cujax.experiments.config import Setup
from cujax.experiments.jobs import Unit
from cujax.experiments.workers import own_cores
from cujax.model import Model, abstract_variables
from cujax.storage.locks import has_locks
from cujax.training.loop import flops_of

# What a core was measured to compute in a second, and what a step takes beside that.
_FLOPS_PER_SECOND = 4e10
_SECONDS_PER_STEP = 2e-3
# Below this much work, the start of the processes (5 to 10 s each) takes more than they save.
LEAST_SECONDS = 240.0
_BYTES_PER_PROCESS = 2 * 2**30


def default_jobs(setup: Setup, model: Model, source: Source, units: Sequence[Unit]) -> tuple[int, float]:
    """The number of processes for a command, and the estimated seconds of its work on one core if there are several.

    One on an accelerator, in a bucket, and where the work is short; otherwise as many as there are cores, memory for
    processes, and at least two models for each.

    Args:
        setup: The setup.
        model: The network.
        source: The data.
        units: The units of the command; those on disk do not count.
    """
    missing = [unit for unit in units if not unit.is_complete]
    alone = setup.multihost or setup.profile is not None or (setup.models_at_once or 1) > 1
    if alone or jax.default_backend() != "cpu" or not all(has_locks(unit.folder) for unit in missing):
        return 1, 0.0
    most = min(len(own_cores()), len(missing) // 2, available_memory() // _BYTES_PER_PROCESS)
    if most < 2:
        return 1, 0.0
    seconds = len(missing) * training_seconds(setup, model, source)
    return (most if seconds >= LEAST_SECONDS else 1), seconds


def training_seconds(setup: Setup, model: Model, source: Source) -> float:
    """A rough estimate of how long one core trains a model."""
    recipe, n = setup.training, len(source.train.labels)
    like = abstract_variables(model, source.input_shapes)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((recipe.batch_size, *leaf.shape[1:]), leaf.dtype), source.input_shapes
    )
    forward = flops_of(jax.jit(lambda *given: model.apply(*given, train=False)[0].logits).lower(*like, batch)) or 0.0
    steps = recipe.epochs * n / recipe.batch_size
    return steps * (_SECONDS_PER_STEP + 3 * forward / _FLOPS_PER_SECOND)


def available_memory() -> int:
    """Bytes that new processes may use: of the machine, or of its container if less; 0 if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (ValueError, OSError):
            return 0
    try:
        group = Path("/sys/fs/cgroup")
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
