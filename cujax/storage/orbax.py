"""Trees of arrays on disk: the only file that imports Orbax, and only when something is written or read."""

import contextlib
import glob
import hashlib
import shutil
import threading
import time
from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from cujax.model import PyTree

_METADATA_KEY = "cujax"


# What a tree takes on disk beside its arrays.
_OVERHEAD_BYTES = 200_000


UNFINISHED = ".orbax-checkpoint-tmp"
_TRIES, _PAUSE_SECONDS = 20, 0.1


# Orbax confuses saves that overlap in two threads, and fails.
_SAVING = threading.Lock()


class CheckpointError(ValueError):
    """Raised if a checkpoint is damaged, incomplete, of another network, or not from this library."""


def remove_leftovers(directory: Path, name: str = "") -> None:
    """Removes what Orbax leaves in a folder if it was killed while writing; complete files are kept.

    After a failed write, its threads may continue to write for a moment, which can prevent a folder from being removed.
    """
    for leftover in directory.glob(f"{glob.escape(name) or '*'}{UNFINISHED}*"):
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                leftover.rmtree(missing_ok=True)
                break
            time.sleep(_PAUSE_SECONDS)
        else:
            leftover.rmtree()


def absolute(directory: str | PathLike[str]) -> Path:
    """The path in the form that Orbax needs; an address like gs://BUCKET/FOLDER is absolute, but epath would prefix it."""
    path = Path(directory)
    return path if "://" in str(path) else path.absolute()


def read_tree(path: Path, item: str | None = None) -> tuple[Any, dict[str, Any] | None]:
    """The arrays of an Orbax directory, and what `save_checkpoint` stored with them, if it wrote the directory.

    Args:
        path: The directory.
        item: The part of it to read, if it contains several.

    Raises:
        FileNotFoundError: if it does not exist.
        CheckpointError: if it is not an Orbax checkpoint, or cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist or is not a directory.")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) if hasattr(leaf, "shape") else leaf

    name = {} if item is None else {"checkpointable_name": item}
    try:
        found = ocp.metadata(path, **name)
    except Exception as error:  # Orbax raises many types, and hides the cause behind some of them
        raise CheckpointError(
            f"{path} cannot be read as an Orbax checkpoint ({type(error).__name__}: {str(error)[:200]}); it is incomplete "
            "or something else. Restore it from a copy, or move it away and run again."
        ) from error
    try:
        tree = ocp.load(path, jax.tree.map(abstract, found.metadata), **name)
    except Exception as error:  # as above
        raise CheckpointError(
            f"{path} cannot be read as an Orbax checkpoint ({type(error).__name__}: {str(error)[:200]}); it is damaged. "
            "Restore it from a copy, or move it away and run again."
        ) from error
    stored = (found.custom_metadata or {}).get(_METADATA_KEY)
    if stored is None:
        return tree, None
    if not isinstance(tree, Mapping) or not isinstance(stored, dict):
        raise CheckpointError(f"{path} is damaged. Restore it from a copy, or move it away and run again.")
    return tree, stored


def read_stored(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` stored with the arrays, without reading the arrays; None if it cannot be read."""
    from orbax.checkpoint import v1 as ocp

    try:
        stored = (ocp.metadata(path).custom_metadata or {}).get(_METADATA_KEY)
    except Exception:  # as in read_tree; here it is enough to know that there is nothing to compare with
        return None
    return stored if isinstance(stored, dict) else None


def by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, such as "params/head/kernel"; lists and dicts with the same keys give the same paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def describe_array(array: Any) -> dict[str, Any] | None:
    """Dtype, shape and SHA-256 of an array."""
    if array is None:
        return None
    values = np.asarray(array)
    digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "sha256": digest}


def conform(tree: PyTree, like: PyTree, where: str) -> Any:
    """The arrays of `tree` in the structure of `like`, if names, shapes and dtypes match."""
    found, wanted = by_path(tree), by_path(like)
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    differing = [
        f"{name} is {found[name].dtype} {found[name].shape}, the network's is {leaf.dtype} {leaf.shape}"
        for name, leaf in wanted.items()
        if name in found and (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if missing or surplus or differing:
        dtypes_alone = not missing and not surplus and all(found[name].shape == leaf.shape for name, leaf in wanted.items())
        lines = [f"{where} belongs to another network than the one given:"]
        lines += [f"  missing: {', '.join(missing[:5])} ({len(missing)} in all)"] if missing else []
        lines += [f"  unknown to the network: {', '.join(surplus[:5])} ({len(surplus)} in all)"] if surplus else []
        lines += [f"  {line}" for line in differing[:5]]
        if dtypes_alone:
            lines.append("To cast floating-point arrays to the network's dtype, give cast=True (--cast).")
        raise CheckpointError("\n".join([*lines, "Give the network (--network) and data that it was trained with."]))
    leaves = [jnp.asarray(found[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def write_tree(path: Path, tree: PyTree, stored: dict[str, Any] | None) -> None:
    """Writes arrays together with plain data, completely or not at all.

    Args:
        path: Where to write; must not exist.
        tree: The arrays.
        stored: The plain data. None: only arrays, in the layout that Orbax's StandardCheckpointer reads.

    Raises:
        OSError: if it cannot be written, because the disk is full or access is denied. No partial files are left.
    """
    from orbax.checkpoint import StandardCheckpointer
    from orbax.checkpoint import v1 as ocp

    _check_space(path, tree)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _SAVING:
            if stored is None:
                with StandardCheckpointer() as checkpointer:
                    checkpointer.save(path, tree)
            else:
                ocp.save(path, tree, custom_metadata={_METADATA_KEY: stored})
    except Exception as error:  # Orbax raises many types where a disk is full or access is denied
        remove_leftovers(path.parent, path.name)
        raise OSError(
            f"{path} could not be written ({type(error).__name__}: {str(error)[-200:]}); no partial files are left. Free "
            "space, or restore access, and run the same command again: what was complete before is kept."
        ) from error


def _check_space(path: Path, tree: PyTree) -> None:
    """Raises OSError if the disk has too little space for a tree: the writer's own message would be very long."""
    if "://" in str(path):
        return
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + _OVERHEAD_BYTES
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{path} needs {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free there. Free space and run the same "
            "command again: what was complete before is kept."
        )
