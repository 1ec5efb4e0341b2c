"""A `Model` from a flax.nnx module, or from a function that builds one."""

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cujax.adapters.common import (
    INVERTED_TRAIN_ARGUMENTS,
    OutputNames,
    Trainable,
    layer_names,
    named_outputs,
    output_names,
    with_named_embedding,
)
from cujax.model import Model, PyTree, Variables

Constructor = Callable[[nnx.Rngs], nnx.Module]


class _Recorded(nnx.Intermediate[Any]):
    """The input and output of the named submodule; a separate type, since a module may sow intermediates."""


def from_nnx(
    module: nnx.Module | Constructor,
    *,
    constructor: Constructor | None = None,
    num_classes: int | None = None,
    embedding: str | None = None,
    outputs: OutputNames | None = None,
    train_argument: str | None = None,
    layers: Sequence[str] = (),
    trainable: Trainable | None = None,
) -> "NnxModel":
    """Creates a `Model` from a flax.nnx module, or from a function that builds one.

    Variables of type `nnx.Param`, which includes `nnx.LoRAParam`, are trained. Variables of all other types are model
    state, which only the module itself changes. All random streams follow the key of the call.

    Args:
        module: A module, or a function of `nnx.Rngs` that builds one (such as a class whose only argument is `rngs`). Its
            `__call__` takes images; if it also takes `rngs`, they are passed in each call. Two models are equal if their
            functions are: define the function once instead of using a new lambda each time.
        constructor: Builds modules like the given one, with fresh parameters. A module cannot be initialised again, so
            training from scratch with only a module is rejected.
        num_classes: Number of logits; inferred from the first call if not given.
        embedding: The path of the submodule ("head", "blocks/1/last") that computes the logits: its input is the
            embedding, whatever else the module returns. If not given, the module must return `Outputs` or a pair.
        outputs: The names of a returned pair's elements, as in `from_linen`.
        train_argument: The name of the mode argument of `__call__`, as in `from_linen`. `module.train()` and
            `module.eval()` are called in any case.
        layers: Parameter-path prefixes in order of depth, ending with the head; some methods need them.
        trainable: As in `from_linen`.

    Raises:
        ValueError: if `embedding` and `outputs` are both given.

    >>> from flax import nnx
    >>> import jax, jax.numpy as jnp
    >>> net = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    >>> model = from_nnx(net, embedding="layers/1")
    >>> variables = model.variables_of(net)
    >>> model.apply(*variables, jnp.ones((5, 4)), train=False)[0].embedding.shape
    (5, 3)
    >>> model.update(net, jax.tree.map(jnp.zeros_like, variables))
    >>> print(net(jnp.ones((1, 4))))
    [[0. 0.]]
    """
    if embedding is not None and outputs is not None:
        raise ValueError(f"embedding is {embedding!r} and outputs is {outputs}; give one of the two.")
    structure = None
    if isinstance(module, nnx.Module):
        structure = _Structure(module) if constructor is None else None
    else:
        constructor = module
    return NnxModel(
        num_classes,
        layer_names(layers),
        None,
        constructor,
        structure,
        embedding,
        output_names(outputs),
        train_argument,
        trainable=trainable,
    )


def _split(module: nnx.Module) -> Any:
    """Graph definition, parameters, state of random number generators, and all other state except sown intermediates."""
    parts: Any = nnx.split(module, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
    graph, params, rngs, _, rest = parts
    return graph, params, rngs, rest


class _Structure:
    """A module without its arrays; equal for modules of equal structure and shapes."""

    def __init__(self, module: nnx.Module) -> None:
        self.graph, params, rngs, rest = _split(_without_intermediates(module))
        self.params, self.rngs, self.rest = (jax.tree.map(_abstract, state) for state in (params, rngs, rest))
        leaves, tree = jax.tree.flatten((self.params, self.rngs, self.rest))
        self._key = (self.graph, tree, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and bool(self._key == other._key)

    def __hash__(self) -> int:
        return hash((self.graph, self._key[2]))

    def rng_state(self, key: jax.Array) -> Any:
        """The state of its random number generators, each seeded by the key and its own path."""

        def begin(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jnp.zeros(leaf.shape, leaf.dtype)
            own = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
            return jax.random.split(own, leaf.shape) if leaf.shape else own

        return jax.tree_util.tree_map_with_path(begin, self.rngs)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype)


def _without_intermediates(module: nnx.Module) -> nnx.Module:
    """A copy without values sown by earlier calls, which are not part of the module's structure."""
    copy = nnx.clone(module)
    nnx.pop(copy, nnx.Intermediate)
    return copy


@functools.cache
def _structure_of(constructor: Constructor) -> _Structure:
    return _Structure(nnx.eval_shape(lambda: constructor(nnx.Rngs(0))))


@dataclass(frozen=True)
class NnxModel(Model):
    """A `Model` of a flax.nnx module; created by `from_nnx`."""

    constructor: Constructor | None
    of_instance: _Structure | None
    embedding: str | None
    outputs: OutputNames | None
    train_argument: str | None

    @property
    def _structure(self) -> _Structure:
        if self.of_instance is not None:
            return self.of_instance
        assert self.constructor is not None
        return _structure_of(self.constructor)

    def variables_of(self, module: nnx.Module | nnx.State[Any, Any]) -> Variables:
        """The arrays of a module, or of its `nnx.state`, as nested dicts with string keys.

        Raises:
            ValueError: if the module's structure differs from the model's.
        """
        if isinstance(module, nnx.Module):
            module = nnx.state(_without_intermediates(module))
        params, _, _, rest = nnx.split_state(module, nnx.Param, nnx.RngState, nnx.Intermediate, ...)
        variables = _variables(params, rest)
        wanted = _variables(self._structure.params, self._structure.rest)
        found = jax.tree.map(jnp.shape, variables)
        if found != jax.tree.map(jnp.shape, wanted):
            raise ValueError(f"the module's arrays have the shapes {found}, but the model's are {wanted}.")
        return variables

    def state_of(self, variables: Variables) -> nnx.State[Any, Any]:
        """An `nnx.State` of the variables, which `nnx.update(module, state)` takes."""
        structure = self._structure
        params, rest = _like(structure.params, variables.params), _like(structure.rest, variables.model_state)
        state: nnx.State[Any, Any] = nnx.merge_state(params, rest)
        return state

    def update(self, module: nnx.Module, variables: Variables) -> None:
        """Sets the arrays of a module, in place."""
        nnx.update(module, self.state_of(variables))

    @property
    def has_initialiser(self) -> bool:
        return self.constructor is not None

    def abstract_init(self, images: PyTree) -> Variables:
        if self.constructor is not None:
            return super().abstract_init(images)
        return _variables(self._structure.params, self._structure.rest)

    def _init(self, key: jax.Array, images: jax.Array) -> Variables:
        del images  # an nnx module knows its shapes
        if self.constructor is None:
            raise ValueError(
                "the model was made from an nnx module, which cannot be initialised again: training from scratch needs "
                "fresh parameters. Give from_nnx(module, constructor=...) the function or class that builds it from "
                "nnx.Rngs; for the arrays that the module has, use model.variables_of(module)."
            )
        _, params, _, rest = _split(self.constructor(nnx.Rngs(key)))
        return _variables(params, rest)

    def _rng_state(self, key: jax.Array) -> Any:
        if self.constructor is None:
            return self._structure.rng_state(key)
        return nnx.state(self.constructor(nnx.Rngs(key)), nnx.RngState)

    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]:
        structure = self._structure
        module: Any = nnx.merge(
            structure.graph,
            _like(structure.params, variables.params),
            self._rng_state(jax.random.key(0) if key is None else key),
            _like(structure.rest, variables.model_state),
            copy=True,
        )
        if train:
            module.train()
        else:
            module.eval()
        for path, layer in nnx.iter_modules(module):
            if not isinstance(layer, nnx.BatchNorm):
                continue
            if self.axis_name is not None:
                layer.axis_name = self.axis_name
            if self.freezes and not self.is_trainable(f"{_joined(path)}/mean"):
                layer.use_running_average = True
        result = self._call(module, images, train, key)
        nnx.pop(module, nnx.Intermediate)
        return result, _with_string_keys(_split(module)[3])

    def _call(self, module: Any, images: jax.Array, train: bool, key: jax.Array | None) -> Any:
        arguments: dict[str, Any] = {}
        if self.train_argument is not None:
            arguments[self.train_argument] = train is not (self.train_argument in INVERTED_TRAIN_ARGUMENTS)
        if "rngs" in inspect.signature(type(module).__call__).parameters:
            # In eval mode nothing may depend on them; a module that takes rngs takes them in every call.
            arguments["rngs"] = nnx.Rngs(jax.random.key(0) if key is None else key)
        if self.embedding is None:
            return named_outputs(module(images, **arguments), self.outputs)
        by_path = {_joined(path): layer for path, layer in nnx.iter_modules(module) if path}
        head: Any = by_path.get(self.embedding)
        if head is None:
            raise ValueError(f"embedding={self.embedding!r} must name a submodule; the submodules are {list(by_path)}.")
        kind: Any = type(head)
        object.__setattr__(head, "__class__", _recording(kind))
        result = module(images, **arguments)
        object.__setattr__(head, "__class__", kind)
        inputs: Any = head.cujax_input.get_value() if hasattr(head, "cujax_input") else ()
        computed: Any = head.cujax_result.get_value() if inputs else ()
        return with_named_embedding(result, inputs, computed, self.embedding, f"the submodules are {list(by_path)}")


def _joined(path: Sequence[Any]) -> str:
    return "/".join(map(str, path))


@functools.cache
def _recording(kind: type[Any]) -> type[Any]:
    """A module that records its input and output as variables, which nnx's transforms carry out."""

    class Recording(kind):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = super().__call__(*args, **kwargs)
            given = args[0] if args else next(iter(kwargs.values()))
            for name, value in (("cujax_input", given), ("cujax_result", result)):
                before = getattr(self, name).get_value() if hasattr(self, name) else ()
                setattr(self, name, _Recorded((*before, value)))
            return result

    Recording.__name__ = kind.__name__
    return Recording


def _variables(params: nnx.State[Any, Any], rest: nnx.State[Any, Any]) -> Variables:
    return Variables(_with_string_keys(params), _with_string_keys(rest))


def _with_string_keys(state: nnx.State[Any, Any]) -> dict[str, Any]:
    """A nested dict of the arrays of a state; the integer keys of lists become strings, as in checkpoints."""

    def convert(node: Any) -> Any:
        return {str(key): convert(value) for key, value in node.items()} if isinstance(node, Mapping) else node

    arrays: dict[str, Any] = convert(nnx.to_pure_dict(state))
    return arrays


def _like(abstract: nnx.State[Any, Any], tree: Mapping[str, Any]) -> nnx.State[Any, Any]:
    """The state of `abstract` with the arrays of `tree`."""

    def convert(node: Any, values: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: convert(child, values[str(key)]) for key, child in node.items()}
        return values

    state: nnx.State[Any, Any] = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, convert(nnx.to_pure_dict(abstract), tree))
    return state
