"""The queue of past retain embeddings: what anchors see, where gradients flow, and that it changes nothing when off."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cujax.adapters import from_function, from_linen
from cujax.batch import Batch, Examples
from cujax.data.batches import to_device
from cujax.data.images import Data
from cujax.data.requests import ForgetRandom, make_split
from cujax.data.sources import load_source
from cujax.embedding_queue import LabelledEmbeddings, keep_embeddings, queue_of
from cujax.losses import anchor_losses, contrastive_unlearning_loss, cross_entropy
from cujax.methods import ContrastiveUnlearning
from cujax.methods.base import Loop
from cujax.networks.cnn import CNN
from cujax.step import UnlearnState, make_unlearn_step

WIDTH, CLASSES = 3, 4


def apply(params, model_state, images, *, train, key):
    embedding = jnp.tanh(images.reshape(images.shape[0], -1) @ params["w"])
    return (embedding, embedding @ params["head"]), model_state


def init(key, images):
    keys = jax.random.split(key)
    return {"w": jax.random.normal(keys[0], (4, WIDTH)), "head": jax.random.normal(keys[1], (WIDTH, CLASSES))}, {}


MODEL = from_function(init, apply, num_classes=CLASSES)
CONFIG = ContrastiveUnlearning(learning_rate=0.1, queue_size=5)


def batch(seed, labels=(0, 1, 2), forget_labels=(0, 3), mask=None):
    keys = jax.random.split(jax.random.key(seed))
    forget = Examples(jax.random.normal(keys[0], (2, 2, 2, 1)), jnp.array(forget_labels))
    return Batch(forget, Examples(jax.random.normal(keys[1], (3, 2, 2, 1)), jnp.array(labels), mask))


def start(config=CONFIG):
    tx = config.optimizer(WIDTH)
    state = UnlearnState.create(*init(jax.random.key(0), None), tx, jax.random.key(1))
    return jax.jit(make_unlearn_step(MODEL, tx, config)), state


def embed(params, examples):
    return apply(params, {}, examples.inputs, train=True, key=None)[0][0]


def rows(embeddings, labels, mask=None):
    embeddings, labels = jnp.asarray(embeddings, jnp.float32), jnp.asarray(labels, jnp.int32)
    return LabelledEmbeddings(embeddings, labels, jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask))


def test_the_newest_embeddings_come_first_and_the_oldest_leave():
    tx = keep_embeddings(5, 1)
    state = tx.init({})
    assert not state.queue.mask.any()
    for first in (1, 4, 7):
        updates, state = tx.update({"w": 1.0}, state, seen=rows([[first], [first + 1], [first + 2]], [first] * 3))
        assert updates == {"w": 1.0}
    assert state.queue.embeddings[:, 0].tolist() == [7, 8, 9, 4, 5]
    assert state.queue.labels.tolist() == [7, 7, 7, 4, 4]
    assert state.queue.mask.all()


def test_more_rows_than_the_queue_holds_leave_the_first():
    tx = keep_embeddings(2, 1)
    _, state = tx.update({}, tx.init({}), seen=rows([[1], [2], [3]], [1, 2, 3], [True, False, True]))
    assert state.queue.labels.tolist() == [1, 2]
    assert state.queue.mask.tolist() == [True, False]


def test_anchors_see_the_batch_and_the_queue():
    step, state = start()
    batches = [batch(0, labels=(0, 1, 2)), batch(1, labels=(3, 3, 1), mask=jnp.array([True, True, False])), batch(2)]
    seen = []
    for each in batches:
        retain = embed(state.params, each.retain)
        mask = np.ones(3, bool) if each.retain.mask is None else np.asarray(each.retain.mask)
        others = [(retain, each.retain.labels, mask), *seen]
        embeddings, labels, masks = (np.concatenate(column)[: 3 + 5] for column in zip(*others, strict=True))
        expected = contrastive_unlearning_loss(
            embed(state.params, each.forget), each.forget.labels, embeddings, labels, retain_mask=masks
        )
        state, metrics = step(state, each)
        np.testing.assert_allclose(metrics["contrastive_loss"], expected, rtol=1e-5)
        seen.insert(0, (retain, each.retain.labels, mask))
    queue = queue_of(state.opt_state)
    np.testing.assert_allclose(queue.embeddings[:3], seen[0][0], rtol=1e-6)
    assert queue.labels.tolist() == [0, 1, 2, 3, 3]


def test_no_gradient_flows_into_the_queue():
    step, state = start()
    first, second = batch(0, labels=(0, 3, 2)), batch(1, labels=(1, 2, 2))
    state, _ = step(state, first)
    queue = jax.tree.map(np.asarray, queue_of(state.opt_state))

    def objective(params):
        retain = embed(params, second.retain)
        losses, counts = anchor_losses(
            embed(params, second.forget),
            second.forget.labels,
            jnp.concatenate([retain, queue.embeddings]),
            jnp.concatenate([second.retain.labels, queue.labels]),
            temperature=CONFIG.temperature,
            denominator="paper",
            forget_mask=None,
            retain_mask=jnp.concatenate([jnp.ones(3, bool), queue.mask]),
        )
        logits = retain @ params["head"]
        contrastive = losses.sum() / counts.sum()
        return CONFIG.unlearn_weight * contrastive + cross_entropy(logits, second.retain.labels)

    gradients = jax.grad(objective)(state.params)
    momentum = optax.tree.get(state.opt_state, "trace")
    new, metrics = step(state, second)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradients), rtol=1e-5)
    expected = jax.tree.map(lambda p, m, g: p - 0.1 * (0.9 * m + g), state.params, momentum, gradients)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-5, atol=1e-6)


def test_an_anchor_finds_its_positive_in_the_queue():
    """Class 3 is in no retain batch but the first: without the queue its anchor is only pulled."""
    first, second = batch(0, labels=(3, 3, 1)), batch(1, labels=(0, 1, 2), forget_labels=(3, 3))
    losses = []
    for size in (0, 5):
        step, state = start(dataclasses.replace(CONFIG, queue_size=size, learning_rate=1e-9))
        state, _ = step(state, first)
        losses.append(float(step(state, second)[1]["contrastive_loss"]))
    assert abs(losses[0] - losses[1]) > 0.01


def test_a_step_that_is_not_finite_leaves_the_queue_as_it_was():
    step, state = start()
    state, _ = step(state, batch(0))
    broken = batch(1)
    broken = dataclasses.replace(
        broken, retain=dataclasses.replace(broken.retain, inputs=broken.retain.inputs.at[0].set(jnp.nan))
    )
    after, metrics = step(state, broken)
    assert not metrics["finite"]
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)


def test_without_a_queue_nothing_is_kept_and_with_one_the_width_is_asked_for():
    assert queue_of(start(dataclasses.replace(CONFIG, queue_size=0))[1].opt_state) is None
    assert ContrastiveUnlearning().optimizer() is ContrastiveUnlearning().optimizer(128)
    assert CONFIG.optimizer(7) is CONFIG.optimizer(7)
    with pytest.raises(ValueError, match=r"queue_size is 5.*optimizer\(embedding_width"):
        CONFIG.optimizer()
    with pytest.raises(ValueError, match="queue_size must be at least 0, but is -1"):
        ContrastiveUnlearning(queue_size=-1)


def test_a_run_with_a_queue_goes_its_own_way():
    source = load_source(Data())
    split, images = make_split(source, ForgetRandom(count=30)), to_device(source, source.train)
    model = from_linen(CNN(10, features=(4, 8), hidden_dim=16, embedding_dim=8))
    original = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    results = [
        ContrastiveUnlearning(max_passes=2, retain_batch_size=8, queue_size=size)(
            model, original, split, key=jax.random.key(1), loop=Loop(images, retain_tolerance=1.0, stop_early=False)
        )
        for size in (0, 32)
    ]
    assert results[0].history.cost.steps == results[1].history.cost.steps == 8
    chex.assert_tree_all_finite(results[1].params)
    assert not np.array_equal(results[0].params["head"]["kernel"], results[1].params["head"]["kernel"])
