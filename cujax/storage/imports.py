"""Weights that other programs saved: Orbax, flax's msgpack, safetensors, TrainStates, nnx states.

Weights are read, converted to the form of a model's own variables, and checked by name and shape. Nothing is unpickled.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from flax import nnx
from flax.core import meta

from cujax.adapters.common import unboxed
from cujax.model import Model, Variables, abstract_variables
from cujax.storage.orbax import CheckpointError, absolute, by_path, conform, read_tree

_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".joblib")
# What a whole state of training may lie under.
_WRAPPERS = ("default", "state", "train_state", "model")


@dataclass(frozen=True)
class Imported:
    """Weights that match their model.

    Attributes:
        variables: Variables of the model.
        where: What they were read from, including the step.
        left_out: The outermost names of everything else, such as "opt_state".
    """

    variables: Variables
    where: str
    left_out: tuple[str, ...]


def import_checkpoint(
    source: str | PathLike[str] | Any,
    model: Model,
    image_shape: tuple[int, int, int],
    *,
    step: int | None = None,
    cast: bool = False,
) -> Variables:
    """Imports parameters that this library did not write, after checking names and shapes against the model's.

    Args:
        source: One of

            - an Orbax directory, or the root of a CheckpointManager, with items of any names;
            - a file written with `flax.serialization.to_bytes`, or a safetensors file with names like "params/head/kernel";
            - a tree: `{"params": ..., "batch_stats": ...}` as in flax, `{"params": ..., "model_state": ...}`, only the
              parameters if the network has no other state, a TrainState, an `nnx.State` or an nnx module.

            Parameters may be boxed (`nn.Partitioned`). Optimiser state, counters and so on are left out; `read_import`
            reports what was left out.
        model: The network of the parameters.
        image_shape: `(H, W, C)` of its images.
        step: The step of a CheckpointManager; by default the latest.
        cast: Whether to cast floating-point arrays to the network's dtype, such as from bfloat16 to float32. If not, their
            dtypes must match the network's.

    Returns:
        Variables of the model. Their integrity is not verified: there is no digest.

    Raises:
        FileNotFoundError: if the file, directory or step does not exist.
        CheckpointError: if it cannot be read, or names, shapes or dtypes do not match; the message lists them.
    """
    return read_import(source, model, image_shape, step=step, cast=cast).variables


def read_import(
    source: str | PathLike[str] | Any,
    model: Model,
    image_shape: tuple[int, int, int],
    *,
    step: int | None = None,
    cast: bool = False,
) -> Imported:
    """Like `import_checkpoint`, but also reports what was read and what was left out."""
    where = "the given tree"
    if isinstance(source, str | PathLike):
        where, source = _read(absolute(source), step)
    elif step is not None:
        raise ValueError(f"step is {step}, but a tree has no steps; give the directory of a CheckpointManager.")
    like = abstract_variables(model, image_shape)
    found, left_out = _named_as(like, _plain(source))
    if cast:
        wanted = by_path(like)
        found = {name: _cast(leaf, wanted.get(name)) for name, leaf in found.items()}
    variables: Variables = conform(found, like, where)
    return Imported(variables, where, left_out)


def _cast(leaf: Any, like: Any) -> Any:
    floating = like is not None and all(jnp.issubdtype(one.dtype, jnp.floating) for one in (leaf, like))
    return jnp.asarray(leaf).astype(like.dtype) if floating else leaf


def _read(path: Path, step: int | None) -> tuple[str, Any]:
    """The content of a path, and its name with the step."""
    if path.is_dir():
        return _read_directory(path, step)
    if step is not None:
        raise ValueError(f"step is {step}, but {path} is not the directory of a CheckpointManager.")
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist.")
    if path.suffix in _PICKLED:
        raise CheckpointError(
            f"{path} may be pickled, and pickles are never opened: reading one can run code. Save the tree that it holds "
            "with flax.serialization.to_bytes, Orbax or safetensors."
        )
    return str(path), _read_safetensors(path) if path.suffix == ".safetensors" else _read_msgpack(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        tensors = load_file(str(path))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); it is damaged or something else. Restore it from a copy."
        ) from error
    separator = "/" if any("/" in name for name in tensors) else "."
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(separator)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    return tree


def _read_msgpack(path: Path) -> Any:
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises many types
        raise CheckpointError(
            f"{path} cannot be read as a file of flax.serialization.to_bytes ({type(error).__name__}: {str(error)[:200]}); "
            "it is truncated, or of another kind. Give such a file, an Orbax directory or a .safetensors file."
        ) from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(
            f"{path} contains {type(tree).__name__}, not a tree of arrays; write one with flax.serialization.to_bytes."
        )
    return tree


def _read_directory(path: Path, step: int | None) -> tuple[str, Any]:
    steps = {} if _is_tree(path) or _items(path) else _steps(path)
    if steps:
        chosen = max(steps) if step is None else step
        if chosen not in steps:
            raise FileNotFoundError(f"{path} holds the steps {sorted(steps)}, but not step {step}.")
        path = steps[chosen]
        if path.is_file():
            return str(path), _read_msgpack(path)
    elif step is not None:
        raise FileNotFoundError(
            f"step is {step}, but {path} contains no steps; give the directory of a CheckpointManager, or leave out the "
            "step."
        )
    items = _items(path)
    if _is_tree(path) or not items:
        return str(path), read_tree(path)[0]
    trees = {item: read_tree(path, item)[0] for item in items}
    return str(path), trees["default"] if set(trees) == {"default"} else trees


def _is_tree(path: Path) -> bool:
    return (path / "_METADATA").exists()


def _items(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.is_dir() and _is_tree(item) and not _step_of(item.name))


def _steps(path: Path) -> dict[int, Path]:
    """The steps of a CheckpointManager, and the checkpoints of flax's older `save_checkpoint`."""
    named = {entry: _step_of(entry.name) for entry in path.iterdir()}
    return {int(number): entry for entry, number in named.items() if number}


def _step_of(name: str) -> str | None:
    match = re.fullmatch(r"(?:[A-Za-z][\w-]*_)?(\d+)", name)
    return match and match[1]


def _plain(tree: Any) -> Any:
    """Nested dicts of arrays, without boxes."""
    if isinstance(tree, nnx.Module):
        tree = nnx.state(tree)
    if isinstance(tree, nnx.State):
        return _plain(nnx.to_pure_dict(tree))
    if isinstance(tree, Variables):
        tree = tree._asdict()
    elif hasattr(tree, "params") and dataclasses.is_dataclass(tree):  # a TrainState
        tree = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return {str(number): _plain(value) for number, value in enumerate(tree)}
    if isinstance(tree, meta.AxisMetadata):
        return _plain(unboxed(tree))
    return tree


def _named_as(like: Variables, tree: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arrays of a tree by the paths of variables like these, and the outermost names of everything else."""
    left_out: list[str] = []
    while "params" not in tree:
        inside = [name for name in _WRAPPERS if isinstance(tree.get(name), Mapping) and "params" in tree[name]]
        if len(inside) != 1:
            break
        left_out += [name for name in tree if name not in inside]
        tree = tree[inside[0]]
    if "params" not in tree:
        return _of_one_tree(like, tree, left_out)
    params, others = tree["params"], {name: value for name, value in tree.items() if name != "params"}
    if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping) and "params" not in like.params:
        others |= {name: value for name, value in params.items() if name != "params"}  # all variables as the parameters
        params = params["params"]
    collections = list(like.model_state)
    if "model_state" in others and "model_state" not in collections:
        others |= others.pop("model_state") or {}
    state = others.get("state")
    if isinstance(state, Mapping) and "state" not in collections and not others.keys() & set(collections):
        within = {name: value for name, value in state.items() if name in collections}
        others |= within or ({collections[0]: state} if len(collections) == 1 else {})
        others.pop("state")
    left_out += [name for name in others if name not in collections and not _is_empty(others[name])]
    model_state = {name: others[name] for name in collections if name in others}
    found = {"params": params, "model_state": model_state}
    return _without_boxes(by_path(found), by_path(like)), tuple(sorted(set(left_out)))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and not value)


def _of_one_tree(like: Variables, tree: Any, left_out: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Only parameters, or parameters and state in one tree, as in nnx; random number state is left out."""
    wanted = by_path(like)
    found = {}
    for name, leaf in by_path(tree).items():
        bare = name.removesuffix("/value")
        inside = [f"{part}/{one}" for one in (name, bare) for part in ("params", "model_state") if f"{part}/{one}" in wanted]
        if inside:
            found[inside[0]] = leaf
        elif re.search(r"(^|/)(rngs|rng|streams)/", name):
            left_out = [*left_out, "rngs"]
        else:
            found[f"params/{name}"] = leaf
    return found, tuple(sorted(set(left_out)))


def _without_boxes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the additional name under which boxed arrays were stored."""
    return {name if name in wanted else _shorter(name, wanted): leaf for name, leaf in found.items() if leaf is not None}


def _shorter(name: str, wanted: Mapping[str, Any]) -> str:
    bare = name.removesuffix("/value")
    return bare if bare in wanted else name


def check_logits(model: Model, variables: Variables, path: str | PathLike[str], tolerance: float = 1e-3) -> float:
    """Compares the logits of imported weights with those that the source program computed.

    Args:
        model: The network.
        variables: Its imported arrays.
        path: An `.npz` file with `inputs` `[n, H, W, C]`, as the network takes them, and `logits` `[n, C]`.
        tolerance: The largest difference that passes.

    Returns:
        The largest difference.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it contains something else, or a logit differs by more.
    """
    import zipfile

    name = str(path)
    try:
        with np.load(name, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("inputs", "logits") if key in stored}
    except (ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{name} cannot be read as an .npz file ({error}); write it with numpy.savez.") from error
    if len(arrays) < 2:
        raise ValueError(f"{name} must contain `inputs` and `logits`, but contains {sorted(arrays) or 'neither'}.")
    outputs, _ = model.apply(*variables, jnp.asarray(arrays["inputs"], jnp.float32), train=False)
    logits = np.asarray(outputs.logits, np.float32)
    if logits.shape != arrays["logits"].shape:
        raise ValueError(f"the logits in {name} have the shape {arrays['logits'].shape}, but the network's {logits.shape}.")
    differences = np.abs(logits - arrays["logits"]).max(axis=1)
    row = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    largest = float(differences[row])
    if not largest <= tolerance:
        raise ValueError(
            f"the logits differ from those in {name} by up to {largest:.3g} (input {row}), more than {tolerance}: the "
            "weights, the network's settings (heads, epsilon, activation) or the preprocessing of the "
            "inputs are not those of the source."
        )
    return largest
