"""The contract that every network meets; `cujax.adapters` makes models of flax modules and plain functions.

Training, unlearning and auditing see a network only as a `Model`: a hashable value with two pure functions, so that it
can be a static argument of a compiled step. Equal arguments make equal models, and equal models share one compilation.
"""

import functools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

PyTree = Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=("embedding", "logits", "taps"), meta_fields=())
@dataclass(frozen=True)
class Outputs:
    """What a network gives for a batch of images.

    Attributes:
        embedding: `[B, d]`, what the head reads; the contrastive loss acts on it.
        logits: `[B, C]`.
        taps: Features below the last layer by depth, shallow first, each `[B, ...]` and pooled where spatial.
    """

    embedding: jax.Array
    logits: jax.Array
    taps: OrderedDict[str, jax.Array] = field(default_factory=OrderedDict)


class Variables(NamedTuple):
    """The arrays of one trained network: `params`, and `model_state` (batch statistics; `{}` if there are none)."""

    params: PyTree
    model_state: PyTree


# How many classes each model was seen to have: the answer where its maker did not say.
_seen_num_classes: dict["Model", int] = {}


@dataclass(frozen=True)
class Model(ABC):
    """A network as two pure functions; made by `from_linen`, `from_nnx` or `from_function`.

    Attributes:
        declared_num_classes: The number of classes if it was given; read `num_classes`.
        layers: Parameter-path prefixes ("encoder/stage_1") in order of depth; the last is the head.
        axis_name: The mapped device axis over which batch statistics are averaged, if any.
        trainable: Whether a parameter may move, by its path ("encoder/conv/kernel"); None: all may. It is asked for batch
            statistics, too ("encoder/norm/mean").
    """

    declared_num_classes: int | None
    layers: tuple[str, ...]
    axis_name: str | None
    trainable: Callable[[str], bool] | None = field(default=None, kw_only=True)

    @abstractmethod
    def _init(self, key: jax.Array, images: jax.Array) -> Variables: ...

    @abstractmethod
    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]: ...

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """Fresh parameters for images `[B, H, W, C]`; compiled, since op by op it takes seconds."""
        variables: Variables = _jitted_init(self, key, images)
        jax.eval_shape(functools.partial(self.apply, train=False), *variables, images)
        return variables

    def apply(
        self,
        params: PyTree,
        model_state: PyTree,
        images: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Outputs, PyTree]:
        """Runs the network.

        Args:
            params: Its parameters.
            model_state: Its batch statistics.
            images: `[B, H, W, C]` float32, preprocessed.
            train: Whether batch statistics are computed (and updated) and dropout acts.
            key: Randomness of dropout; needed only where the network uses it in train mode.

        Returns:
            The outputs and the new model state (the given one in eval mode).

        Raises:
            ValueError: if the network returns something else than `Outputs`, an `(embedding, logits)` pair, or logits
                together with a named embedding; or another number of classes than was declared.
        """
        if self.freezes:
            params = self._chosen(params, jax.lax.stop_gradient, params)
        result, new_state = self._apply(Variables(params, model_state), images, train, key)
        if isinstance(result, tuple) and len(result) == 2:
            result = Outputs(*result)
        if not isinstance(result, Outputs):
            raise ValueError(
                f"the network returned {type(result).__name__}, but must return cujax.Outputs or an (embedding, logits) "
                'pair. A linen module that returns logits alone needs from_linen(module, embedding="NAME"), with the '
                "name of the submodule that computes them: its input is the embedding."
            )
        batch = images.shape[:1]
        if result.embedding.ndim != 2 or result.logits.ndim != 2 or result.logits.shape[:1] != batch:
            raise ValueError(
                "the network must return an embedding [batch, d] and logits [batch, classes], but for images "
                f"{images.shape} they are {result.embedding.shape} and {result.logits.shape}."
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
        """The number of classes: as declared, or as seen in the logits of the first call.

        Raises:
            ValueError: if it was not declared and the model has not been called yet.
        """
        classes = self._num_classes()
        if classes is None:
            raise ValueError(
                "num_classes is not known before the first init or apply of this model; give num_classes=... "
                "where the model is made."
            )
        return classes

    @property
    def knows_num_classes(self) -> bool:
        """Whether `num_classes` is known."""
        return self._num_classes() is not None

    def _num_classes(self) -> int | None:
        return self.declared_num_classes or _seen_num_classes.get(replace(self, axis_name=None))

    @property
    def freezes(self) -> bool:
        """Whether some parameters or statistics may not move."""
        return self.trainable is not None

    def is_trainable(self, path: str) -> bool:
        """Whether the parameter or statistic at this path may move."""
        return self.trainable is None or bool(self.trainable(path))

    def keep_frozen(self, params: PyTree, before: PyTree) -> PyTree:
        """The parameters, but those that are frozen as they were before, bit by bit."""
        return self._chosen(params, lambda leaf: leaf, before) if self.freezes else params

    def keep_frozen_state(self, model_state: PyTree, before: PyTree) -> PyTree:
        """The model state, but what is frozen of it as it was before."""
        return self._chosen(model_state, lambda leaf: leaf, before, self._state_path) if self.freezes else model_state

    def keep_frozen_variables(self, variables: "Variables", before: "Variables") -> "Variables":
        """Both."""
        params = self.keep_frozen(variables.params, before.params)
        return Variables(params, self.keep_frozen_state(variables.model_state, before.model_state))

    def _state_path(self, path: str) -> str:
        """The path of a statistic as `trainable` is asked for it."""
        return path

    def _chosen(
        self,
        tree: PyTree,
        frozen: Callable[[PyTree], PyTree],
        before: PyTree,
        rename: Callable[[str], str] = str,
    ) -> PyTree:
        """`tree` where it is trainable, and `frozen` of `before` elsewhere."""

        def choose(path: tuple[Any, ...], leaf: PyTree, old: PyTree) -> PyTree:
            return leaf if self.is_trainable(rename(jax.tree_util.keystr(path, simple=True, separator="/"))) else frozen(old)

        return jax.tree_util.tree_map_with_path(choose, tree, before)

    def abstract_init(self, images: PyTree) -> "Variables":
        """The shapes and dtypes of the variables for such images; nothing is computed."""
        variables: Variables = jax.eval_shape(self.init, jax.random.key(0), images)
        return variables

    def with_axis_name(self, name: str) -> Self:
        """This model with its batch statistics averaged over the mapped device axis `name`."""
        return replace(self, axis_name=name)


@functools.partial(jax.jit, static_argnums=0)
def _jitted_init(model: Model, key: jax.Array, images: jax.Array) -> Variables:
    return model._init(key, images)


def abstract_variables(model: Model, image_shape: tuple[int, int, int]) -> Variables:
    """The shapes and dtypes of a model's variables for images `(H, W, C)`; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return model.abstract_init(images)


def abstract_outputs(model: Model, variables: Variables, image_shape: tuple[int, ...]) -> Outputs:
    """The shapes and dtypes of what a model gives for one image `(H, W, C)`; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    outputs: Outputs = jax.eval_shape(functools.partial(model.apply, train=False), *variables, image)[0]
    return outputs


@functools.partial(jax.jit, static_argnames="model")
def compute_embeddings(model: Model, params: PyTree, model_state: PyTree, images: jax.Array) -> jax.Array:
    """The embeddings `[B, d]` of images `[B, H, W, C]`, in eval mode; compiled once for each model and shape.

    They are as the network gives them: the loss normalises, this does not.
    """
    outputs, _ = model.apply(params, model_state, images, train=False)
    return outputs.embedding
