"""The unlearning step: one optimiser update on a batch of forget and retain samples. Pure, and jitted.

State in, state out: `make_unlearn_step` returns the pure function, for code that compiles it itself. `unlearn_step` is the
same function, compiled, with its state donated. On many devices, `unlearn_step` takes a batch that is sharded over them
(`cujax.sharding` places one). `pmap_unlearn_step` is for code that uses pmap.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, Int32, Key, Shaped

from cujax.batch import Batch, Examples
from cujax.embedding_queue import LabelledEmbeddings, queue_of
from cujax.labels import check_labels, counted_labels
from cujax.losses import Denominator, anchor_losses, cross_entropy, masked_mean
from cujax.model import Model, Outputs, PyTree, Variables, num_rows
from cujax.sharding import mesh_of, on_mesh, traced_num_shards, whole, with_auto_axes

BatchNorm = Literal["joint", "retain_only", "frozen"]
Metrics = dict[str, Shaped[Array, ""]]
Queue = LabelledEmbeddings | None


@runtime_checkable
class StepConfig(Protocol):
    """The settings that the step reads, such as those of a `cujax.ContrastiveUnlearning`.

    Attributes:
        unlearn_weight: Weight of the contrastive loss.
        retain_weight: Weight of the retain batch's cross-entropy.
        temperature: Temperature of the contrastive loss.
        denominator: As in `cujax.contrastive_unlearning_loss`.
        batch_norm: As in `apply_to_batch`.
    """

    @property
    def unlearn_weight(self) -> float: ...
    @property
    def retain_weight(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def denominator(self) -> Denominator: ...
    @property
    def batch_norm(self) -> BatchNorm: ...


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("step", "params", "model_state", "opt_state", "key"), meta_fields=()
)
@dataclass(frozen=True)
class UnlearnState:
    """Everything that a step changes, and the key for its randomness.

    Attributes:
        step: int32 scalar, the number of updates so far.
        params: The network's parameters.
        model_state: Its batch statistics, `{}` if there are none.
        opt_state: The optimiser's state.
        key: One typed key for the whole run; step n uses `fold_in(key, n)`.
    """

    step: Int32[Array, ""]
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: Key[Array, ""]

    @classmethod
    def create(
        cls, params: PyTree, model_state: PyTree, tx: optax.GradientTransformation, key: Key[Array, ""]
    ) -> "UnlearnState":
        """The state before the first step.

        Arrays are copied, because the jitted step donates its state, and donation deletes the original.

        Raises:
            ValueError: if `key` is not a typed key (`jax.random.key(0)`).
        """
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise ValueError(f"key must be a typed key such as jax.random.key(0), but its dtype is {key.dtype}.")
        params, model_state, opt_state = jax.tree.map(_owned, (params, model_state, tx.init(params)))
        return cls(jnp.zeros((), jnp.int32), params, model_state, opt_state, jnp.array(key, copy=True))

    def with_frozen_of(self, variables: Variables, model: Model) -> "UnlearnState":
        """This state, with frozen arrays taken from `variables`; copied, as in `create`."""
        if not model.freezes:
            return self
        kept = model.keep_frozen_variables(Variables(self.params, self.model_state), variables)
        return replace(self, **jax.tree.map(_owned, kept)._asdict())


def _owned(leaf: ArrayLike) -> Array:
    """A private copy, of the type that a step returns: a weak type would cause a second compilation."""
    return jnp.array(leaf, dtype=jnp.asarray(leaf).dtype, copy=True)


class LossWeights(NamedTuple):
    """The traced part of a `StepConfig`: changing these values does not trigger a new compilation."""

    unlearn_weight: float | Float[Array, ""]
    retain_weight: float | Float[Array, ""]
    temperature: float | Float[Array, ""]


Step = Callable[[UnlearnState, Batch], tuple[UnlearnState, Metrics]]


def make_unlearn_step(model: Model, tx: optax.GradientTransformation, config: StepConfig) -> Step:
    """Returns the pure update of Algorithm 1, without jit or donation.

    The objective is Equation 7 of Lee et al. (arXiv:2401.10458),
    `config.unlearn_weight · contrastive_unlearning_loss + config.retain_weight · cross-entropy of the retain batch`.

    Returns:
        `step(state, batch) -> (state, metrics)`. Metrics are float32 scalars: `loss`, `contrastive_loss`,
        `retain_loss`, `forget_accuracy`, `retain_accuracy` (of the batch, before the update), `gradient_norm`, and
        `finite`, bool: if the loss or a gradient is not finite, the state is returned unchanged. In compiled code, rows
        whose label is not a class of the network (-1, or C and above) do not count; otherwise they raise a ValueError.

        The step is a `jax.tree_util.Partial`: if it is passed to a compiled function as an argument, its weights and
        temperature are traced, and the rest is compared by value.
    """
    return _make_step(model, tx, config, axis_name=None)


def _make_step(model: Model, tx: optax.GradientTransformation, config: StepConfig, axis_name: str | None) -> Step:
    weights = LossWeights(config.unlearn_weight, config.retain_weight, config.temperature)
    return jax.tree_util.Partial(_UnlearnStep(model, tx, config.denominator, config.batch_norm, axis_name), weights)


def unlearn_loss(
    params: PyTree, model_state: PyTree, batch: Batch, key: Key[Array, ""], *, model: Model, config: StepConfig
) -> tuple[Float32[Array, ""], tuple[PyTree, Metrics]]:
    """The objective of `make_unlearn_step`, for a loop of your own: differentiate it by `params`. It is pure, without jit.

    Args:
        params: The network's parameters.
        model_state: Its batch statistics.
        batch: Forget and retain samples, `[B_f, ...]` and `[B_r, ...]`.
        key: Key for dropout; that of a step is `jax.random.fold_in(state.key, state.step)`.
        model: The network.
        config: The method's settings.

    Returns:
        The loss, a float32 scalar, and a pair: the new model state, and the first five metrics of `make_unlearn_step`.

    >>> from cujax import ContrastiveUnlearning, from_function
    >>> model = from_function(lambda key, x: (jnp.eye(3), {}), lambda p, state, x, train, key: ((x, x @ p), state))
    >>> batch = Batch(Examples(jnp.ones((2, 3)), jnp.array([0, 1])), Examples(jnp.eye(3), jnp.array([0, 1, 2])))
    >>> loss = functools.partial(unlearn_loss, model=model, config=ContrastiveUnlearning())
    >>> jax.grad(loss, has_aux=True)(jnp.eye(3), {}, batch, jax.random.key(0))[0].shape
    (3, 3)
    """
    step = _UnlearnStep(model, optax.identity(), config.denominator, config.batch_norm)
    weights = LossWeights(config.unlearn_weight, config.retain_weight, config.temperature)
    loss, (new_state, metrics, _) = step.objective(params, weights, model_state, batch, key, None)
    return loss, (new_state, metrics)


def unlearn_step(
    state: UnlearnState,
    batch: Batch,
    *,
    model: Model,
    tx: optax.GradientTransformation,
    config: StepConfig,
) -> tuple[UnlearnState, Metrics]:
    """Computes `make_unlearn_step(model, tx, config)(state, batch)`, compiled, with the state donated.

    All values of the loss weights and the temperature share one compilation. Donated arrays are deleted by the call: do not
    keep a reference to `state`; use the returned state.

    Args:
        state: The result of `UnlearnState.create` or of the previous step.
        batch: Forget and retain samples, with the same shapes in every call.
        model: The network.
        tx: The optimiser, such as `config.optimizer()`. Build it once: to jit, two calls of `optax.sgd` differ.
        config: The method's settings.

    Returns:
        The new state and the metrics of `make_unlearn_step`.

    Raises:
        ValueError: if a label of a row that counts is not a class of the network (-1, or C and above). Only labels in the
            host's memory are checked, so that the call does not wait for an accelerator; otherwise, such a row does not
            count.
    """
    step = make_unlearn_step(model, tx, config)
    with on_mesh(mesh_of(jax.tree.leaves(batch.forget.inputs)[0])):
        if not model.knows_num_classes:
            _jitted.trace(step, state, batch)  # the call below uses this trace
        for name, examples in (("forget", batch.forget), ("retain", batch.retain)):
            check_labels(name, examples.labels, examples.mask, model.num_classes, wait=False)
        result: tuple[UnlearnState, Metrics] = _jitted(step, state, batch)
        return result


@functools.partial(jax.jit, donate_argnums=1)
def _jitted(step: Step, state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Metrics]:
    result: tuple[UnlearnState, Metrics] = with_auto_axes(step)(state, batch)
    return result


def pmap_unlearn_step(
    model: Model,
    tx: optax.GradientTransformation,
    config: StepConfig,
    *,
    axis_name: str = "devices",
) -> Step:
    """Returns `make_unlearn_step(model, tx, config)` under `jax.pmap`, for code that already uses pmap.

    In all other cases, use `unlearn_step` with a sharded batch: it needs no device axis and no change to the network, and
    works on several hosts. Both compute what one device computes from the same rows, to float32 rounding (except with
    dropout): anchors are contrasted with the retain rows of all devices, losses are means over all rows that count, however
    unevenly these are distributed, and batch statistics are of all rows. Averaging the losses of the devices would give a
    different loss.

    Build it once and keep it: each call returns a function that is compiled separately.

    Args:
        model: The network.
        tx: The optimiser, such as `config.optimizer()`.
        config: The method's settings.
        axis_name: Name of the device axis.

    Returns:
        `step(state, batch) -> (state, metrics)`. The state is not stacked and not donated. Each array of the batch has a
        leading device axis: images `[devices, B / devices, H, W, C]`, labels and masks `[devices, B / devices]`.

    Rows whose label is not a class of the network do not count.

    Raises:
        ValueError: in the first call, if the network has statistics and cannot average them over devices: flax's BatchNorm
            can; another linen layer needs a field `axis_name`, and a function an argument of this name.
    """
    step: Step = jax.pmap(_make_step(model, tx, config, axis_name), axis_name, in_axes=(None, 0), out_axes=None)
    return step


@dataclass(frozen=True)
class _UnlearnStep:
    """The static part of the step; equal values share one compilation.

    With an `axis_name`, the batch is this device's share of the global batch. The objective is then the device's share of
    the global loss, so that objectives, gradients and metrics are sums over the devices.
    """

    model: Model
    tx: optax.GradientTransformation
    denominator: Denominator
    batch_norm: BatchNorm
    axis_name: str | None = None

    def __call__(self, weights: LossWeights, state: UnlearnState, batch: Batch) -> tuple[UnlearnState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if self.axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))
        gradients, (model_state, metrics, seen) = jax.grad(self.objective, has_aux=True)(
            state.params, weights, state.model_state, batch, key, queue_of(state.opt_state)
        )
        if self.axis_name is not None:
            gradients, metrics = jax.lax.psum((gradients, metrics), self.axis_name)
        return update(self.tx, state, gradients, model_state, metrics, model=self.model, seen=seen)

    def objective(
        self, params: PyTree, weights: LossWeights, model_state: PyTree, batch: Batch, key: Key[Array, ""], queue: Queue
    ) -> tuple[Float32[Array, ""], tuple[PyTree, Metrics, LabelledEmbeddings]]:
        """The loss, and the new model state, the metrics and the embeddings of the retain rows."""
        averaged_over = None if self.batch_norm == "frozen" else self.axis_name
        model = self.model if averaged_over is None else self.model.with_axis_name(averaged_over)
        forget, retain, new_state = apply_to_batch(model, params, model_state, batch, key, self.batch_norm)
        classes = retain.logits.shape[1]
        retain_counts = counted_labels("retain", batch.retain.labels, batch.retain.mask, classes)
        seen = self._of_all_devices(LabelledEmbeddings(retain.embedding, batch.retain.labels, retain_counts))
        others = seen.followed_by(queue)
        losses, counts = anchor_losses(
            forget.embedding,
            batch.forget.labels,
            others.embeddings,
            others.labels,
            temperature=weights.temperature,
            denominator=self.denominator,
            forget_mask=counted_labels("forget", batch.forget.labels, batch.forget.mask, classes),
            retain_mask=others.mask,
        )
        contrastive_loss = masked_mean(losses, counts, self.axis_name)
        retain_loss = cross_entropy(retain.logits, batch.retain.labels, batch.retain.mask, self.axis_name)
        loss = weights.unlearn_weight * contrastive_loss + weights.retain_weight * retain_loss
        metrics = {"loss": loss, "contrastive_loss": contrastive_loss, "retain_loss": retain_loss}
        for name, outputs, examples in (("forget", forget, batch.forget), ("retain", retain, batch.retain)):
            metrics[f"{name}_accuracy"] = accuracy(outputs.logits, examples, self.axis_name)
        return loss, (new_state, metrics, seen)

    def _of_all_devices(self, rows: PyTree) -> PyTree:
        return whole(rows) if self.axis_name is None else jax.lax.all_gather(rows, self.axis_name, tiled=True)


def apply_to_batch(
    model: Model, params: PyTree, model_state: PyTree, batch: Batch, key: Key[Array, ""], batch_norm: BatchNorm
) -> tuple[Outputs, Outputs, PyTree]:
    """Passes forget and retain rows through the network.

    Args:
        model: The network.
        params: Its parameters.
        model_state: Its batch statistics.
        batch: Both sets of rows.
        key: Key for dropout.
        batch_norm: "joint": one batch in train mode, normalised by the statistics of both sets. "retain_only": two passes
            in train mode, each normalised by its own statistics; only the retain pass updates the running statistics.
            "frozen": both in eval mode; the running statistics do not change.

    Returns:
        Outputs of the forget rows and of the retain rows, and the new model state.
    """
    if batch_norm == "retain_only":
        forget_key, retain_key = jax.random.split(key)
        forget, _ = model.apply(params, model_state, batch.forget.inputs, train=True, key=forget_key)
        retain, new_state = model.apply(params, model_state, batch.retain.inputs, train=True, key=retain_key)
        return forget, retain, new_state
    # Where devices hold equal shares of both sets, each joins its own rows, so that no sample moves.
    n_forget, n_retain = num_rows(batch.forget.inputs), num_rows(batch.retain.inputs)
    groups = math.gcd(n_forget, n_retain, traced_num_shards())

    def joined(forget: ArrayLike, retain: ArrayLike) -> Array:
        return _ungrouped(jnp.concatenate([_grouped(forget, groups), _grouped(retain, groups)], axis=1))

    inputs = jax.tree.map(joined, batch.forget.inputs, batch.retain.inputs)
    outputs, new_state = model.apply(params, model_state, inputs, train=batch_norm == "joint", key=key)
    grouped = jax.tree.map(lambda rows: _grouped(rows, groups), outputs)
    own = n_forget // groups
    forget = jax.tree.map(lambda rows: _ungrouped(rows[:, :own]), grouped)
    retain = jax.tree.map(lambda rows: _ungrouped(rows[:, own:]), grouped)
    return forget, retain, new_state


def _grouped(rows: ArrayLike, groups: int) -> Array:
    rows = jnp.asarray(rows)
    return rows.reshape(groups, -1, *rows.shape[1:])


def _ungrouped(rows: Array) -> Array:
    return rows.reshape(-1, *rows.shape[2:])


def update(
    tx: optax.GradientTransformation,
    state: UnlearnState,
    gradients: PyTree,
    model_state: PyTree,
    metrics: Metrics,
    *,
    model: Model,
    **extra: Any,
) -> tuple[UnlearnState, Metrics]:
    """Takes one optimiser step, unless `metrics["loss"]` or a gradient is not finite: then the state is unchanged.

    Frozen parameters do not change, whatever the optimiser does: weight decay and momentum do not move them. Additional
    arguments, and the loss as `value`, are passed to those parts of the optimiser that take them.

    Returns:
        The state, and the metrics with `gradient_norm` and `finite` added.

    Raises:
        ValueError: if the optimiser is a line search, which evaluates the loss again at other parameters (`value_fn`).
    """
    leaves = [metrics["loss"], *jax.tree.leaves(gradients)]
    finite = functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
    try:
        updates, opt_state = optax.with_extra_args_support(tx).update(
            gradients, state.opt_state, state.params, value=metrics["loss"], **extra
        )
    except TypeError as error:
        if "value_fn" not in str(error):
            raise
        raise ValueError(
            "the optimiser is a line search: it evaluates the loss again at other parameters (value_fn), which is not "
            "possible in a step on one batch. Use one that takes only the gradient, such as optax.sgd or optax.adam."
        ) from error
    params = model.keep_frozen(optax.apply_updates(state.params, updates), state.params)
    stepped = UnlearnState(state.step + 1, params, model_state, opt_state, state.key)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state)
    return state, {**metrics, "gradient_norm": optax.tree.norm(gradients), "finite": finite}


def accuracy(logits: Float[ArrayLike, "B C"], examples: Examples, axis_name: str | None = None) -> Float32[Array, ""]:
    """The share of counted rows whose largest logit is their label's; `axis_name` as in `losses.masked_mean`."""
    correct = jnp.argmax(logits, axis=1) == examples.labels
    return masked_mean(correct, counted_labels("batch", examples.labels, examples.mask, jnp.shape(logits)[1]), axis_name)
