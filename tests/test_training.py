"""Supervised training: the arithmetic, reproducibility, accounts and failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.audit.accuracy import accuracy
from cujax.data.batches import DeviceImages, batches_of_all, to_device
from cujax.data.sources import Data, load_source
from cujax.inference import predict
from cujax.model import from_function, from_linen
from cujax.networks.cnn import CNN
from cujax.training import Trainer, Training

TRACES = []


def apply(params, model_state, images, *, train, key):
    TRACES.append(train)
    embedding = images.reshape(images.shape[0], -1)
    return (embedding, embedding @ params), model_state


LINEAR = from_function(lambda key, images: (jax.random.normal(key, (4, 3)), {}), apply)


def make_images(n=22):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(n, 2, 2, 1)), jnp.float32)
    return DeviceImages(images, jnp.asarray(rng.integers(0, 3, n), jnp.int32), jnp.zeros(1), jnp.ones(1))


def test_an_epoch_is_stochastic_gradient_descent_on_every_image():
    images, recipe = make_images(), Training(epochs=2, batch_size=8, optimizer="sgd", learning_rate=0.3, weight_decay=0.01)
    key, indices = jax.random.key(5), np.arange(1, 22)
    trained = Trainer(recipe, images).train(LINEAR, indices, key)
    init_key, _, order_key = jax.random.split(key, 3)
    weights = np.asarray(jax.random.normal(init_key, (4, 3)), np.float64)
    velocity, step, seen = np.zeros_like(weights), 0, []
    x, y = np.asarray(images.images, np.float64).reshape(22, 4), np.asarray(images.labels)
    for epoch in range(2):
        for rows in batches_of_all(indices, 8, jax.random.fold_in(order_key, epoch)):
            chosen = rows.indices[rows.mask]
            seen += chosen.tolist()
            logits = x[chosen] @ weights
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            gradient = x[chosen].T @ (p - np.eye(3)[y[chosen]]) / len(chosen) + 0.01 * weights
            velocity = 0.9 * velocity + gradient
            weights -= 0.3 * 0.5 * (1 + np.cos(np.pi * step / 6)) * velocity
            step += 1
    assert sorted(seen) == sorted([*indices, *indices])
    np.testing.assert_allclose(trained.variables.params, weights, rtol=1e-5, atol=1e-6)


def test_one_compilation_serves_all_epochs_short_batches_and_models():
    images, recipe = make_images(), Training(epochs=3, batch_size=5, learning_rate=0.011)
    trainer = Trainer(recipe, images)
    TRACES.clear()
    trainer.train(LINEAR, np.arange(22), jax.random.key(0))
    once = TRACES.count(True)
    trainer.train(LINEAR, np.arange(22), jax.random.key(1))
    assert TRACES.count(True) == once


def test_the_account_is_exact_and_every_step_logged():
    records = []
    trainer = Trainer(Training(epochs=3, batch_size=8), make_images(), log=records.append)
    cost = trainer.train(LINEAR, np.arange(20), jax.random.key(0)).cost
    assert (cost.steps, cost.samples) == (9, 72)
    assert cost.seconds > 0
    assert cost.flops > 9 * 2 * 8 * 4 * 3
    assert [record["step"] for record in records] == list(range(1, 10))
    assert {"loss", "accuracy", "finite"} <= set(records[0])


def test_the_key_decides_everything():
    trainer = Trainer(Training(epochs=2, batch_size=8), make_images())
    first, again, other = (trainer.train(LINEAR, np.arange(22), jax.random.key(seed)).variables.params for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=0.01)


def test_digits_are_learned():
    source = load_source(Data())
    model = from_linen(CNN(10, features=(8, 16), hidden_dim=32, embedding_dim=16))
    train, test = to_device(source, source.train), to_device(source, source.test)
    trained = Trainer(Training(epochs=12, learning_rate=5e-3), train).train(model, np.arange(1442), jax.random.key(0))
    assert accuracy(predict(model, trained.variables, test, np.arange(355))) > 0.9


def test_a_batch_larger_than_the_set_is_told():
    with pytest.raises(ValueError, match=r"training.batch_size is 64, but there are only 22 images.*at most 22"):
        Trainer(Training(), make_images()).train(LINEAR, np.arange(22), jax.random.key(0))


def test_divergence_is_told_with_the_learning_rate():
    images = make_images()
    recipe = Training(epochs=20, batch_size=8, optimizer="sgd", learning_rate=1e38)
    with pytest.raises(FloatingPointError, match=r"diverged: .*not finite at step \d+.*learning_rate, now 1e\+38"):
        Trainer(recipe, images).train(LINEAR, np.arange(22), jax.random.key(0))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}])
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=f"training.{next(iter(wrong))}"):
        Training(**wrong)
