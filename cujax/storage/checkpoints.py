"""Checkpoints: parameters with a record of what they are, which requests they carried out, and whether they are intact.

A checkpoint is one Orbax directory, written under a temporary name and renamed, so it is complete or absent. Orbax does not
notice damaged array data, so a digest over every array and all metadata is stored and verified on loading.
"""

import functools
import json
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
from cujax.model import PyTree, Variables
from cujax.storage.orbax import (
    CheckpointError,
    absolute,
    by_path,
    conform,
    describe_array,
    read_stored,
    read_tree,
    write_tree,
)
from cujax.storage.records import json_digest

Kind = Literal["original", "retrained", "unlearned", "progress"]

_PROGRESS = "progress"

# Schema of what a checkpoint stores besides its arrays; increased when keys change. 1: that of 0.1, which did not record it.
SCHEMA = 2


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    names = ("cujax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return tuple((name, version(name)) for name in names)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that compute and store parameters."""
    return dict(_versions())


@dataclass(frozen=True)
class Ancestor:
    """A model from which a checkpoint was made.

    Attributes:
        kind: Its kind.
        digest: Its checkpoint's digest.
        request: Its request; "" for an original.
        n_forgotten: The total number of ids in its requests: the first ones of its descendants' `forgotten_ids`.
        forgotten_digest: The digest of those ids.
        method: The unlearning method; "" if nothing was unlearned.
        created: When it was created, in UTC.
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
    """The metadata of a checkpoint: plain data, stored as JSON.

    Attributes:
        kind: "original", "retrained", "unlearned" or "progress".
        source: Name of the data set.
        source_version: Identifies the content of the data set.
        config: The experiment's settings.
        request: The last request, in words; "" for an original.
        method: The method used for it, such as "ContrastiveUnlearning"; "" if nothing was unlearned.
        forgotten_ids: Ids of everything that the model must not know: those of the first request, then of the second, etc.
        lineage: The models from which it was made, the original first.
        record: How it was made: cost, and for an unlearned model the stop rule and its checks.
        versions: Versions of the packages that made it.
        created: When it was created, in UTC.
        schema: Layout version of this metadata.
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
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, but is {self.kind!r}.")

    @property
    def forgotten_digest(self) -> str:
        """The digest of the forgotten ids, computed like `Split.digest`."""
        return ids_digest(self.forgotten_ids)

    @property
    def parent_digest(self) -> str | None:
        """The digest of the checkpoint from which this one was made."""
        return self.lineage[-1].digest if self.lineage else None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified, or just written."""

    variables: Variables
    metadata: Metadata
    digest: str

    def as_ancestor(self) -> Ancestor:
        """This checkpoint as the last lineage entry of models made from it."""
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
    """Writes a checkpoint; when this returns, it is complete on disk.

    Args:
        directory: Where to write it; must not exist yet.
        variables: `(params, model_state)`, trees of arrays.
        metadata: Its metadata.

    Raises:
        FileExistsError: if the directory exists. Nothing is ever overwritten.
        OSError: if it cannot be written, because the disk is full or access is denied. No partial files are left.
    """
    path = absolute(directory)
    if path.exists():
        raise FileExistsError(
            f"{path} exists, and checkpoints are never overwritten; choose another directory, or move it away."
        )
    variables = Variables(*variables)
    return Checkpoint(variables, metadata, _write(path, jax.tree.map(jnp.asarray, variables._asdict()), metadata))


def save_progress(directory: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Writes the progress of an unfinished run: a checkpoint of kind "progress", with a digest like any other.

    Args:
        directory: Where to write it; must not exist yet.
        arrays: The result of `to_plain`.
        record: Plain data.

    Raises:
        OSError: as `save_checkpoint`.
    """
    _write(absolute(directory), {_PROGRESS: arrays}, Metadata("progress", record=record))


def load_progress(directory: Path) -> tuple[dict[str, jax.Array], Metadata]:
    """Reads and verifies what `save_progress` wrote.

    Raises:
        CheckpointError: if it is damaged or something else.
    """
    tree, metadata, _ = _verified(absolute(directory))
    if metadata.kind != "progress" or _PROGRESS not in tree:
        raise CheckpointError(f"{directory} is a {metadata.kind} checkpoint, not the progress of a run.")
    return tree[_PROGRESS], metadata


def to_plain(tree: PyTree) -> dict[str, np.ndarray]:
    """Copies of arrays in the host's memory, by path; typed keys as their data."""
    return {name: np.array(leaf, copy=True) for name, leaf in by_path(_key_data(tree)).items()}


def from_plain(arrays: Mapping[str, Any], like: PyTree, where: str) -> PyTree:
    """The inverse of `to_plain`, with the structure and placement of `like`.

    Raises:
        CheckpointError: if names, shapes or dtypes differ.
    """
    plain = conform(arrays, _key_data(like), where)

    def restored(leaf: jax.Array, plain_leaf: jax.Array) -> jax.Array:
        # A private copy: the step donates it.
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
    """Writes arrays and metadata, completely or not at all, and returns their digest."""
    stored = {
        "metadata": asdict(metadata),
        "arrays": {name: describe_array(array) for name, array in by_path(tree).items()},
    }
    stored = json.loads(json.dumps(stored))
    stored["digest"] = json_digest(stored)
    write_tree(path, tree, stored)
    return stored["digest"]


def load_checkpoint(directory: str | PathLike[str], *, like: Variables | None = None) -> Checkpoint:
    """Reads a checkpoint and verifies it, array by array.

    Args:
        directory: Its path.
        like: Variables of its network, concrete or abstract (`abstract_variables`): names and shapes are checked against
            them, and the arrays are returned in that tree's structure. Without it, they are returned as dicts and lists.

    Raises:
        FileNotFoundError: if the directory does not exist.
        CheckpointError: if it is not a checkpoint of this library, is damaged, or is of another network.
    """
    path = absolute(directory)
    tree, metadata, digest = _verified(path)
    if _PROGRESS in tree:
        raise CheckpointError(
            f"{path} is the progress of an unfinished run, not a model; run its command again to finish it."
        )
    variables = Variables(tree.get("params", {}), tree.get("model_state") or {})
    if like is not None:
        variables = conform(variables, like, str(path))
    return Checkpoint(variables, metadata, digest)


def digest_problem(directory: str | PathLike[str], digest: str) -> str:
    """Says why there is no checkpoint with this digest at the path; "" if there is one.

    Only the digest is read: `load_checkpoint` verifies arrays.
    """
    path = absolute(directory)
    if not path.is_dir():
        return "there is no checkpoint there now"
    stored = read_stored(path)
    found = None if stored is None else stored.get("digest")
    if found == digest:
        return ""
    if not found:
        return "the checkpoint there now has no digest"
    return f"there is another checkpoint there now: its digest is {found}"


def _verified(path: Path) -> tuple[Mapping[str, Any], Metadata, str]:
    """Arrays, metadata and digest of a checkpoint, after verification."""
    tree, stored = read_tree(path)
    if stored is None:
        raise CheckpointError(
            f"{path} was not written by cujax, or its metadata is damaged: it has no digest to verify. Restore a "
            "damaged one from a copy. If it comes from another program and you trust it, read it with "
            "cujax.import_checkpoint and save it with cujax.save_checkpoint."
        )
    arrays = by_path(tree)
    remedy = "the file was damaged after it was written. Restore it from a copy, or move it away and run again"
    try:
        if json_digest({name: value for name, value in stored.items() if name != "digest"}) != stored["digest"]:
            raise CheckpointError(f"the metadata of {path} does not match its digest: {remedy}.")
        damaged = [name for name, what in stored["arrays"].items() if describe_array(arrays.get(name)) != what]
        if damaged or arrays.keys() - stored["arrays"].keys():
            raise CheckpointError(f"{damaged or 'an array'} in {path} does not match its digest: {remedy}.")
        fields = {"schema": 1} | stored["metadata"]
        if fields["schema"] > SCHEMA:
            raise CheckpointError(
                f"{path} was written by a newer version of cujax: schema {fields['schema']}, but this version reads up to "
                f"{SCHEMA}; update cujax."
            )
        fields["lineage"] = tuple(Ancestor(**ancestor) for ancestor in fields["lineage"])
        fields["forgotten_ids"] = tuple(fields["forgotten_ids"])
        metadata = Metadata(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the metadata of {path} is incomplete ({error!r}): {remedy}.") from error
    return tree, metadata, stored["digest"]


def check_is_original(checkpoint: Checkpoint, where: str) -> None:
    """Raises CheckpointError if a checkpoint is not a model that can be unlearned."""
    metadata = checkpoint.metadata
    if metadata.kind not in ("original", "unlearned", "retrained"):
        raise CheckpointError(f"{where} is a {metadata.kind} checkpoint of an unfinished run; it cannot be unlearned.")
    if metadata.record.get("masked_classes"):
        raise CheckpointError(
            f"{where} was made by mask_logit: its parameters have forgotten nothing; give the model it was made from."
        )
