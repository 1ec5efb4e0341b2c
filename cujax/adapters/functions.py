"""A `Model` from two pure functions."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from cujax.adapters.common import OutputNames, Trainable, keywords, layer_names, named_outputs, output_names
from cujax.model import Model, PyTree, Variables


def from_function(
    init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]],
    apply: Callable[..., tuple[Any, PyTree]],
    *,
    num_classes: int | None = None,
    outputs: OutputNames | None = None,
    layers: Sequence[str] = (),
    trainable: Trainable | None = None,
) -> Model:
    """A `Model` from two pure functions.

    Args:
        init: `init(key, images) -> (params, model_state)`.
        apply: `apply(params, model_state, images, *, train, key) -> (outputs, model_state)`, where outputs is
            `Outputs` or an `(embedding, logits)` pair. To run under `pmap`, a network with batch statistics must also
            take `axis_name`.
        num_classes: Number of logits; inferred from the first call if not given.
        outputs: The names of a returned pair's elements, as in `from_linen`.
        layers: Parameter-path prefixes in order of depth, ending with the head; some methods need them.
        trainable: As in `from_linen`.
    """
    return _FunctionModel(num_classes, layer_names(layers), None, init, apply, output_names(outputs), trainable=trainable)


@dataclass(frozen=True)
class _FunctionModel(Model):
    init_function: Callable[..., tuple[PyTree, PyTree]]
    apply_function: Callable[..., tuple[Any, PyTree]]
    outputs: OutputNames | None

    def _init(self, key: jax.Array, images: jax.Array) -> Variables:
        return Variables(*self.init_function(key, images))

    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]:
        arguments: dict[str, Any] = {"train": train, "key": key}
        if self.axis_name is not None and jax.tree.leaves(variables.model_state):
            named, takes_any = keywords(self.apply_function)
            if "axis_name" not in named and not takes_any:
                function = self.apply_function
                while isinstance(function, functools.partial):
                    function = function.func
                name = getattr(function, "__name__", type(function).__name__)
                raise ValueError(
                    f"{name} keeps state, which must be averaged over the device axis "
                    f"{self.axis_name!r}, but it does not take the argument axis_name."
                )
            arguments["axis_name"] = self.axis_name
        result, new_state = self.apply_function(variables.params, variables.model_state, images, **arguments)
        return named_outputs(result, self.outputs), new_state
