"""Turns a user's network and its arrays into a `Model` and its `Variables`."""

import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.core import FrozenDict, unfreeze

from cujax.adapters import NnxModel, from_linen, from_nnx
from cujax.adapters.common import OutputNames, unsaid_pair, which_order
from cujax.model import Inputs, Model, PyTree, Variables, abstract_variables


def as_model(model_or_module: Any, *, embedding: str | None = None, outputs: OutputNames | None = None) -> Model:
    """The `Model` of a network.

    Args:
        model_or_module: A `Model`, a flax.linen module, or a flax.nnx module.
        embedding: For a module that returns only logits: the submodule that computes them, whose input is the embedding.
        outputs: For a module that returns a pair: the names of its elements, in order.

    Raises:
        ValueError: if one of these is given together with a `Model`, or both are given.
        TypeError: if it is not a network.
    """
    given = {"embedding": embedding, "outputs": outputs}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(model_or_module, Model):
        for name, value in options.items():
            raise ValueError(
                f"{name} is {value!r}, but a cujax.Model already has an embedding; give it where the model is created: "
                f"cujax.from_linen(module, {name}={value!r})."
            )
        return model_or_module
    if isinstance(model_or_module, nn.Module):
        return from_linen(model_or_module, **options)
    if isinstance(model_or_module, nnx.Module):
        return from_nnx(model_or_module, **options)
    raise TypeError(
        f"model_or_module is {type(model_or_module).__name__}, but must be a cujax.Model, a flax.linen or a flax.nnx "
        "module; cujax.from_function makes a Model from two functions."
    )


def check_order(model: Model, variables: Variables, inputs: Inputs, labels: Any) -> None:
    """Raises ValueError if a pair was returned without giving its order, and the labels contradict the assumed order.

    They do if every label has a logit in the other order, and either some label has none in the assumed order, or the other
    order has fewer logits. Labels that use the last logit in the assumed order never contradict it.
    """
    labels = np.asarray(labels)
    widths = unsaid_pair(model, variables, inputs)
    if widths is None or labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        return
    used, (width, logits) = int(labels.max()) + 1, widths
    if used <= width and (used > logits or width < logits):
        raise ValueError(which_order(widths, f"the largest label is {used - 1}"))


def as_variables(given: Any, model: Model, inputs: Inputs, *, name: str = "variables") -> Variables:
    """The arrays of a network, checked against it; on the host, so that none of the caller's arrays are donated.

    Args:
        given: A `Variables`; the output of `module.init`, `{"params": ..., "batch_stats": ...}`, whatever else is in the
            dict, such as the state of an optimiser; a tree of parameters only; a train state with `params`, and
            `batch_stats` or `model_state` if the network has them; an nnx module; or an nnx state.
        model: The network.
        inputs: Rows that it takes.
        name: Its name in messages.

    Raises:
        ValueError: if arrays are missing, superfluous, not finite, or differ in shape from the network's.
    """
    like = abstract_variables(model, inputs)
    taken = _taken_apart(given, model)
    if isinstance(given, Mapping) and "params" in given:
        taken = _without_training_state(name, taken, like)
    variables = jax.tree.map(np.asarray, taken)
    _check_same_arrays(name, variables, like)
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        if np.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
            raise ValueError(f"{name}{_path(path)} contains NaN or infinity; give the arrays of a working network.")
    return variables


def _without_training_state(name: str, variables: Variables, like: Variables) -> Variables:
    """Variables without what a restored dict holds beside them, as `cujax.import_checkpoint` reads one; warns of it."""
    collections = dict(variables.model_state)
    if "model_state" not in like.model_state and isinstance(collections.get("model_state"), Mapping):
        collections |= collections.pop("model_state")
    left_out = sorted(collections.keys() - like.model_state.keys())
    if any(jax.tree.leaves(collections[entry]) for entry in left_out):
        warnings.warn(
            (
                f"{name} contains {', '.join(left_out)} in addition to the arrays of the network; these are left out, also "
                "from the result."
            ),
            UserWarning,
            stacklevel=4,
        )
    return Variables(variables.params, {entry: collections[entry] for entry in collections if entry not in left_out})


def _taken_apart(given: Any, model: Model) -> Variables:
    if isinstance(given, nnx.Module | nnx.State) and isinstance(model, NnxModel):
        return model.variables_of(given)
    if isinstance(given, Variables):
        return Variables(_plain(given.params), _plain(given.model_state))
    if not isinstance(given, Mapping) and hasattr(given, "params"):
        state = getattr(given, "model_state", None)
        if state is None:
            statistics = getattr(given, "batch_stats", None)
            state = {} if statistics is None else {"batch_stats": statistics}
        inner = _plain(given.params)
        if isinstance(inner, dict) and "params" in inner and not state:
            return _taken_apart(inner, model)
        return Variables(inner, _plain(state))
    if isinstance(given, Mapping) and "params" in given:
        collections = dict(_plain(given))
        return Variables(collections.pop("params"), collections)
    return Variables(_plain(given), {})


def _plain(tree: Any) -> PyTree:
    return unfreeze(tree) if isinstance(tree, FrozenDict | dict) else tree


def in_form_of(variables: Variables, given: Any, model: Model) -> Any:
    """Converts arrays to the form in which others were given: `Variables`, an nnx state, or a flax dict of collections."""
    if isinstance(given, nnx.Module | nnx.State) and isinstance(model, NnxModel):
        return model.state_of(variables)
    if isinstance(given, Variables):
        return variables
    return {"params": variables.params, **variables.model_state}


def _check_same_arrays(name: str, found: Variables, like: Variables) -> None:
    shapes, expected = (
        {_path(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (found, like)
    )
    missing, extra = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{name} are not those of the network: "
            + "; ".join(
                f"{what} {', '.join(paths[:5])}"
                for what, paths in (("missing are", missing), ("too many are", extra))
                if paths
            )
            + ". Give what its init gives: a cujax.Variables, or {'params': ..., 'batch_stats': ...}."
        )
    for path, shape in expected.items():
        if shapes[path] != shape:
            raise ValueError(
                f"{name}{path} is {shapes[path]}, but the network has {shape} there; give arrays of this network."
            )


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path)
