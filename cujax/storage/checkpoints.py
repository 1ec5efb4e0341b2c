"""Checkpoints through Orbax: parameters that know what they are, what they forgot, and whether they are intact.

The only file that imports Orbax, and only when a checkpoint is written or read. A checkpoint is one Orbax directory;
Orbax writes it under a temporary name and renames it, so that it is either whole or absent. Orbax does not notice
damaged array data: a digest over every array and all metadata is kept and verified on loading.
"""

import functools
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from os import PathLike
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from cujax.data.requests import ids_digest
from cujax.model import Model, PyTree, Variables, abstract_variables

Kind = Literal["original", "retrained", "unlearned", "progress"]

_METADATA_KEY = "cujax"
_PROGRESS = "progress"
_UNFINISHED = ".orbax-checkpoint-tmp"
# Orbax confuses saves that overlap in two threads, and fails.
_SAVING = threading.Lock()


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, of another network, or not ours."""


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    names = ("cujax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return tuple((name, version(name)) for name in names)


def installed_versions() -> dict[str, str]:
    """Versions of what computes and stores parameters."""
    return dict(_versions())


@dataclass(frozen=True)
class Ancestor:
    """A model that a checkpoint was made from.

    Attributes:
        kind: Its kind.
        digest: Its checkpoint's digest.
        request: What it had been asked to forget; "" for an original.
        n_forgotten: How many ids it had forgotten in all: the first so many of its descendants' `forgotten_ids`.
        forgotten_digest: The digest of those ids.
        method: By what it had forgotten; "" where nothing was unlearned.
        created: When, in UTC.
    """

    kind: Kind
    digest: str
    request: str
    n_forgotten: int
    forgotten_digest: str
    method: str = ""
    created: str = ""


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint knows of itself; plain data, stored as JSON.

    Attributes:
        kind: "original", "retrained", "unlearned" or "progress".
        source: Name of the data set.
        source_version: What identifies its content.
        config: The experiment's settings.
        request: What was forgotten last, in words; "" for an original.
        method: By what it was forgotten, such as "ContrastiveUnlearning"; "" where nothing was unlearned.
        forgotten_ids: Ids of all that the model must not know: those of the first request, then the second's, and so on.
        lineage: What it was made from, the original first.
        record: How it was made: cost, and for an unlearned model the stop rule and its checks.
        versions: Of the packages that made it.
        created: When, in UTC.
    """

    kind: Kind
    source: str = ""
    source_version: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    request: str = ""
    method: str = ""
    forgotten_ids: tuple[str, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=installed_versions)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, but is {self.kind!r}.")

    @property
    def forgotten_digest(self) -> str:
        """The digest of the forgotten ids, as `Split.digest` has it."""
        return ids_digest(self.forgotten_ids)

    @property
    def parent_digest(self) -> str | None:
        """The digest of the checkpoint that this one was made from."""
        return self.lineage[-1].digest if self.lineage else None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified, or just written."""

    variables: Variables
    metadata: Metadata
    digest: str

    def as_ancestor(self) -> Ancestor:
        """This checkpoint as the last entry of the lineage of what is made from it."""
        metadata = self.metadata
        return Ancestor(
            metadata.kind,
            self.digest,
            metadata.request,
            len(metadata.forgotten_ids),
            metadata.forgotten_digest,
            metadata.method,
            metadata.created,
        )


def save_checkpoint(directory: str | PathLike[str], variables: Variables, metadata: Metadata) -> Checkpoint:
    """Writes a checkpoint; when this returns it is complete on disk.

    Args:
        directory: Where; it must not exist yet.
        variables: `(params, model_state)`, trees of arrays.
        metadata: What it is.

    Raises:
        FileExistsError: if the directory exists. Nothing is ever overwritten.
        OSError: if it cannot be written, because the disk is full or access is denied. Nothing is left of it then.
    """
    path = _absolute(directory)
    if path.exists():
        raise FileExistsError(
            f"{path} exists, and checkpoints are never overwritten; choose another directory, or move it away."
        )
    variables = Variables(*variables)
    return Checkpoint(variables, metadata, _write(path, jax.tree.map(jnp.asarray, variables._asdict()), metadata))


def save_progress(directory: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Writes the progress of an unfinished run: a checkpoint of kind "progress", with a digest like any other.

    Args:
        directory: Where; it must not exist yet.
        arrays: From `to_plain`.
        record: Plain data.

    Raises:
        OSError: as `save_checkpoint`.
    """
    _write(_absolute(directory), {_PROGRESS: arrays}, Metadata("progress", record=record))


def load_progress(directory: Path) -> tuple[dict[str, jax.Array], Metadata]:
    """Reads and verifies what `save_progress` wrote.

    Raises:
        CheckpointError: if it is damaged or something else.
    """
    tree, metadata, _ = _verified(_absolute(directory))
    if metadata.kind != "progress" or _PROGRESS not in tree:
        raise CheckpointError(f"{directory} is a {metadata.kind} checkpoint, not the progress of a run.")
    return tree[_PROGRESS], metadata


def to_plain(tree: PyTree) -> dict[str, np.ndarray]:
    """Copies in the host's memory by path; typed keys as their data."""
    return {name: np.array(leaf, copy=True) for name, leaf in _by_path(_key_data(tree)).items()}


def from_plain(arrays: Mapping[str, Any], like: PyTree, where: str) -> PyTree:
    """The inverse of `to_plain`, in the structure of `like` and where its arrays lie.

    Raises:
        CheckpointError: if names, shapes or dtypes differ.
    """
    plain = _conform(arrays, _key_data(like), where)

    def restored(leaf: jax.Array, plain_leaf: jax.Array) -> jax.Array:
        # A copy that nobody else holds: the step donates it.
        owned = jnp.array(plain_leaf, copy=True)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            owned = jax.random.wrap_key_data(owned, impl=jax.random.key_impl(leaf))
        # An array bound to a device compiles to another program than one that lies there by default.
        return jax.device_put(owned, leaf.sharding) if leaf.committed else owned

    return jax.tree.map(restored, like, plain)


def _key_data(tree: PyTree) -> PyTree:
    def data(leaf: jax.Array) -> jax.Array:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(data, tree)


def _write(path: Path, tree: dict[str, Any], metadata: Metadata) -> str:
    """Writes arrays and metadata, whole or not at all, and returns their digest."""
    from orbax.checkpoint import v1 as ocp

    stored = {
        "metadata": asdict(metadata),
        "arrays": {name: _describe(array) for name, array in _by_path(tree).items()},
    }
    stored = json.loads(json.dumps(stored))
    stored["digest"] = _digest(stored)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _SAVING:
            ocp.save(path, tree, custom_metadata={_METADATA_KEY: stored})
    except Exception as error:  # Orbax raises many types where a disk is full or access is denied
        remove_leftovers(path.parent, path.name)
        raise OSError(
            f"{path} could not be written ({type(error).__name__}: {str(error)[-200:]}); nothing is left of it. Free space, "
            "or restore access, and run the same command again: what was complete before is kept."
        ) from error
    return stored["digest"]


def remove_leftovers(directory: Path, name: str = "") -> None:
    """Removes what Orbax leaves in a folder where it was killed while writing; what is complete stays."""
    for leftover in directory.glob(f"{name}*{_UNFINISHED}*"):
        leftover.rmtree()


def load_checkpoint(directory: str | PathLike[str], *, like: Variables | None = None) -> Checkpoint:
    """Reads a checkpoint and verifies it, array by array.

    Args:
        directory: Where it lies.
        like: Variables of the network it is for, concrete or abstract (`abstract_variables`): names and shapes are
            compared, and the arrays come in that tree's structure. Without it they come as dicts and lists.

    Raises:
        FileNotFoundError: if the directory does not exist.
        CheckpointError: if it is not a checkpoint of this library, is damaged, or is of another network.
    """
    path = _absolute(directory)
    tree, metadata, digest = _verified(path)
    if _PROGRESS in tree:
        raise CheckpointError(
            f"{path} is the progress of an unfinished run, not a model; run its command again to finish it."
        )
    variables = Variables(tree.get("params", {}), tree.get("model_state") or {})
    if like is not None:
        variables = _conform(variables, like, str(path))
    return Checkpoint(variables, metadata, digest)


def _verified(path: Path) -> tuple[Mapping[str, Any], Metadata, str]:
    """Arrays, metadata and digest of a checkpoint, after verifying them."""
    tree, stored = _read(path)
    if stored is None:
        raise CheckpointError(
            f"{path} was not written by cujax, or its metadata is damaged: it has no digest to verify. Restore a "
            "damaged one from a copy. If it comes from elsewhere and you trust it, read it with cujax.import_checkpoint "
            "and save it with cujax.save_checkpoint."
        )
    arrays = _by_path(tree)
    remedy = "the file was damaged after it was written. Restore it from a copy, or move it away and run again"
    try:
        if _digest(stored) != stored["digest"]:
            raise CheckpointError(f"the metadata of {path} does not match its digest: {remedy}.")
        damaged = [name for name, what in stored["arrays"].items() if _describe(arrays.get(name)) != what]
        if damaged or arrays.keys() - stored["arrays"].keys():
            raise CheckpointError(f"{damaged or 'an array'} in {path} does not match its digest: {remedy}.")
        fields = dict(stored["metadata"])
        fields["lineage"] = tuple(Ancestor(**ancestor) for ancestor in fields["lineage"])
        fields["forgotten_ids"] = tuple(fields["forgotten_ids"])
        metadata = Metadata(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the metadata of {path} is incomplete ({error!r}): {remedy}.") from error
    return tree, metadata, stored["digest"]


def import_checkpoint(
    source: str | PathLike[str] | Mapping[str, Any], model: Model, image_shape: tuple[int, int, int]
) -> Variables:
    """Admits parameters that this library did not write, after comparing names and shapes with the model's own.

    Args:
        source: An Orbax directory, or a tree: `{"params": ..., "model_state": ...}`, flax's
            `{"params": ..., "batch_stats": ...}`, or the parameters alone if the network keeps no other state.
        model: The network they are for.
        image_shape: `(H, W, C)` of its images.

    Returns:
        Variables of the model. Nothing vouches for them: there was no digest to verify.

    Raises:
        FileNotFoundError: if the directory does not exist.
        CheckpointError: if it cannot be read, or a name or shape does not fit; the message lists them.
    """
    where = "the given tree"
    if isinstance(source, str | PathLike):
        where = str(_absolute(source))
        source, _ = _read(_absolute(source))
    like = abstract_variables(model, image_shape)
    tree: Any = source._asdict() if isinstance(source, Variables) else source
    if "params" not in tree:
        tree = {"params": tree}
    state = tree.get("model_state")
    if state is None:
        state = {name: value for name, value in tree.items() if name in like.model_state}
    return _conform(Variables(tree["params"], state), like, where)


def _absolute(directory: str | PathLike[str]) -> Path:
    """The path as Orbax wants it; an address such as gs://BUCKET/FOLDER is absolute, though epath would prefix it."""
    path = Path(directory)
    return path if "://" in str(path) else path.absolute()


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """The arrays of an Orbax directory, and what `save_checkpoint` stored beside them, if it wrote it."""
    from orbax.checkpoint import v1 as ocp

    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist or is not a directory.")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        found = ocp.metadata(path)
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), found.metadata)
        tree = ocp.load(path, abstract)
    except Exception as error:  # Orbax raises many types, and hides the cause behind some of them
        raise CheckpointError(
            f"{path} cannot be read as an Orbax checkpoint ({type(error).__name__}: {str(error)[:200]}); it is damaged, "
            "incomplete or something else. Restore it from a copy, or move it away and run again."
        ) from error
    stored = (found.custom_metadata or {}).get(_METADATA_KEY)
    if stored is None:
        return tree, None
    if not isinstance(tree, Mapping) or not isinstance(stored, dict):
        raise CheckpointError(f"{path} is damaged. Restore it from a copy, or move it away and run again.")
    return tree, stored


def _by_path(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path, such as "params/head/kernel"; lists and dicts with the same keys give the same paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(array: Any) -> dict[str, Any] | None:
    if array is None:
        return None
    values = np.asarray(array)
    digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "sha256": digest}


def _digest(stored: dict[str, Any]) -> str:
    content = {name: value for name, value in stored.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _conform(tree: PyTree, like: PyTree, where: str) -> Any:
    """The arrays of `tree` in the structure of `like`, if names, shapes and dtypes agree."""
    found, wanted = _by_path(tree), _by_path(like)
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    differing = [
        f"{name} is {found[name].dtype} {found[name].shape}, the network's is {leaf.dtype} {leaf.shape}"
        for name, leaf in wanted.items()
        if name in found and (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if missing or surplus or differing:
        lines = [f"{where} is of another network than the one given:"]
        lines += [f"  missing: {', '.join(missing[:5])} ({len(missing)} in all)"] if missing else []
        lines += [f"  unknown to the network: {', '.join(surplus[:5])} ({len(surplus)} in all)"] if surplus else []
        lines += [f"  {line}" for line in differing[:5]]
        raise CheckpointError("\n".join([*lines, "Give the network (--network) and data that it was trained with."]))
    leaves = [jnp.asarray(found[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
