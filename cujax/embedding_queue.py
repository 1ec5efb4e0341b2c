"""Past retain embeddings, stored in the optimiser's state, so that anchors find positives when there are many classes.

The queue of momentum contrast (He et al., arXiv:1911.05722), without its second encoder: embeddings are those that the
network computed when their batch was drawn, and age by at most `size / batch` steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class LabelledEmbeddings(NamedTuple):
    """Embeddings `[n, d]`, their labels `[n]` int32, and `[n]` bool, which of them count."""

    embeddings: jax.Array
    labels: jax.Array
    mask: jax.Array

    def followed_by(self, others: "LabelledEmbeddings | None") -> "LabelledEmbeddings":
        """These embeddings followed by the others, through which no gradient flows."""
        if others is None:
            return self
        return LabelledEmbeddings(*(jnp.concatenate(pair) for pair in zip(self, jax.lax.stop_gradient(others), strict=True)))


class QueueState(NamedTuple):
    """The state of `keep_embeddings`: the newest embeddings first; rows not yet filled do not count."""

    queue: LabelledEmbeddings


def keep_embeddings(size: int, width: int) -> optax.GradientTransformationExtraArgs:
    """Keeps the last `size` embeddings of a given width that are passed to `update(..., seen=LabelledEmbeddings(...))`.

    Updates pass unchanged. Use it first in a chain; `queue_of` finds the queue again.
    """

    def init(params: optax.Params) -> QueueState:
        del params
        return QueueState(LabelledEmbeddings(jnp.zeros((size, width)), jnp.zeros(size, jnp.int32), jnp.zeros(size, bool)))

    def update(
        updates: optax.Updates,
        state: QueueState,
        params: optax.Params | None = None,
        *,
        seen: LabelledEmbeddings,
        **others: Any,
    ) -> tuple[optax.Updates, QueueState]:
        del params, others
        seen = LabelledEmbeddings(seen.embeddings.astype(jnp.float32), seen.labels, seen.mask)
        return updates, QueueState(jax.tree.map(lambda rows: rows[:size], seen.followed_by(state.queue)))

    return optax.GradientTransformationExtraArgs(init, update)


def queue_of(opt_state: optax.OptState) -> LabelledEmbeddings | None:
    """The queue in an optimiser's state; None if there is none."""
    return optax.tree.get(opt_state, "queue")
