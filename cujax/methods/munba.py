"""MUNBa: forgetting and retaining bargain over each step (Wu and Harandi, ICCV 2025, arXiv:2411.15537)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from cujax._ranges import Positive
from cujax.batch import Batch, IndexBatch
from cujax.data.batches import gather, preprocess
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import shuffled
from cujax.methods.fine_tune import retain_objective
from cujax.methods.random_labels import LabelDraw, RandomLabels, random_labels
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, Choice, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.step import apply_to_batch
from cujax.training.loop import Phase

# Below this value of 1 + cosine the two gradients are opposite, and no direction serves both.
_LEAST_AGREEMENT = 1e-6


@dataclass(frozen=True)
class Munba(RandomLabels):
    """Descends on the retain set and on random labels of the forget set, both with equal influence on the direction.

    With the gradients g_r of the retain batch's cross-entropy and g_f of that of the forget batch with random labels, the
    Nash bargaining solution is the direction `g_r / ‖g_r‖ + g_f / ‖g_f‖`. The step has it with length 1, as in the authors'
    code, which clips the gradient to that.

    A pass is a pass over the retain set: the first batches are paired with those of the forget set, the others are used
    alone. Labels are drawn as by `RandomLabels`.
    """

    learning_rate: Positive = 0.01

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.3), adamw=LogUniform(1e-4, 5e-3)),
        "batch_size": Choice((64, 128)),
        "max_passes": LogUniform(1, 10),
    }
    reproduction: ClassVar[Reproduction] = {
        "class": {"optimizer": "adamw", "learning_rate": 1e-3, "batch_size": 64, "max_passes": 3}
    }

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Raises:
            ValueError: if a sample has no other class to be labelled with.
        """
        state_key, forget_key, retain_key = jax.random.split(key, 3)
        together = self.step(model, _objective, self.draw(model, split, loop))
        alone = self.step(model, retain_objective)

        def passes(number: int) -> list[Phase]:
            forget = list(shuffled(split.forget, self.batch_size, forget_key, number))
            retain = list(shuffled(split.retain, self.batch_size, retain_key, number))
            pairs = [IndexBatch(*pair) for pair in zip(forget, retain, strict=False)]
            others = retain[len(pairs) :]
            return [Phase(together, gather, pairs)] + [Phase(alone, preprocess, others)] * bool(others)

        return self.run(model, original, split, passes, key=state_key, loop=loop)


def bargain(retain: PyTree, forget: PyTree) -> tuple[jax.Array, jax.Array]:
    """The weights of two gradients whose weighted sum has the direction `g_r / ‖g_r‖ + g_f / ‖g_f‖` and length 1.

    Up to that length they solve `GᵀG α = 1 / α` (Wu and Harandi, Eq. 7), where the columns of G are the gradients.

    Args:
        retain: The gradient of the retain loss, g_r.
        forget: The gradient of the forget loss, g_f, of the same structure.

    Returns:
        The weights of both, float32 scalars. If the gradients are opposite or one of them is zero, there is no bargain, and
        they are 1 and 0.1, as in the authors' code.

    >>> of_retain, of_forget = bargain(jnp.array([2.0, 0.0]), jnp.array([0.0, 8.0]))
    >>> (of_retain / of_forget).item()
    4.0
    """
    norms = optax.tree.norm(retain), optax.tree.norm(forget)
    product = norms[0] * norms[1]
    agreement = 1 + optax.tree.vdot(retain, forget) / jnp.where(product > 0, product, 1.0)
    agree = (product > 0) & (agreement > _LEAST_AGREEMENT)
    length = jnp.sqrt(2 * jnp.where(agree, agreement, 1.0))
    of_retain, of_forget = (1 / (jnp.where(agree, norm, 1.0) * length) for norm in norms)
    return jnp.where(agree, of_retain, 1.0), jnp.where(agree, of_forget, 0.1)


def _objective(
    model: Model, variables: Variables, batch: Batch, draw: LabelDraw, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    label_key, network_key = jax.random.split(key)

    def losses(params: PyTree) -> tuple[tuple[jax.Array, jax.Array], PyTree]:
        # Each set is normalised by its own statistics, as in two forward passes; those of the retain set are kept.
        forget, retain, model_state = apply_to_batch(model, params, variables.model_state, batch, network_key, "retain_only")
        labels = random_labels(label_key, batch.forget.labels, *draw)
        return (
            cross_entropy(retain.logits, batch.retain.labels, batch.retain.mask),
            cross_entropy(forget.logits, labels, batch.forget.mask),
        ), model_state

    (retain_loss, forget_loss), pull_back, model_state = jax.vjp(losses, variables.params, has_aux=True)
    one, zero = jnp.ones_like(retain_loss), jnp.zeros_like(retain_loss)
    (of_retain,), (of_forget,) = pull_back((one, zero)), pull_back((zero, one))
    weights = jax.lax.stop_gradient(bargain(of_retain, of_forget))
    return weights[0] * retain_loss + weights[1] * forget_loss, model_state
