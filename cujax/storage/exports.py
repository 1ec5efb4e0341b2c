"""Weights for other programs: safetensors, flax's msgpack, or a plain Orbax directory."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp

from cujax.model import Variables
from cujax.storage.checkpoints import Checkpoint
from cujax.storage.orbax import absolute, by_path, write_tree


def export_weights(source: Checkpoint | Variables, path: str | PathLike[str]) -> None:
    """Writes the arrays of a network, bit for bit, for other programs; `import_checkpoint` reads them back.

    Names are those of flax: `{"params": ..., "batch_stats": ...}`. The metadata of a checkpoint, such as its lineage and its
    requests, is not exported.

    Args:
        source: A checkpoint or variables.
        path: Where to write, which also sets the format: "NAME.safetensors" (names such as "params/head/kernel"),
            "NAME.msgpack" (for `flax.serialization.msgpack_restore`), or a directory without a suffix, for Orbax.

    Raises:
        FileExistsError: if it exists.
        ValueError: if the suffix is not supported.
        OSError: if it cannot be written. No partial files are left.
    """
    where = absolute(path)
    if where.suffix not in (".safetensors", ".msgpack", ""):
        raise ValueError(f"{where} must end in .safetensors or .msgpack, or have no suffix (an Orbax directory).")
    if where.exists():
        raise FileExistsError(f"{where} exists, and is not overwritten; choose another name, or move it away.")
    variables = source.variables if isinstance(source, Checkpoint) else source
    tree = _as_flax_has_it(jax.tree.map(jnp.asarray, Variables(*variables)))
    if not where.suffix:
        write_tree(where, tree, None)
        return
    data = _safetensors(tree) if where.suffix == ".safetensors" else _msgpack(tree)
    where.parent.mkdir(parents=True, exist_ok=True)
    unfinished = where.with_name(f".{where.name}.unfinished")
    try:
        unfinished.write_bytes(data)
        unfinished.rename(where)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _as_flax_has_it(variables: Variables) -> dict[str, Any]:
    """A single dict of collections, unless the state is something else."""
    state = variables.model_state
    collections = (
        isinstance(state, Mapping) and "params" not in state and all(isinstance(v, Mapping) for v in state.values())
    )
    return {"params": variables.params, **(state if collections else {"model_state": state})}


def _safetensors(tree: dict[str, Any]) -> bytes:
    from safetensors.flax import save

    data: bytes = save(by_path(tree))
    return data


def _msgpack(tree: dict[str, Any]) -> bytes:
    from flax import serialization

    return serialization.to_bytes(jax.device_get(tree))
