"""Devices and hosts: the only file that handles them.

A computation is spread over all devices through its data: parameters and stored images are copied to each device, every
batch is split between them, and the compiler inserts the communication. On one device, nothing is placed at all.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any

_AXIS = "data"


class MultihostError(RuntimeError):
    """Raised if hosts that should compute together did not find each other."""


def data_mesh() -> Mesh | None:
    """A mesh of all devices of all hosts along one axis, or None if there is a single one."""
    if jax.device_count() == 1:
        return None
    return jax.make_mesh((jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,))


def mesh_of(array: jax.Array | np.ndarray) -> Mesh | None:
    """The mesh that an array was placed on, if any; None while it is traced."""
    if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
        return None
    mesh = array.sharding.mesh if isinstance(array.sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) else None


def num_shards(mesh: Mesh | None) -> int:
    """The number of parts into which a batch is split."""
    return 1 if mesh is None else mesh.size


def own_shards(mesh: Mesh | None) -> list[int]:
    """The numbers of the parts on this host's devices."""
    if mesh is None:
        return [0]
    return [number for number, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copies the arrays of a tree in full to every device; arrays that are already there in full are not changed."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, P())
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.tree.map(lambda leaf: _on_all_hosts(leaf, everywhere), tree)


def _on_all_hosts(leaf: jax.Array | np.ndarray, everywhere: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(everywhere, leaf.ndim):
        return leaf
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _on_all_hosts(jax.random.key_data(leaf), everywhere)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, everywhere, values.__getitem__)


def shard(tree: PyTree, mesh: Mesh | None, axis: int = 0) -> PyTree:
    """Splits host arrays, which every host has in full, along an axis between the devices."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))
    return jax.tree.map(lambda rows: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__), tree)


def shard_own(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Host arrays `[parts of this host, ...]` as device arrays `[parts, ...]`, each part on its device."""
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, tree)
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def traced_num_shards() -> int:
    """The number of parts into which the function being compiled may split a batch: see `on_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in sizes if kind == AxisType.Auto)


def whole(tree: PyTree) -> PyTree:
    """Places these arrays in full on every device, in a function that is compiled for a mesh."""
    if traced_num_shards() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P()), tree)


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Sets a mesh, such as the one that a batch was placed on, unless the caller has set one."""
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        yield
    else:
        with jax.set_mesh(mesh):
            yield


def with_auto_axes(function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]) -> Callable:
    """`function(state, batch) -> (state, metrics)`, also for callers whose mesh has Explicit axes.

    Inside, the compiler decides how arrays are sharded; the returned state is sharded like the input state.
    """

    def call(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
            return function(state, batch)
        as_given = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, state)
        return jax.sharding.auto_axes(function, out_sharding=(as_given, P()))(state, batch)

    return call


def start_multihost() -> None:
    """Joins the other hosts of a computation; must be called before anything else uses a device.

    On Cloud TPU, Slurm, Kubernetes and Open MPI, the hosts are detected automatically. On other systems, set the variables
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        MultihostError: if the hosts are not known, only some of the variables are set, or other hosts are not reached.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    missing = [name for name in names if name not in os.environ]
    if missing and len(missing) < len(names):
        raise MultihostError(f"multihost: {', '.join(missing)} must be set, as {', '.join(set(names) - set(missing))} is.")
    try:
        if missing:
            jax.distributed.initialize()
        else:
            address, n, number = (os.environ[name] for name in names)
            jax.distributed.initialize(address, int(n), int(number))
    except (RuntimeError, ValueError) as error:
        raise MultihostError(
            f"multihost: the other hosts were not found ({error}); start the same command on every host of a TPU slice, a "
            f"Slurm or a Kubernetes job, or set {', '.join(names)}."
        ) from error


def is_first_host() -> bool:
    """Whether this is the host that writes and prints."""
    return jax.process_index() == 0


def check_same_on_all_hosts(what: str, value: str | None) -> None:
    """Compares a value between hosts; every host must call this, even one that failed before it had a value (None).

    Raises:
        ValueError: if it is not the same on all hosts; names the hosts that differ from the first.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = bytes(32) if value is None else hashlib.sha256(value.encode()).digest()
    digests = [bytes(row) for row in multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))]
    failed = [number for number, one in enumerate(digests) if not any(one)]
    differing = [number for number, one in enumerate(digests) if one != digests[0]]
    if not differing:
        return
    if failed:
        raise ValueError(f"host {_listed(failed)} could not start; its own message says why.")
    raise ValueError(
        f"host {_listed(differing)} has another {what} than host 0 (digest {digests[differing[0]].hex()[:12]} there, "
        f"{digests[0].hex()[:12]} on host 0); run the same command on the same data, with the same versions, on every host."
    )


def _listed(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))


def check_batch_size(name: str, size: int, mesh: Mesh | None) -> None:
    """Rejects a global batch size that the devices cannot share equally.

    Raises:
        ValueError: if they cannot; names the nearest sizes that they can share.
    """
    n = num_shards(mesh)
    if size % n:
        below, above = size // n * n, -(-size // n) * n
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(f"{name} is {size}, but {n} devices can only share a multiple of {n} equally; make it {nearest}.")


def unused_accelerator() -> str | None:
    """Returns a warning with a remedy if this machine has a GPU or TPU but JAX computes on the CPU; otherwise None.

    There is no warning if the CPU was chosen on purpose (JAX_PLATFORMS=cpu).
    """
    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return None
    for kind, extra, signs in (
        ("GPU", "cuda", ["/dev/nvidia0", "/proc/driver/nvidia/version"]),
        ("TPU", "tpu", ["/dev/accel0", "/dev/vfio/0"]),
    ):
        if any(Path(sign).exists() for sign in signs):
            return (
                f"this machine has a {kind}, but JAX computes on the CPU: its {kind} support is not installed. "
                f"Run the command as: uv run --extra {extra} ..."
            )
    return None
