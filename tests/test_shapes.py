"""Shapes and dtypes in annotations: in tests, wrong ones are caught in every call, and all that callers pass is accepted."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from cujax.batch import Examples
from cujax.losses import contrastive_unlearning_loss, cross_entropy, masked_mean
from cujax.step import accuracy

LOGITS, LABELS = np.eye(3, dtype=np.float32), np.array([0, 1, 1])


def test_a_shape_that_would_broadcast_is_caught():
    with pytest.raises(jaxtyping.TypeCheckError, match="'counts'"):
        masked_mean(jnp.ones(3), jnp.ones(1, bool))


@pytest.mark.parametrize("labels", [LABELS[:2], LABELS[:, None], LABELS.astype(np.float32)], ids=["size", "rank", "dtype"])
def test_labels_that_do_not_fit_are_caught_in_losses_and_step(labels):
    with pytest.raises(jaxtyping.TypeCheckError, match="'labels'"):
        jax.jit(cross_entropy)(LOGITS, labels)
    with pytest.raises(jaxtyping.TypeCheckError, match="'retain_labels'"):
        contrastive_unlearning_loss(LOGITS, LABELS, LOGITS, labels)
    with pytest.raises(jaxtyping.TypeCheckError, match="'logits'"):
        accuracy(jnp.asarray(LOGITS)[None], Examples(LOGITS, labels))


def test_a_test_of_our_own_errors_sees_these(shapes_unchecked):
    with pytest.raises(ValueError, match="cross-entropy rows must be"):
        cross_entropy(LOGITS, LABELS[:2])


@pytest.mark.parametrize("transform", [lambda loss: loss, jax.jit, jax.vmap, jax.pmap])
def test_numpy_arrays_and_tracers_are_accepted(transform):
    stacked = transform in (jax.vmap, jax.pmap)
    arguments = [np.stack([rows] * 2) if stacked else rows for rows in (LOGITS, LABELS, LOGITS, LABELS)]
    found = transform(contrastive_unlearning_loss)(*arguments)
    assert np.shape(found) == ((2,) if stacked else ())
    np.testing.assert_allclose(
        found, contrastive_unlearning_loss(*map(jnp.asarray, (LOGITS, LABELS, LOGITS, LABELS))), rtol=1e-6
    )
