"""A `Model` from a flax.linen module, with any fields, modes, collections and transforms."""

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cujax.adapters.common import (
    INVERTED_TRAIN_ARGUMENTS,
    OutputNames,
    Trainable,
    keywords,
    layer_names,
    named_outputs,
    output_names,
    unboxed,
    with_named_embedding,
)
from cujax.model import Model, PyTree, Variables

# Where the input and the result of the named submodule are kept during a call: a collection, since what flax's transforms
# (remat, jit) trace inside comes out of them in collections alone.
_RECORD = "cujax_record"


def from_linen(
    module: nn.Module,
    *,
    num_classes: int | None = None,
    embedding: str | None = None,
    outputs: OutputNames | None = None,
    train_argument: str | None = "train",
    rng_streams: Sequence[str] = ("dropout",),
    layers: Sequence[str] = (),
    trainable: Trainable | None = None,
) -> Model:
    """Creates a `Model` from a flax.linen module.

    The module's BatchNorm layers may name a device axis (`axis_name="batch"`). If no such axis is mapped, their statistics
    are those of the batch; under `pmap_unlearn_step`, they are averaged over its axis, whatever name the module uses.

    Collections that a call adds to (sown values) are not part of the model state.

    Args:
        module: The module. It is called as `module(images, train=...)`, or as `module(images)` if it takes no other
            argument. Fields may be lists, dicts and arrays: modules are compared by value.
        num_classes: Number of logits; inferred from the first call if not given.
        embedding: The path of the submodule ("head", "classifier/last") that computes the logits: its input is the
            embedding, whatever else the module returns. It may be inside `nn.remat` or `nn.jit`.
        outputs: The names of a returned pair's elements: `("embedding", "logits")`, the default, or `("logits",
            "embedding")`. The embedding may be in a dict, under that name.
        train_argument: The name of the module's mode argument, or of its field for the mode. "deterministic" and
            "use_running_average" receive the opposite of train. None: the module behaves the same in both modes.
            `nn.Sequential` passes it to its first layer, so it is passed only if that layer takes it.
        rng_streams: The random streams that the module uses in train mode: "dropout" receives the key of the call, and
            every other stream that key folded with its name.
        layers: Parameter-path prefixes in order of depth, ending with the head; some methods need them. If not given, they
            are read from the module's own `layers`, if these are names.
        trainable: Decides by its path whether a parameter may change, as in `lambda path: path.startswith("head/")`. Also
            called for paths such as "encoder/norm/mean": a BatchNorm layer whose mean is frozen normalises with its
            running statistics in both modes. None: everything may change. Define it once, at module level: equal functions
            give equal models.

    Raises:
        ValueError: if the module takes other arguments besides the images but not `train_argument`, or a field cannot be
            compared by value.

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
    named, takes_any = keywords(module)
    is_field = train_argument is not None and train_argument not in named and _has_field(module, train_argument)
    if not is_field and not named and not takes_any:
        train_argument = None
    elif train_argument is not None and not is_field and train_argument not in named and not takes_any:
        raise ValueError(
            f"{type(module).__name__}.__call__ takes {named} besides the images, but not train_argument="
            f"{train_argument!r}; name the one that sets train mode, or train_argument=None if none does."
        )
    if embedding is not None and outputs is not None:
        raise ValueError(f"embedding is {embedding!r} and outputs is {outputs}; give one of the two.")
    streams = (rng_streams,) if isinstance(rng_streams, str) else tuple(rng_streams)
    return _LinenModel(
        num_classes,
        layer_names(layers) or _own_layer_names(module),
        None,
        _ByValue(module),
        embedding,
        train_argument,
        is_field,
        output_names(outputs),
        streams,
        trainable=trainable,
    )


def _has_field(module: nn.Module, name: str) -> bool:
    return is_dataclass(module) and name in {field.name for field in fields(module)}


def _own_layer_names(module: nn.Module) -> tuple[str, ...]:
    """The layers that a module declares, unless its `layers` is something else, as in `nn.Sequential`."""
    own = getattr(module, "layers", ())
    is_names = isinstance(own, list | tuple) and all(isinstance(name, str) for name in own)
    return layer_names(own) if isinstance(own, str) or is_names else ()


class _ByValue:
    """A module that equals another with equal class and fields; fields may be lists, dicts, arrays, partials."""

    def __init__(self, module: nn.Module) -> None:
        try:
            self._key = _frozen(module, {})
            self._hash = hash(self._key)
        except TypeError as error:
            raise ValueError(
                f"{type(module).__name__} has a field that is not hashable ({error}), so compiled steps cannot recognise it "
                "again; use numbers, names, functions, tuples, lists, dicts, arrays or modules."
            ) from error
        self.module = module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByValue) and self._hash == other._hash and bool(self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return repr(self.module)


def _frozen(value: Any, seen: dict[int, int]) -> Any:
    """A hashable value that is equal for equal values; a module that recurs is the same object, not just an equal one."""
    if isinstance(value, nn.Module):
        if id(value) in seen:
            return ("again", seen[id(value)])
        seen[id(value)] = len(seen)
        own = [field.name for field in fields(value) if field.name != "parent"]
        return (type(value), tuple((name, _frozen(getattr(value, name), seen)) for name in own))
    if isinstance(value, list | tuple):
        return (type(value), tuple(_frozen(entry, seen) for entry in value))
    if isinstance(value, Mapping):
        return ("mapping", tuple((key, _frozen(entry, seen)) for key, entry in value.items()))
    if isinstance(value, functools.partial):
        return ("partial", value.func, _frozen(value.args, seen), _frozen(value.keywords, seen))
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return ("array", str(array.dtype), array.shape, array.tobytes())
    hash(value)
    return (type(value), value)  # so that 1, 1.0 and True differ


@dataclass(frozen=True)
class _LinenModel(Model):
    by_value: _ByValue
    embedding: str | None
    train_argument: str | None
    is_field: bool
    outputs: OutputNames | None
    rng_streams: tuple[str, ...]

    def _with_mode(self, train: bool) -> tuple[nn.Module, dict[str, bool]]:
        """The module, and the arguments that set its mode."""
        module = self.by_value.module
        if self.train_argument is None:
            return module, {}
        mode = {self.train_argument: train is not (self.train_argument in INVERTED_TRAIN_ARGUMENTS)}
        return (module.clone(**mode), {}) if self.is_field else (module, mode)  # type: ignore[arg-type]

    def _rngs(self, key: jax.Array) -> dict[str, jax.Array]:
        return {
            name: key if name == "dropout" else jax.random.fold_in(key, zlib.crc32(name.encode()))
            for name in self.rng_streams
        }

    def _state_path(self, path: str) -> str:
        return path.partition("/")[2]  # without the collection

    def _init(self, key: jax.Array, images: jax.Array) -> Variables:
        module, mode = self._with_mode(train=False)
        collections = unboxed(dict(module.init(key, images, **mode)))  # type: ignore[arg-type]
        params = collections.pop("params", {})
        collections.pop("intermediates", None)
        if collections.keys() - {"batch_stats"}:
            for name in self._growing(Variables(params, collections), images):
                del collections[name]
        return Variables(params, collections)

    def _growing(self, variables: Variables, images: jax.Array) -> list[str]:
        """The collections that a call in train mode adds to, or whose shapes depend on the batch: sown values."""
        one_more = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] + 1, *leaf.shape[1:]), leaf.dtype), images)

        def states(variables: Variables, images: jax.Array) -> PyTree:
            return self._call(variables, images, train=True, key=jax.random.key(0))[1]

        after = jax.eval_shape(states, variables, one_more)
        return [name for name, before in variables.model_state.items() if _shapes(before) != _shapes(after[name])]

    def _call(
        self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[Any, dict[str, Any], Any, list[str]]:
        """The module's result, its collections of state, the record of its embedding, and the submodules it called."""
        module, mode = self._with_mode(train)
        if self.axis_name is not None and hasattr(module, "axis_name"):
            module = module.clone(axis_name=self.axis_name)
        seen: list[str] = []
        averaged = [""] if hasattr(module, "axis_name") else []
        within: list[str] = []

        def intercept(next_method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
            path = "/".join(context.module.path)
            if context.method_name != "__call__":
                return next_method(*args, **kwargs)
            if hasattr(context.module, "axis_name"):
                averaged.append(path)
            if path:
                seen.append(path)
            with self._as_we_need(context.module, path, kwargs, train=train):
                if path != self.embedding or not path or within:
                    return next_method(*args, **kwargs)
                within.append(path)  # a transformed module calls itself once more
                try:
                    result = next_method(*args, **kwargs)
                finally:
                    within.pop()
            context.module.sow(_RECORD, "cujax_input", args[0] if args else next(iter(kwargs.values())))
            context.module.sow(_RECORD, "cujax_result", result)
            return result

        frozen = ("params",) if train else ("params", *variables.model_state)
        with nn.intercept_methods(intercept):
            result, collections = module.apply(
                {"params": variables.params, **variables.model_state},
                images,
                **mode,  # type: ignore[arg-type]
                rngs=None if key is None else self._rngs(key),
                mutable=nn.DenyList(frozen),
            )
        if self.axis_name is not None and train:
            _check_averaged(type(module).__name__, variables.model_state, averaged, self.axis_name)
        record = collections.get(_RECORD, {})
        kept = {name: collections.get(name, before) for name, before in variables.model_state.items()}
        return result, kept, record, seen

    @contextmanager
    def _as_we_need(self, module: nn.Module, path: str, kwargs: dict[str, Any], *, train: bool) -> Iterator[None]:
        """A batch-statistics layer as it runs here: over our axis, or with its running statistics if they are frozen."""
        changed: dict[str, Any] = {}
        if isinstance(module, nn.BatchNorm):
            if self.axis_name is not None:
                changed["axis_name"] = self.axis_name
            if train and self.freezes and not self.is_trainable(f"{path}/mean"):
                changed["use_running_average"] = None
                kwargs["use_running_average"] = True
        own = getattr(module, "axis_name", None)
        if "axis_name" not in changed and isinstance(own, str) and not _is_mapped(own):
            changed["axis_name"] = self.axis_name
        before = {name: getattr(module, name) for name in changed}
        try:
            for name, value in changed.items():
                object.__setattr__(module, name, value)
            yield
        finally:
            for name, value in before.items():
                object.__setattr__(module, name, value)

    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]:
        result, new_state, record, seen = self._call(variables, images, train, key)
        if self.embedding is None:
            return named_outputs(result, self.outputs), new_state
        for part in self.embedding.split("/"):
            record = record.get(part, {})
        inputs, computed = record.get("cujax_input", ()), record.get("cujax_result", ())
        called = f"the submodules called are {list(dict.fromkeys(seen))}"
        return with_named_embedding(result, inputs, computed, self.embedding, called), new_state


def _is_mapped(axis_name: str) -> bool:
    """Whether the call runs inside a mapped axis with this name."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def _check_averaged(name: str, model_state: Mapping[str, Any], averaged: list[str], axis_name: str) -> None:
    """Raises ValueError if some state does not belong to a layer that averages it over devices."""
    leaves = jax.tree_util.tree_flatten_with_path(dict(model_state))[0]
    paths = [jax.tree_util.keystr(path, simple=True, separator="/").partition("/")[2] for path, _ in leaves]
    alone = [path for path in paths if not any(not layer or path.startswith(f"{layer}/") for layer in averaged)]
    if alone:
        raise ValueError(
            f"{name} keeps {', '.join(alone[:3])}, which must be averaged over the device axis {axis_name!r}, but the "
            "layer that keeps it has no field axis_name: add `axis_name: str | None = None` to it and average over that "
            "axis where it is given, as flax's BatchNorm does."
        )


def _shapes(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: (jax.numpy.shape(leaf), jax.numpy.result_type(leaf)), tree)
