"""Three ways to meet the contract of `cujax.model`: `from_linen`, `from_nnx`, `from_function`."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from cujax.model import Model, Outputs, PyTree, Variables

# What a network returns in a pair, in order.
OutputNames = tuple[str, str]

_INVERTED_TRAIN_ARGUMENTS = ("deterministic", "use_running_average")


def from_linen(
    module: nn.Module,
    *,
    num_classes: int | None = None,
    embedding: str | None = None,
    outputs: OutputNames | None = None,
    train_argument: str | None = "train",
    layers: Sequence[str] = (),
) -> Model:
    """A `Model` from a flax.linen module.

    Args:
        module: Called as `module(images, train=...)`. A module that takes the images alone is called with them alone.
        num_classes: Number of logits; seen in the first call where not given.
        embedding: The path of the submodule ("head", "classifier/last") that computes the logits: its input is the
            embedding, whatever else the module returns.
        outputs: What a returned pair holds: `("embedding", "logits")`, as where nothing is given, or `("logits",
            "embedding")`. The embedding may lie in a dict, by that name.
        train_argument: What the module calls its mode argument. "deterministic" and "use_running_average" are given
            the opposite of train. None: the module behaves alike in both modes. `nn.Sequential` hands it to its first
            layer, so it is given only where that one takes it.
        layers: Parameter-path prefixes in order of depth, the last the head; some methods need them. Read from the
            module's own `layers` where not given, if these are names.

    Raises:
        ValueError: if the module takes other arguments beside the images but not `train_argument`.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from cujax import compute_embeddings
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, images):
    ...         hidden = nn.relu(nn.Dense(4)(images.reshape(len(images), -1)))
    ...         return nn.Dense(3, name="head")(hidden)
    >>> model = from_linen(Net(), embedding="head")
    >>> images = jnp.ones((2, 5, 5, 1))
    >>> variables = model.init(jax.random.key(0), images)
    >>> compute_embeddings(model, *variables, images).shape, model.num_classes
    ((2, 4), 3)
    """
    named, takes_any = _keywords(module)
    if not named and not takes_any:
        train_argument = None
    elif train_argument is not None and train_argument not in named and not takes_any:
        raise ValueError(
            f"{type(module).__name__}.__call__ takes {named} beside the images, but not train_argument="
            f"{train_argument!r}; name the one that sets train mode, or train_argument=None if none does."
        )
    module = _hashable_sequences(module, {})
    try:
        hash(module)
    except TypeError as error:
        raise ValueError(
            f"{type(module).__name__} has a field that is not hashable ({error}), so compiled steps cannot know it again; "
            "use tuples for lists and frozen dicts for dicts."
        ) from error
    if embedding is not None and outputs is not None:
        raise ValueError(f"embedding is {embedding!r} and outputs is {outputs}; give one of the two.")
    names = _layer_names(layers) or _own_layer_names(module)
    return _LinenModel(num_classes, names, None, module, embedding, train_argument, _output_names(outputs))


def _keywords(called: Any) -> tuple[list[str], bool]:
    """Which arguments a module or function takes beside the images, and whether it takes any keyword beside these."""
    while isinstance(called, nn.Sequential) and called.layers:
        called = called.layers[0]  # it is given all keywords of the call
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


def _hashable_sequences(module: Any, done: dict[int, Any]) -> Any:
    """A module whose `nn.Sequential`s hold their layers in tuples; a layer that recurs stays one layer."""
    if not isinstance(module, nn.Sequential):
        return module
    if id(module) not in done:
        done[id(module)] = module.clone(layers=tuple(_hashable_sequences(layer, done) for layer in module.layers))
    return done[id(module)]


def _layer_names(layers: Sequence[str] | str) -> tuple[str, ...]:
    """The prefixes as a tuple; a string is one prefix, not a sequence of letters."""
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"layers must be names of parameter-path prefixes, such as ('encoder', 'head'), but is {names}.")
    return names


def _own_layer_names(module: nn.Module) -> tuple[str, ...]:
    """What a module says of its layers, unless its `layers` is something else, as that of `nn.Sequential` is."""
    own = getattr(module, "layers", ())
    is_names = isinstance(own, list | tuple) and all(isinstance(name, str) for name in own)
    return _layer_names(own) if isinstance(own, str) or is_names else ()


@dataclass(frozen=True)
class _LinenModel(Model):
    module: nn.Module
    embedding: str | None
    train_argument: str | None
    outputs: OutputNames | None

    def _mode(self, train: bool) -> dict[str, bool]:
        if self.train_argument is None:
            return {}
        return {self.train_argument: train is not (self.train_argument in _INVERTED_TRAIN_ARGUMENTS)}

    def _init(self, key: jax.Array, images: jax.Array) -> Variables:
        collections = dict(self.module.init(key, images, **self._mode(train=False)))  # type: ignore[arg-type]
        collections.pop("intermediates", None)
        params = collections.pop("params", {})
        return Variables(params, collections)

    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]:
        module = self.module
        if self.axis_name is not None:
            if hasattr(module, "axis_name"):
                module = module.clone(axis_name=self.axis_name)
            elif variables.model_state:
                raise ValueError(
                    f"{type(module).__name__} keeps {sorted(variables.model_state)}, which must be averaged over the "
                    f"device axis {self.axis_name!r}, but it has no field axis_name: add `axis_name: str | None = None` "
                    "to the module and pass it on to its BatchNorm layers."
                )
        inputs: list[jax.Array] = []
        computed: list[Any] = []
        seen: list[str] = []

        def record(next_method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
            path = "/".join(context.module.path)
            if context.method_name == "__call__" and path:
                seen.append(path)
                if path == self.embedding:
                    inputs.append(args[0] if args else next(iter(kwargs.values())))
                    computed.append(next_method(*args, **kwargs))
                    return computed[-1]
            return next_method(*args, **kwargs)

        with nn.intercept_methods(record):
            result, new_state = module.apply(
                {"params": variables.params, **variables.model_state},
                images,
                **self._mode(train),  # type: ignore[arg-type]
                rngs=None if key is None else {"dropout": key},
                mutable=list(variables.model_state) if train else [],
            )
        if self.embedding is None:
            return named_outputs(result, self.outputs), new_state
        if len(inputs) != 1:
            raise ValueError(
                f"embedding={self.embedding!r} must name a submodule called once, but it is called {len(inputs)} "
                f"times; the submodules called are {list(dict.fromkeys(seen))}."
            )
        flat = inputs[0].reshape(inputs[0].shape[0], -1)
        if isinstance(result, Outputs):
            return replace(result, embedding=flat), new_state
        return Outputs(flat, _logits_of(result, computed[0], self.embedding)), new_state


def _logits_of(result: Any, computed: Any, embedding: str) -> Any:
    """The logits among what a module returns, whose last layer computed some: they are the same array, or its shape."""
    if not isinstance(result, tuple | list):
        return result
    same = [entry for entry in result if entry is computed]
    alike = [entry for entry in result if getattr(entry, "shape", None) == getattr(computed, "shape", ())]
    for found in (same, alike):
        if len(found) == 1:
            return found[0]
    shapes = [getattr(entry, "shape", type(entry).__name__) for entry in result]
    raise ValueError(
        f"the network returns {shapes}, and which of them are the logits that {embedding!r} computes cannot be seen; return "
        "the logits alone, or cujax.Outputs(embedding, logits)."
    )


def _output_names(outputs: Sequence[str] | None) -> OutputNames | None:
    if outputs is not None and sorted(outputs) != ["embedding", "logits"]:
        raise ValueError(f'outputs must be ("embedding", "logits") or ("logits", "embedding"), but is {outputs!r}.')
    return None if outputs is None else (outputs[0], outputs[1])


def named_outputs(result: Any, names: OutputNames | None) -> Any:
    """What a network returned, as `Outputs` if it is a pair.

    Args:
        result: What it returned. In a pair the embedding may lie in a dict, under that name.
        names: What a pair holds; None for `("embedding", "logits")`, unless a dict shows otherwise.

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


def from_nnx(
    constructor: Callable[[nnx.Rngs], nnx.Module],
    *,
    num_classes: int | None = None,
    outputs: OutputNames | None = None,
    layers: Sequence[str] = (),
) -> Model:
    """A `Model` from a function that builds a flax.nnx module, which returns `Outputs` or an `(embedding, logits)` pair.

    A constructor rather than a module, since retraining needs fresh parameters. Two models are equal if their
    constructors are: use a function or class defined once, not a new lambda each time.

    Args:
        constructor: Called with `nnx.Rngs`; a module class whose only argument is `rngs` will do.
        num_classes: Number of logits; seen in the first call where not given.
        outputs: What a returned pair holds, as in `from_linen`.
        layers: Parameter-path prefixes in order of depth, the last the head; some methods need them.
    """
    return _NnxModel(num_classes, _layer_names(layers), None, constructor, _output_names(outputs))


@functools.cache
def _nnx_structure(constructor: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, Any, Any]:
    """The graph definition and the abstract parameters and other state of what the constructor builds."""
    graph, params, _, rest = _split_nnx(nnx.eval_shape(lambda: constructor(nnx.Rngs(0))))
    return graph, params, rest


def _split_nnx(module: nnx.Module) -> Any:
    """Graph definition, parameters, state of random number generators, and all other state."""
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


@dataclass(frozen=True)
class _NnxModel(Model):
    constructor: Callable[[nnx.Rngs], nnx.Module]
    outputs: OutputNames | None

    def _init(self, key: jax.Array, images: jax.Array) -> Variables:
        del images  # an nnx module knows its shapes
        _, params, _, rest = _split_nnx(self.constructor(nnx.Rngs(key)))
        return Variables(_with_string_keys(params), _with_string_keys(rest))

    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]:
        graph, abstract_params, abstract_rest = _nnx_structure(self.constructor)
        rng_state = nnx.state(self.constructor(nnx.Rngs(jax.random.key(0) if key is None else key)), nnx.RngState)
        module = nnx.merge(
            graph,
            _like(abstract_params, variables.params),
            rng_state,
            _like(abstract_rest, variables.model_state),
            copy=True,
        )
        if train:
            module.train()
        else:
            module.eval()
        if self.axis_name is not None:
            for _, layer in nnx.iter_modules(module):
                if isinstance(layer, nnx.BatchNorm):
                    layer.axis_name = self.axis_name
        result = named_outputs(module(images), self.outputs)
        return result, _with_string_keys(_split_nnx(module)[3])


def _with_string_keys(state: nnx.State[Any, Any]) -> dict[str, Any]:
    """A nested dict of the arrays of a state; the integer keys of lists become strings, as checkpoints hold them."""

    def convert(node: Any) -> Any:
        return {str(key): convert(value) for key, value in node.items()} if isinstance(node, Mapping) else node

    arrays: dict[str, Any] = convert(nnx.to_pure_dict(state))
    return arrays


def _like(abstract: nnx.State[Any, Any], tree: Mapping[str, Any]) -> nnx.State[Any, Any]:
    """The state of `abstract` holding the arrays of `tree`."""

    def convert(node: Any, values: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: convert(child, values[str(key)]) for key, child in node.items()}
        return values

    state: nnx.State[Any, Any] = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, convert(nnx.to_pure_dict(abstract), tree))
    return state


def from_function(
    init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]],
    apply: Callable[..., tuple[Any, PyTree]],
    *,
    num_classes: int | None = None,
    outputs: OutputNames | None = None,
    layers: Sequence[str] = (),
) -> Model:
    """A `Model` from two pure functions.

    Args:
        init: `init(key, images) -> (params, model_state)`.
        apply: `apply(params, model_state, images, *, train, key) -> (outputs, model_state)`, where outputs is
            `Outputs` or an `(embedding, logits)` pair. A network with batch statistics that is to run under `pmap`
            also takes `axis_name`.
        num_classes: Number of logits; seen in the first call where not given.
        outputs: What a returned pair holds, as in `from_linen`.
        layers: Parameter-path prefixes in order of depth, the last the head; some methods need them.
    """
    return _FunctionModel(num_classes, _layer_names(layers), None, init, apply, _output_names(outputs))


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
            named, takes_any = _keywords(self.apply_function)
            if "axis_name" not in named and not takes_any:
                function = self.apply_function
                while isinstance(function, functools.partial):
                    function = function.func
                name = getattr(function, "__name__", type(function).__name__)
                raise ValueError(
                    f"{name} keeps state, which must be averaged over the device axis "
                    f"{self.axis_name!r}, but it takes no argument axis_name."
                )
            arguments["axis_name"] = self.axis_name
        result, new_state = self.apply_function(variables.params, variables.model_state, images, **arguments)
        return named_outputs(result, self.outputs), new_state
