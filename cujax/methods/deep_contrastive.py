"""Contrastive unlearning below the last layer: a method of this package, after that of Lee et al. (arXiv:2401.10458)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cujax._ranges import Count, NotNegative, Positive
from cujax.batch import Batch
from cujax.data.batches import ImageSet, check_retain_batch_size, gather, input_shapes, noise_like, paired_batches
from cujax.data.requests import Split
from cujax.losses import cross_entropy, nearest_contrastive_loss
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.layers import in_layers, named_layers, redrawn
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, Outputs, PyTree, Variables, abstract_outputs
from cujax.sharding import whole
from cujax.step import apply_to_batch
from cujax.training.loop import Phase


@dataclass(frozen=True)
class DeepContrastiveUnlearning(Descent):
    """Moves the features of forget samples, one layer below the embedding, among their nearest neighbours of other classes.

    The paper's loss moves a class as one cluster, so that it remains as readable as before and is relearned in a few steps.
    Here, each forget sample moves towards the nearest retain samples and away from the rest of its class
    (`cujax.losses.nearest_contrastive_loss`), while the network trains on the retain batch. The loss acts on the last tap,
    or on the embedding if a network has no taps. For a class request, the layers between these features and the head are
    reinitialised, and the class's column of the head is set to zero.

    The method runs all its passes over the forget set, and the weight of the contrastive loss decreases from pass to pass: a
    class leaves the answers in the first pass, and the features later. The measurements are in
    docs/results/beyond.md.

    Attributes:
        unlearn_weight: Weight of the contrastive loss, relative to the retain batch's cross-entropy, in the first pass; it
            falls linearly, to a `max_passes`-th in the last.
        temperature: Temperature of the contrastive loss.
        push_weight: Weight of the push away from a sample's own class.
        retain_draws: Number of retain batches, and so of steps, for each forget batch.
        retain_batch_size: Rows of a retain batch; `batch_size` applies to the forget batch.
    """

    learning_rate: Positive = 0.03
    batch_size: Count = 128
    max_passes: Count = 4
    unlearn_weight: NotNegative = 0.3
    temperature: Positive = 0.1
    push_weight: NotNegative = 0.5
    retain_draws: Count = 4
    retain_batch_size: Count = 256

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.1), adamw=LogUniform(1e-4, 1e-2)),
        "unlearn_weight": LogUniform(0.03, 3.0),
        "push_weight": LogUniform(0.2, 1.0),
        "max_passes": LogUniform(3, 20),
    }
    reproduction: ClassVar[Reproduction] = {"class": {}}

    def check(self, split: Split) -> None:
        """Raises ValueError if the retain batch is larger than the retain set."""
        check_retain_batch_size(self.retain_batch_size, len(split.retain))

    def check_network(self, model: Model, params: PyTree, split: Split) -> None:
        """Raises ValueError if a class is to be forgotten by a network that does not name its layers."""
        if split.is_class_task:
            named_layers(model, params, "DeepContrastiveUnlearning")

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Raises:
            ValueError: if the retain batch is larger than the retain set, or a class is to be forgotten by a network that
                does not name its layers.
        """
        if not abstract_outputs(model, original, input_shapes(loop.images)).taps:
            warnings.warn(
                "the network returns no features below its embedding (Outputs.taps), so DeepContrastiveUnlearning acts on "
                "the embedding alone.",
                stacklevel=2,
            )
        state_key, batch_key, fresh_key = jax.random.split(key, 3)
        start = original
        if split.is_class_task:
            above = layers_above(model, original, loop.images)
            params, model_state = redrawn(model, original, above, loop.images, fresh_key)
            start = Variables(without_columns(params, model, split.forgotten_classes), model_state)

        def passes(number: int) -> list[Phase]:
            weight = self.unlearn_weight * (1 - number / self.max_passes)
            step = self.step(model, _objective, _Weights(weight, self.temperature, self.push_weight))
            batches = paired_batches(
                split.forget.indices,
                split.retain.indices,
                forget_batch_size=self.batch_size,
                retain_batch_size=self.retain_batch_size,
                retain_draws=self.retain_draws,
                forget_pass=number,
                key=batch_key,
            )
            return [Phase(step, gather, batches)]

        return self.run(model, start, split, passes, key=state_key, loop=loop, all_passes=True, original=original)


class _Weights(NamedTuple):
    unlearn_weight: float | jax.Array
    temperature: float | jax.Array
    push_weight: float | jax.Array


def _objective(
    model: Model, variables: Variables, batch: Batch, weights: _Weights, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    forget, retain, model_state = apply_to_batch(model, *variables, batch, key, "joint")
    contrastive_loss = nearest_contrastive_loss(
        features(forget),
        batch.forget.labels,
        whole(features(retain)),
        batch.retain.labels,
        temperature=weights.temperature,
        push_weight=weights.push_weight,
        forget_mask=batch.forget.mask,
        retain_mask=batch.retain.mask,
    )
    retain_loss = cross_entropy(retain.logits, batch.retain.labels, batch.retain.mask)
    return weights.unlearn_weight * contrastive_loss + retain_loss, model_state


def features(outputs: Outputs) -> jax.Array:
    """The features on which the method acts, `[B, d]`: the last tap, or the embedding if there are no taps."""
    if not outputs.taps:
        return outputs.embedding
    last = next(reversed(outputs.taps.values()))
    return last.reshape(len(last), -1)


def layers_above(model: Model, variables: Variables, images: ImageSet) -> list[str]:
    """The names of the layers between these features and the head, which receive no gradient from the features.

    Args:
        model: The network.
        variables: Its arrays.
        images: Images like the network's inputs.

    Raises:
        ValueError: if the network does not name its layers.
    """
    *layers, _ = named_layers(model, variables.params, "DeepContrastiveUnlearning")
    image_key, weight_key = jax.random.split(jax.random.key(0))
    noise = noise_like(image_key, input_shapes(images, 2))

    def combined(params: PyTree) -> jax.Array:
        outputs, _ = model.apply(params, variables.model_state, noise, train=False)
        acted_on = features(outputs)
        return jnp.sum(acted_on * jax.random.normal(weight_key, acted_on.shape))

    gradients = jax.jit(jax.grad(combined))(variables.params)

    def is_reached(layer: str) -> bool:
        inside = jax.tree.leaves(in_layers(gradients, [layer]))
        return any(own and jnp.any(gradient) for own, gradient in zip(inside, jax.tree.leaves(gradients), strict=True))

    return [layer for layer in layers if not is_reached(layer)]


def without_columns(params: PyTree, model: Model, classes: Sequence[int]) -> PyTree:
    """The parameters, with the head's columns of the given classes set to zero.

    Args:
        params: Parameters of the network.
        model: A model whose last layer is the head: each of its arrays ends in an axis of classes.
        classes: Their labels.

    Raises:
        ValueError: if the network does not name its layers.
    """
    head = in_layers(params, named_layers(model, params, "DeepContrastiveUnlearning")[-1:])
    return jax.tree.map(lambda chosen, leaf: leaf.at[..., jnp.array(classes)].set(0) if chosen else leaf, head, params)
