"""Labels that are no class: refused where they are concrete, of no effect where they are traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cujax import (
    Batch,
    ContrastiveUnlearning,
    Examples,
    UnlearnState,
    contrastive_unlearning_loss,
    from_function,
    make_unlearn_step,
    unlearn_step,
)
from cujax.losses import cross_entropy, nearest_contrastive_loss
from cujax.training.supervised import make_train_step

CONFIG = ContrastiveUnlearning()
LOGITS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(8, 2, 2, 1)).astype(np.float32)


def init(key, images):
    keys = jax.random.split(key)
    return {"hidden": jax.random.normal(keys[0], (4, 5)), "head": jax.random.normal(keys[1], (5, 3))}, {}


def apply(params, model_state, images, *, train, key):
    embedding = jnp.tanh(images.reshape(len(images), -1) @ params["hidden"])
    return (embedding, embedding @ params["head"]), model_state


@pytest.mark.parametrize("wrong", [-1, 3])
def test_cross_entropy_refuses_them_or_leaves_their_rows_out(wrong):
    labels = np.array([0, wrong, 2, 1])
    with pytest.raises(ValueError, match=rf"cross-entropy labels must be from 0 to 2, but 1 of 4 are not, such as {wrong}"):
        cross_entropy(LOGITS, labels)
    shifted = LOGITS.astype(np.float64)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(4), np.clip(labels, 0, 2)]
    rest = losses[[0, 2, 3]].mean()
    np.testing.assert_allclose(jax.jit(cross_entropy)(LOGITS, labels), rest, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(LOGITS, labels, labels != wrong), rest, rtol=1e-6)
    gradient = jax.jit(jax.grad(cross_entropy))(LOGITS, labels)
    assert (gradient[1] == 0).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [contrastive_unlearning_loss, nearest_contrastive_loss])
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_contrastive_losses_know_no_negative_class(loss, side):
    rng = np.random.default_rng(2)
    forget, retain = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    labels = {"forget": np.array([0, 1, 1]), "retain": np.array([0, 1, 2, 0, 2])}
    labels[side][1] = -1
    with pytest.raises(ValueError, match=rf"{side} labels must be at least 0, but 1 of \d are not, such as -1"):
        loss(forget, labels["forget"], retain, labels["retain"])
    masks = {f"{name}_mask": values >= 0 for name, values in labels.items()}
    expected = loss(forget, labels["forget"], retain, labels["retain"], **masks)
    np.testing.assert_array_equal(jax.jit(loss)(forget, labels["forget"], retain, labels["retain"]), expected)


def start():
    model, tx = from_function(init, apply), optax.sgd(0.1)
    return model, tx, UnlearnState.create(*model.init(jax.random.key(0), IMAGES), tx, jax.random.key(1))


def batch(forget=(0, 1, 2, 0), retain=(1, 2, 0, 1), masks=(None, None), array=jnp.asarray):
    labels = [array(np.array(values, np.int32)) for values in (forget, retain)]
    return Batch(Examples(IMAGES[:4], labels[0], masks[0]), Examples(IMAGES[4:], labels[1], masks[1]))


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_step_refuses_them(wrong, array):
    model, tx, state = start()
    batches = {"forget": batch(forget=(0, wrong, 2, 0), array=array), "retain": batch(retain=(1, 2, 0, wrong), array=array)}
    for which, examples in batches.items():
        with pytest.raises(ValueError, match=rf"{which} labels must be from 0 to 2, but 1 of 4 are not, such as {wrong}"):
            unlearn_step(state, examples, model=model, tx=tx, config=CONFIG)
    kept = np.array([True, False, True, True])
    masked = batch(forget=(0, wrong, 2, 0), masks=(kept, None), array=array)
    assert unlearn_step(state, masked, model=model, tx=tx, config=CONFIG)[1]["finite"]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_traced_step_leaves_their_rows_out(wrong):
    model, tx, state = start()
    step = jax.jit(make_unlearn_step(model, tx, CONFIG))
    found = step(state, batch((0, wrong, 2, 0), (1, 2, 0, wrong)))
    masks = np.array([True, False, True, True]), np.array([True, True, True, False])
    expected = step(state, batch((0, wrong, 2, 0), (1, 2, 0, wrong), masks))
    chex.assert_trees_all_equal(found, expected)
    assert not np.array_equal(found[0].params["head"], step(state, batch())[0].params["head"])


@pytest.mark.parametrize("wrong", [-1, 3])
def test_training_leaves_their_rows_out(wrong):
    model, tx, state = start()
    step = jax.jit(make_train_step(model, tx))
    labels = np.array([0, 1, wrong, 2, 0, 1, 2, 0])
    found = step(state, Examples(IMAGES, labels))
    expected = step(state, Examples(IMAGES, labels, labels != wrong))
    chex.assert_trees_all_equal(found, expected)
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        make_train_step(model, tx)(state, Examples(IMAGES, labels))


def test_valid_labels_give_the_bits_of_a_full_mask():
    model, tx, state = start()
    step, full = jax.jit(make_unlearn_step(model, tx, CONFIG)), np.ones(4, bool)
    chex.assert_trees_all_equal(step(state, batch()), step(state, batch(masks=(full, full))))
