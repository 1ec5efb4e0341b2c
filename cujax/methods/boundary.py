"""Boundary unlearning: shrink or expand (Chen et al., arXiv:2303.11570, CVPR 2023)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cujax._ranges import Count, NotNegative, Positive
from cujax.batch import Examples
from cujax.data.batches import check_float_inputs
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables, compute_embeddings
from cujax.training.supervised import fresh_variables

_SEARCH_SPACE: SearchSpace = {
    "optimizer": OPTIMIZERS,
    "learning_rate": ByOptimizer(sgd=LogUniform(1e-5, 1e-3), adamw=LogUniform(1e-5, 1e-3)),
    "max_passes": LogUniform(2, 20),
}


@dataclass(frozen=True)
class BoundaryShrink(Descent):
    """Minimises the cross-entropy of the forget set with the label of the nearest other retained class.

    That label is the original's answer, excluding the sample's own class, to
    `x + bound · sign(gradient of the cross-entropy)`, one FGSM step in eval mode. A pass is a pass over the forget set; the
    retain set is not used.

    Attributes:
        bound: Size of the step, for pixels from 0 to 1; for inputs that are not images, in their own units.
    """

    learning_rate: Positive = 1e-5
    batch_size: Count = 64
    bound: NotNegative = 0.1

    search_space: ClassVar[SearchSpace] = _SEARCH_SPACE
    reproduction: ClassVar[Reproduction] = {"class": {"optimizer": "adamw", "learning_rate": 5e-4, "max_passes": 10}}

    def check(self, split: Split) -> None:
        """Raises ValueError if there is no other class to which a sample could move."""
        if len(split.retained_classes) == 1 and not split.is_class_task:
            stays = split.retained_classes[0]
            raise ValueError(
                f"only class {stays} is retained, so its samples cannot move to another class; retain samples of another "
                "class."
            )

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Raises:
            ValueError: if a sample has no other class to go to.
        """
        state_key, batch_key = jax.random.split(key)
        labels = np.asarray(loop.images.labels)
        self.check(split)
        classes = np.unique(labels[split.retain.indices])
        stays = jnp.zeros(model.num_classes, bool).at[classes].set(True)
        check_float_inputs(loop.images, "boundary_shrink moves inputs along a gradient")
        bound = self.bound / loop.images.std if len(loop.images.std) else jnp.float32(self.bound)
        step = self.step(model, _to_nearest, _Neighbour(original, stays, bound))
        passes = self.passes_over(split.forget, step, batch_key)
        return self.run(model, original, split, passes, key=state_key, loop=loop)


class _Neighbour(NamedTuple):
    original: Variables
    stays: jax.Array
    bound: jax.Array


def nearest_other_labels(
    model: Model, variables: Variables, batch: Examples, classes: jax.Array, bound: jax.Array
) -> jax.Array:
    """The label of the nearest other class for each sample, `[B]` int32, found by one FGSM step.

    Args:
        model: The network.
        variables: Its arrays.
        batch: The samples, preprocessed.
        classes: `[C]` bool, True for the classes that may be chosen.
        bound: `[channels]` size of the step, in units of the preprocessed images, or a scalar for other inputs.
    """

    def loss(inputs: PyTree) -> jax.Array:
        outputs, _ = model.apply(*variables, inputs, train=False)
        return cross_entropy(outputs.logits, batch.labels, batch.mask)

    size = bound[None, None, None, :] if bound.ndim else bound
    moved = jax.tree.map(lambda leaf, slope: leaf + size * jnp.sign(slope), batch.inputs, jax.grad(loss)(batch.inputs))
    outputs, _ = model.apply(*variables, moved, train=False)
    is_own = batch.labels[:, None] == jnp.arange(len(classes))[None, :]
    return jnp.argmax(jnp.where(classes[None, :] & ~is_own, outputs.logits, -jnp.inf), axis=1).astype(jnp.int32)


def _to_nearest(
    model: Model, variables: Variables, batch: Examples, terms: _Neighbour, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    labels = nearest_other_labels(model, terms.original, batch, terms.stays, terms.bound)
    outputs, model_state = model.apply(*variables, batch.inputs, train=True, key=key)
    return cross_entropy(outputs.logits, labels, batch.mask), model_state


@dataclass(frozen=True)
class BoundaryExpand(Descent):
    """Adds a shadow class, minimises the cross-entropy of the forget set with it, and drops it again.

    The logit of the shadow class is a freshly initialised linear function of the embedding. A pass is a pass over the forget
    set; the retain set is not used. The stop rule is applied to the network without the shadow class, which is what is
    returned.
    """

    learning_rate: Positive = 1e-5
    batch_size: Count = 64

    search_space: ClassVar[SearchSpace] = _SEARCH_SPACE

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the returned model has the same classes as before."""
        state_key, batch_key, shadow_key = jax.random.split(key, 3)
        widened = _Widened(None, model.layers, model.axis_name, model, shadow=True)
        narrow = replace(widened, shadow=False)
        shadow = fresh_variables(widened, loop.images, shadow_key).params["shadow"]
        start = Variables({"network": original.params, "shadow": shadow}, original.model_state)
        step = self.step(widened, _to_shadow)
        passes = self.passes_over(split.forget, step, batch_key)
        result = self.run(narrow, start, split, passes, key=state_key, loop=loop)
        return replace(result, model=model, params=result.params["network"])


@dataclass(frozen=True)
class _Widened(Model):
    """A model with one additional logit, unless the shadow class is hidden."""

    model: Model
    shadow: bool

    @property
    def freezes(self) -> bool:
        return self.model.freezes

    def is_trainable(self, path: str) -> bool:
        return path.startswith("shadow/") or self.model.is_trainable(path.removeprefix("network/"))

    def _state_path(self, path: str) -> str:
        return self.model._state_path(path)

    def _init(self, key: jax.Array, images: jax.Array) -> Variables:
        network_key, shadow_key = jax.random.split(key)
        params, model_state = self.model.init(network_key, images)
        width = compute_embeddings(self.model, params, model_state, images).shape[1]
        kernel = jax.nn.initializers.lecun_normal()(shadow_key, (width, 1))
        return Variables({"network": params, "shadow": {"bias": jnp.zeros(1), "kernel": kernel}}, model_state)

    def _apply(self, variables: Variables, images: jax.Array, train: bool, key: jax.Array | None) -> tuple[Any, PyTree]:
        params, shadow = variables.params["network"], variables.params["shadow"]
        model = self.model if self.axis_name is None else self.model.with_axis_name(self.axis_name)
        outputs, model_state = model.apply(params, variables.model_state, images, train=train, key=key)
        if self.shadow:
            logit = outputs.embedding @ shadow["kernel"] + shadow["bias"][None, :]
            outputs = replace(outputs, logits=jnp.concatenate([outputs.logits, logit], axis=1))
        return outputs, model_state


def _to_shadow(model: Model, variables: Variables, batch: Examples, terms: Any, key: jax.Array) -> tuple[jax.Array, PyTree]:
    del terms
    outputs, model_state = model.apply(*variables, batch.inputs, train=True, key=key)
    shadow = jnp.full_like(batch.labels, outputs.logits.shape[1] - 1)
    return cross_entropy(outputs.logits, shadow, batch.mask), model_state
