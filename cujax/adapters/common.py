"""What the three adapters share: names of outputs and layers, and the arguments of a network's call."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta

from cujax.model import Inputs, Model, Outputs, Variables, abstract_outputs

# What a network returns in a pair, in order.
OutputNames = tuple[str, str]

# Whether a parameter may change, by its path.
Trainable = Callable[[str], bool]

INVERTED_TRAIN_ARGUMENTS = ("deterministic", "use_running_average")


def keywords(called: Any) -> tuple[list[str], bool]:
    """Which arguments a module or function takes besides the images, and whether it accepts any other keyword."""
    while isinstance(called, nn.Sequential) and called.layers:
        called = called.layers[0]  # it receives all keywords of the call
    function = type(called).__call__ if isinstance(called, nn.Module) else called
    try:
        signature = inspect.signature(function).parameters
    except ValueError:  # a function without a signature, as some in C are
        return [], False
    skipped = 2 if isinstance(called, nn.Module) else 1  # self, images
    kinds = {name: parameter.kind for name, parameter in list(signature.items())[skipped:]}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    return [name for name, kind in kinds.items() if kind not in variable], takes_any


def unboxed(tree: Any) -> Any:
    """Arrays without the boxes that describe their partitioning, which a mesh determines here."""

    def unbox(leaf: Any) -> Any:
        while isinstance(leaf, meta.AxisMetadata):
            leaf = leaf.unbox(apply_constraint=False) if isinstance(leaf, meta.Partitioned) else leaf.unbox()
        return leaf

    return jax.tree.map(unbox, tree, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata))


def layer_names(layers: Sequence[str] | str) -> tuple[str, ...]:
    """The prefixes as a tuple; a string is one prefix, not a sequence of letters."""
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"layers must be names of parameter-path prefixes, such as ('encoder', 'head'), but is {names}.")
    return names


def logits_of(result: Any, computed: Any, embedding: str) -> Any:
    """Finds the logits in a module's result: the array that its last layer computed, or one of the same shape."""
    if not isinstance(result, tuple | list):
        return result
    same = [entry for entry in result if entry is computed]
    alike = [entry for entry in result if getattr(entry, "shape", None) == getattr(computed, "shape", ())]
    for found in (same, alike):
        if len(found) == 1:
            return found[0]
    shapes = [getattr(entry, "shape", type(entry).__name__) for entry in result]
    raise ValueError(
        f"the network returns {shapes}, but it is not clear which of them are the logits that {embedding!r} computes; "
        "return the logits alone, or cujax.Outputs(embedding, logits)."
    )


def with_named_embedding(result: Any, inputs: Sequence[Any], computed: Sequence[Any], name: str, submodules: str) -> Outputs:
    """The outputs of a network whose embedding is the input of a submodule.

    Args:
        result: The network's return value.
        inputs: The submodule's inputs, call by call.
        computed: The submodule's outputs.
        name: Its path.
        submodules: The existing submodules, for the message.

    Raises:
        ValueError: if the submodule was not called exactly once, or its logits cannot be found in the result.
    """
    if len(inputs) != 1:
        raise ValueError(
            f"embedding={name!r} must name a submodule called once, but it is called {len(inputs)} times; {submodules}."
        )
    embedding = inputs[0].reshape(inputs[0].shape[0], -1)
    if isinstance(result, Outputs):
        return replace(result, embedding=embedding)
    return Outputs(embedding, logits_of(result, computed[0], name))


def output_names(outputs: Sequence[str] | None) -> OutputNames | None:
    """The names of a pair's elements, in order; raises ValueError for other names."""
    if outputs is not None and sorted(outputs) != ["embedding", "logits"]:
        raise ValueError(f'outputs must be ("embedding", "logits") or ("logits", "embedding"), but is {outputs!r}.')
    return None if outputs is None else (outputs[0], outputs[1])


def named_outputs(result: Any, names: OutputNames | None) -> Any:
    """The return value of a network, as `Outputs` if it is a pair.

    Args:
        result: The return value. In a pair, the embedding may be in a dict, under that name.
        names: The names of a pair's elements; None for `("embedding", "logits")`, unless a dict shows otherwise.

    Raises:
        ValueError: if a dict has no embedding.
    """
    if not isinstance(result, tuple) or isinstance(result, Outputs) or len(result) != 2:
        return result
    dicts = [position for position, entry in enumerate(result) if isinstance(entry, Mapping)]
    if len(dicts) == 1:
        inner, logits = result[dicts[0]], result[1 - dicts[0]]
        if "embedding" not in inner:
            raise ValueError(
                f'the network returns logits and a dict of {sorted(inner)}; name the embedding in it "embedding", or give '
                "embedding=NAME, the submodule that computes the logits."
            )
        return Outputs(inner["embedding"], logits)
    found = dict(zip(names or ("embedding", "logits"), result, strict=True))
    return Outputs(found["embedding"], found["logits"])


def unsaid_pair(model: Model, variables: Variables, inputs: tuple[int, ...] | Inputs) -> tuple[int, int] | None:
    """The widths of a returned pair whose order was not given, read as `(embedding, logits)`; None for anything else.

    Args:
        model: The network.
        variables: Its variables, or their shapes.
        inputs: As in `abstract_outputs`.
    """
    if getattr(model, "outputs", ()) is not None or model.declared_num_classes is not None:
        return None
    swapped: Model = replace(model, outputs=("logits", "embedding"))  # type: ignore[call-arg]
    widths, others = (
        (outputs.embedding.shape[1], outputs.logits.shape[1])
        for outputs in (abstract_outputs(one, variables, inputs) for one in (model, swapped))
    )
    return widths if widths != others else None


def which_order(widths: tuple[int, int], evidence: str) -> str:
    """Asks for the order of a pair whose widths contradict what else is known."""
    return (
        f"the network returns a pair of widths {widths[0]} and {widths[1]}. Read as (embedding, logits) it has {widths[1]} "
        f"logits; {evidence}, so the order seems to be (logits, embedding). Give the order:"
        ' outputs=("logits", "embedding") or outputs=("embedding", "logits").'
    )
