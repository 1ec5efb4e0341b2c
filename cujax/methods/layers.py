"""Parts of a network by the names of its layers (`Model.layers`), for methods that treat layers differently."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cujax.data.batches import ImageSet
from cujax.model import Model, PyTree, Variables
from cujax.training.supervised import fresh_variables


def named_layers(model: Model, params: PyTree, method: str) -> tuple[str, ...]:
    """The names of a network's layers by depth; the last is the head.

    Raises:
        ValueError: if the network does not name them, or its parameters do not contain a name.
    """
    if not model.layers:
        raise ValueError(
            f"{method} must know the layers of the network, but it does not name them; give layers=(..., "
            '"HEAD") to from_linen, from_nnx or from_function: parameter paths by depth, the last that of the head.'
        )
    missing = [layer for layer in model.layers if not any(jax.tree.leaves(in_layers(params, [layer])))]
    if missing:
        raise ValueError(
            f"the network names the layers {', '.join(model.layers)}, but has no parameters of {', '.join(missing)}; at the "
            f"top there are {', '.join(map(str, params))}."
        )
    return model.layers


def in_layers(tree: PyTree, layers: Sequence[str], *, collections: bool = False) -> PyTree:
    """Which arrays of a parameter tree or a model state belong to the given layers: a tree of bool.

    Args:
        tree: Nested by the parts of the arrays' paths.
        layers: Path prefixes.
        collections: Whether the first part names a collection ("batch_stats"), as in the state of a linen module.

    >>> in_layers({"stem": {"kernel": 1}, "stage": {"block": {"kernel": 2}}}, ["stage/block"])
    {'stage': {'block': {'kernel': True}}, 'stem': {'kernel': False}}
    """
    prefixes = {tuple(layer.split("/")) for layer in layers}

    def inside(path: tuple[Any, ...], leaf: Any) -> bool:
        del leaf
        names = tuple(str(getattr(entry, "key", entry)) for entry in path)[collections:]
        return any(prefix == names[: len(prefix)] for prefix in prefixes)

    return jax.tree.map_with_path(inside, tree)


def merge(chosen: PyTree, tree: PyTree, other: PyTree) -> PyTree:
    """The arrays of `tree` where `chosen` (a tree of bool) is True, and those of `other` where it is False.

    >>> merge({"a": True, "b": False}, {"a": 1, "b": 2}, {"a": 3, "b": 4})
    {'a': 1, 'b': 4}
    """
    return jax.tree.map(lambda choose, leaf, otherwise: leaf if choose else otherwise, chosen, tree, other)


def redrawn(model: Model, variables: Variables, layers: Sequence[str], images: ImageSet, key: jax.Array) -> Variables:
    """The arrays of a network, with those of some layers reinitialised, including batch statistics.

    Args:
        model: The network.
        variables: Its arrays.
        layers: Names of layers.
        images: Images like the network's inputs.
        key: Random key of the new arrays.
    """
    fresh = fresh_variables(model, images, key)
    collections = not variables.params.keys() & variables.model_state.keys()
    return Variables(
        merge(in_layers(fresh.params, layers), fresh.params, variables.params),
        merge(in_layers(fresh.model_state, layers, collections=collections), fresh.model_state, variables.model_state),
    )


def as_mask(chosen: PyTree, params: PyTree) -> PyTree:
    """For `Descent.step`: a tree of bool arrays like the parameters, True throughout the chosen ones."""
    return jax.tree.map(lambda choose, leaf: jnp.full(jnp.shape(leaf), choose), chosen, params)
