"""The contract that every network implements; `cujax.adapters` turns flax modules and plain functions into models.

Training, unlearning and auditing see a network only as a `Model`: a hashable value with two pure functions, so that it
can be a static argument of a compiled step. Equal arguments give equal models, and equal models share one compilation.
"""

import functools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from cujax._renamed import NOT_GIVEN, as_inputs

PyTree = Any
# Arrays with a leading row axis: images [B, H, W, C], a table [B, features], or a tree such as {"tokens": ..., "mask": ...}.
Inputs = Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=("embedding", "logits", "taps"), meta_fields=())
@dataclass(frozen=True)
class Outputs:
    """The outputs of a network for a batch of inputs.

    Attributes:
        embedding: `[B, d]`, the input of the head; the contrastive loss acts on it.
        logits: `[B, C]`.
        taps: Features below the last layer by depth, shallow first, each `[B, ...]` and pooled if spatial.
    """

    embedding: jax.Array
    logits: jax.Array
    taps: OrderedDict[str, jax.Array] = field(default_factory=OrderedDict)


class Variables(NamedTuple):
    """The arrays of one trained network: `params`, and `model_state` (batch statistics; `{}` if there are none)."""

    params: PyTree
    model_state: PyTree


# How many arrays of a tree a message names.
_SHOWN = 8

# The number of classes inferred for each model, used if it was not declared.
_seen_num_classes: dict["Model", int] = {}


@dataclass(frozen=True)
class Model(ABC):
    """A network as two pure functions; created by `from_linen`, `from_nnx` or `from_function`.

    Attributes:
        declared_num_classes: The number of classes if it was given; use `num_classes` instead.
        layers: Parameter-path prefixes ("encoder/stage_1") in order of depth; the last is the head.
        axis_name: The mapped device axis over which batch statistics are averaged, if any.
        trainable: Whether a parameter may change, by its path ("encoder/conv/kernel"); None: all may. It is also called for
            batch statistics ("encoder/norm/mean").
    """

    declared_num_classes: int | None
    layers: tuple[str, ...]
    axis_name: str | None
    trainable: Callable[[str], bool] | None = field(default=None, kw_only=True)

    @abstractmethod
    def _init(self, key: jax.Array, inputs: Inputs) -> Variables: ...

    @abstractmethod
    def _apply(self, variables: Variables, inputs: Inputs, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]: ...

    def init(self, key: jax.Array, inputs: Inputs = NOT_GIVEN, *, images: Inputs = NOT_GIVEN) -> Variables:
        """Fresh parameters for inputs like these; compiled, since running it op by op takes seconds.

        Args:
            key: Key of the initialisation.
            inputs: As in `apply`.
            images: The old name of `inputs`, which will be removed in the next release.
        """
        inputs = as_inputs("Model.init", inputs, images)
        variables: Variables = _jitted_init(self, key, inputs)
        jax.eval_shape(functools.partial(self.apply, train=False), *variables, inputs)
        return variables

    def apply(
        self,
        params: PyTree,
        model_state: PyTree,
        inputs: Inputs = NOT_GIVEN,
        *,
        train: bool,
        key: jax.Array | None = None,
        images: Inputs = NOT_GIVEN,
    ) -> tuple[Outputs, PyTree]:
        """Runs the network.

        Args:
            params: Its parameters.
            model_state: Its batch statistics.
            inputs: A pytree of arrays, each `[B, ...]`, as the network takes them: images `[B, H, W, C]` float32,
                preprocessed, or anything else with a leading row axis.
            train: Whether batch statistics are computed (and updated) and dropout is active.
            key: Key for dropout; needed only if the network uses it in train mode.
            images: The old name of `inputs`, which will be removed in the next release.

        Returns:
            The outputs and the new model state (the given one in eval mode).

        Raises:
            ValueError: if the arrays of the inputs have no rows or different numbers of rows; if the network returns
                something other than `Outputs`, an `(embedding, logits)` pair, or logits together with a named embedding; or
                if the number of classes differs from the declared one.
        """
        inputs = as_inputs("Model.apply", inputs, images)
        batch = (num_rows(inputs),)
        if self.freezes:
            params = self._chosen(params, jax.lax.stop_gradient, params)
        result, new_state = self._apply(Variables(params, model_state), inputs, train, key)
        if isinstance(result, tuple) and len(result) == 2:
            result = Outputs(*result)
        if not isinstance(result, Outputs):
            raise ValueError(
                f"the network returned {_result_in_words(result)}, but must return cujax.Outputs or an (embedding, logits) "
                'pair. If it returns only logits, give embedding="NAME", with the name of the submodule that computes them, '
                "whose input is the embedding, to from_linen, from_nnx or cujax.unlearn."
            )
        if result.embedding.ndim != 2 or result.logits.ndim != 2 or result.logits.shape[:1] != batch:
            raise ValueError(
                "the network must return an embedding [batch, d] and logits [batch, classes], but for inputs "
                f"{shapes_in_words(inputs)} they are {result.embedding.shape} and {result.logits.shape}."
            )
        classes = result.logits.shape[1]
        if self.declared_num_classes not in (None, classes):
            raise ValueError(f"num_classes is {self.declared_num_classes}, but the network returns {classes} logits.")
        _seen_num_classes[replace(self, axis_name=None)] = classes
        if not train:
            return result, model_state
        return result, self.keep_frozen_state(new_state, model_state)

    @property
    def num_classes(self) -> int:
        """The number of classes: as declared, or as inferred from the logits of the first call.

        Raises:
            ValueError: if it was not declared and the model has not been called yet.
        """
        classes = self._num_classes()
        if classes is None:
            raise ValueError(
                "num_classes is not known before the first init or apply of this model; give num_classes=... where the "
                "model is created."
            )
        return classes

    @property
    def knows_num_classes(self) -> bool:
        """Whether `num_classes` is known."""
        return self._num_classes() is not None

    def _num_classes(self) -> int | None:
        return self.declared_num_classes or _seen_num_classes.get(replace(self, axis_name=None))

    @property
    def has_initialiser(self) -> bool:
        """Whether `init` can return fresh parameters; an nnx module without its constructor cannot."""
        return True

    @property
    def freezes(self) -> bool:
        """Whether some parameters or statistics are frozen."""
        return self.trainable is not None

    def is_trainable(self, path: str) -> bool:
        """Whether the parameter or statistic at this path may change."""
        return self.trainable is None or bool(self.trainable(path))

    def keep_frozen(self, params: PyTree, before: PyTree) -> PyTree:
        """The parameters, with frozen ones as they were before, bit for bit."""
        return self._chosen(params, lambda leaf: leaf, before) if self.freezes else params

    def keep_frozen_state(self, model_state: PyTree, before: PyTree) -> PyTree:
        """The model state, with frozen parts as they were before."""
        return self._chosen(model_state, lambda leaf: leaf, before, self._state_path) if self.freezes else model_state

    def keep_frozen_variables(self, variables: "Variables", before: "Variables") -> "Variables":
        """Parameters and model state, with frozen parts as they were before."""
        params = self.keep_frozen(variables.params, before.params)
        return Variables(params, self.keep_frozen_state(variables.model_state, before.model_state))

    def _state_path(self, path: str) -> str:
        """The path of a statistic in the form that `trainable` takes."""
        return path

    def _chosen(
        self,
        tree: PyTree,
        frozen: Callable[[PyTree], PyTree],
        before: PyTree,
        rename: Callable[[str], str] = str,
    ) -> PyTree:
        """`tree` where it is trainable, and the frozen arrays of `before` otherwise."""

        def choose(path: tuple[Any, ...], leaf: PyTree, old: PyTree) -> PyTree:
            return leaf if self.is_trainable(rename(jax.tree_util.keystr(path, simple=True, separator="/"))) else frozen(old)

        return jax.tree_util.tree_map_with_path(choose, tree, before)

    def abstract_init(self, images: PyTree) -> "Variables":
        """The shapes and dtypes of the variables for these images; nothing is computed."""
        variables: Variables = jax.eval_shape(self.init, jax.random.key(0), images)
        return variables

    def with_axis_name(self, name: str) -> Self:
        """This model with its batch statistics averaged over the mapped device axis `name`."""
        return replace(self, axis_name=name)


def num_rows(inputs: Inputs) -> int:
    """The number of rows of inputs: the length of the leading axis that all their arrays share.

    Raises:
        ValueError: if there is no array, one has no axes, or their lengths differ.

    >>> num_rows({"tokens": jnp.zeros((3, 7)), "length": jnp.zeros(3)})
    3
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "inputs must be arrays with one leading row axis, of equal length, but their shapes are "
            f"{shapes_in_words(inputs)}; stack samples along the first axis."
        )
    return int(shapes[0][0])


def shapes_in_words(inputs: Inputs) -> str:
    """The shape of an array, or of each of the first arrays of a tree by its path.

    >>> shapes_in_words({"tokens": jnp.zeros((3, 7)), "length": jnp.zeros(3)})
    "['length'] (3,), ['tokens'] (3, 7)"
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(inputs)
    shown = [f"{jax.tree_util.keystr(path)} {jnp.shape(leaf)}".strip() for path, leaf in leaves[:_SHOWN]]
    more = [f"and {len(leaves) - _SHOWN} more"] if len(leaves) > _SHOWN else []
    return ", ".join([*shown, *more]) or "none"


def _result_in_words(result: Any) -> str:
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return f"one array {result.shape} {result.dtype}"
    size = f" of {len(result)}" if isinstance(result, tuple | list | dict) else ""
    return f"a {type(result).__name__}{size}"


@functools.partial(jax.jit, static_argnums=0)
def _jitted_init(model: Model, key: jax.Array, inputs: Inputs) -> Variables:
    return model._init(key, inputs)


def abstract_inputs(one: tuple[int, ...] | Inputs) -> Inputs:
    """The shapes and dtypes of a batch.

    Args:
        one: The shape of one float32 sample, `(H, W, C)` or `(features,)`; or a batch, or its shapes
            (`jax.ShapeDtypeStruct`), with a leading row axis, which is returned as it is.
    """
    if isinstance(one, tuple) and all(isinstance(size, int) for size in one):
        return jax.ShapeDtypeStruct((1, *one), jnp.float32)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)), one)


def abstract_variables(model: Model, inputs: tuple[int, ...] | Inputs) -> Variables:
    """The shapes and dtypes of a model's variables; nothing is computed.

    Args:
        model: The network.
        inputs: The shape of one float32 sample, such as `(H, W, C)`; or a batch (or its shapes and dtypes).
    """
    return model.abstract_init(abstract_inputs(inputs))


def abstract_outputs(model: Model, variables: Variables, inputs: tuple[int, ...] | Inputs) -> Outputs:
    """The shapes and dtypes of a model's outputs for inputs as in `abstract_variables`; nothing is computed."""
    outputs: Outputs = jax.eval_shape(functools.partial(model.apply, train=False), *variables, abstract_inputs(inputs))[0]
    return outputs


@functools.partial(jax.jit, static_argnames="model")
def compute_embeddings(
    model: Model, params: PyTree, model_state: PyTree, inputs: Inputs = NOT_GIVEN, *, images: Inputs = NOT_GIVEN
) -> jax.Array:
    """The embeddings `[B, d]` of inputs, in eval mode; compiled once for each model and shape.

    They are returned as the network computes them: the loss normalises, this function does not.

    Args:
        model: The network.
        params: Its parameters.
        model_state: Its batch statistics.
        inputs: As in `Model.apply`.
        images: The old name of `inputs`, which will be removed in the next release.
    """
    outputs, _ = model.apply(params, model_state, as_inputs("compute_embeddings", inputs, images), train=False)
    return outputs.embedding
