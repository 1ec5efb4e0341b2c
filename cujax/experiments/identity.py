"""The identity of a computation: an experiment as plain data, and its digest.

Digests name folders and decide whether saved progress may be used. So a digest of an earlier release stays valid as long as
the computation is the same: changed names are spelled as before, and new settings count only if they are set.
"""

import hashlib
import inspect
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from cujax.experiments.config import Experiment, Setup
from cujax.experiments.user_files import split_network
from cujax.storage.records import json_digest

# Location, display, execution details and the number of other models do not change what is computed.
_NOT_IDENTITY = (
    "retrained",
    "workdir",
    "tensorboard",
    "original",
    "steps_per_call",
    "profile",
    "multihost",
    "save_seconds",
    "save_steps",
    "audit",
    "require",
    "requested_by",
    "ticket",
    "hashed_ids",
    "validation_ids",  # the identity of the split says which images they are
)
# What the names of 0.2 were in 0.1.
_DIGITS = "sha256 ce203eb7f8bf70e2"
_SPELLED_BEFORE = {"optimizer": {"adamw": "adam"}, "sampler": {"halton": "random"}}


def describe(value: Any, *, of_0_1: bool = False) -> Any:
    """A configuration as plain data: dataclasses become dicts with a "type", functions their names.

    Args:
        value: A dataclass, or a field value of one.
        of_0_1: Spell names as in 0.1, and omit fields that 0.1 did not have if they have their defaults.
    """
    if is_dataclass(value) and not isinstance(value, type):
        described = {"type": type(value).__name__}
        for item in fields(value):
            if not item.metadata.get("described", True):
                continue
            found = getattr(value, item.name)
            if of_0_1 and item.metadata.get("since") and found == _default(item):
                continue
            entry = describe(found, of_0_1=of_0_1)
            if of_0_1 and isinstance(entry, str):
                entry = _SPELLED_BEFORE.get(item.name, {}).get(entry, entry)
            described[item.name] = entry
        return described
    if isinstance(value, list | tuple):
        return [describe(item, of_0_1=of_0_1) for item in value]
    if callable(value):
        return getattr(value, "__qualname__", repr(value))
    return value


def _default(item: Field) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def described_setup(setup: Setup) -> dict[str, Any]:
    """A setup as used for its digest: without what cannot change a result, and with the content of the user's own files."""
    described = {name: value for name, value in describe(setup, of_0_1=True).items() if name not in _NOT_IDENTITY}
    described["data"].pop("data_dir")
    described = normalised(described)
    file, function = split_network(setup.network)
    if file is not None:
        described["network"] = f"{file.name}:{function}"
        described["network_sha256"] = hashlib.sha256(file.expanduser().read_bytes()).hexdigest()
    return described


def normalised(described: dict[str, Any]) -> dict[str, Any]:
    """A description from this or an earlier release, in which irrelevant parts are always written the same way."""
    described = dict(described)
    if "data" in described:
        source = described["data"]["source"]
        is_path = "/" in source or source.endswith(".npz")  # the version of the source tells its content
        described["data"] = described["data"] | {"source": Path(source).name if is_path else source, "memory_gb": 4.0}
    version = str(described.get("source_version", ""))
    if version == _DIGITS or version.startswith("scikit-learn "):
        described["source_version"] = "scikit-learn 1.9.1"  # what 0.1 called the content of the digits
    return described


def identity(experiment: Experiment) -> dict[str, Any]:
    """The parts of an experiment's description that identify what it computes."""
    described = described_setup(experiment)
    source = _own_source(experiment.method)
    return described | ({} if source is None else {"method_sha256": source})


def _own_source(method: Any) -> str | None:
    """The digest of the source of a method from outside this package; None for other methods, or if there is no source."""
    made_by = method if inspect.isfunction(method) else type(method)
    if made_by.__module__.partition(".")[0] == "cujax":
        return None
    module = sys.modules.get(made_by.__module__)
    try:
        source = inspect.getsource(made_by if module is None else module)
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()


def digest_of(described: dict[str, Any]) -> str:
    """SHA-256 over a description, in hex; equal descriptions have equal digests, whatever the order of their names."""
    return json_digest(described)
