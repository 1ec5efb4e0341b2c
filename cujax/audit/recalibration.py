"""Recomputes batch statistics on retained data, which restores what only a change of the statistics had hidden."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cujax.audit.evidence import Evidence
from cujax.audit.intervals import Estimate, NotAvailable, share
from cujax.audit.metric import Metric, MetricContext, not_looked_at_closely
from cujax.batch import Rows
from cujax.data.batches import DeviceImages, ImageSet, batches_of_all, placed, preprocess
from cujax.model import Model, PyTree, Variables
from cujax.sharding import on_mesh, replicate, shard

_BATCH_SIZE = 256
_MOST_BATCHES = 16


def recalibrate(model: Model, variables: Variables, images: ImageSet, rows: np.ndarray) -> Variables | None:
    """The same parameters with batch statistics of some images, without labels and without a gradient.

    The statistics are the mean over batches of 256, at most 16 of them, in an order that is the same for every model. A
    running average with momentum m gives m s + (1 - m) b for a batch's own statistic b. Started from 0 and from 1, it gives
    m and b, whatever the network's momentum.

    Args:
        model: The network.
        variables: Its arrays; not changed.
        images: The training images.
        rows: `[n]` rows of them, such as the retain set.

    Returns:
        None if the network keeps no running averages.
    """
    state, mesh = variables.model_state, images.mesh
    if not any(_is_float(leaf) for leaf in jax.tree.leaves(state)):
        return None
    size = min(_BATCH_SIZE, len(rows))
    order = np.random.default_rng(0).permutation(rows)[: min(len(rows) // size, _MOST_BATCHES) * size]
    params = replicate(variables.params, mesh)
    from_zero, from_one = (replicate(_filled(state, value), mesh) for value in (0.0, 1.0))
    total, momentum, count = None, None, 0
    for arrays, batch in placed(images, batches_of_all(order, size)):
        with on_mesh(mesh):
            seen = _seen(model, params, from_zero, arrays, shard(batch, mesh))
            total = seen if total is None else jax.tree.map(jnp.add, total, seen)
            if momentum is None:
                momentum = jax.tree.map(jnp.subtract, _seen(model, params, from_one, arrays, shard(batch, mesh)), seen)
        count += 1
    averages = False

    def renewed(before: jax.Array, summed: jax.Array, kept: jax.Array) -> jax.Array:
        nonlocal averages
        if not _is_float(before) or not (np.asarray(kept) < 1 - 1e-6).all():
            return before
        averages = True
        return jnp.asarray(summed / count / (1 - kept), before.dtype)

    found = jax.tree.map(renewed, state, total, momentum)
    return Variables(variables.params, found) if averages else None


def _is_float(leaf: jax.Array) -> bool:
    return bool(jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating))


def _filled(state: PyTree, value: float) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value) if _is_float(leaf) else leaf, state)


@functools.partial(jax.jit, static_argnames="model")
def _seen(model: Model, params: PyTree, state: PyTree, arrays: DeviceImages, rows: Rows) -> PyTree:
    """The model state after one batch in train mode."""
    key = jax.random.key(0)
    return model.apply(params, state, preprocess(arrays, rows, key).inputs, train=True, key=key)[1]


def _recalibrated(context: MetricContext, model: Evidence) -> Estimate:
    del context
    if model.recalibrated is None:
        raise not_looked_at_closely()
    if not len(model.recalibrated):
        raise NotAvailable("the network has no batch statistics")
    return share(model.recalibrated)


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family."""
    del depths
    return [
        Metric(
            "recalibrated_accuracy",
            "recalibration",
            "forget, statistics renewed",
            "How often is the model right on the forget set after its batch statistics are recomputed on retained data?",
            _recalibrated,
        )
    ]
