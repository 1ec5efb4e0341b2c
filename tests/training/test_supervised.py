"""Supervised training: the arithmetic, reproducibility, accounts and failures."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_function, from_linen
from cujax.data.batches import DeviceImages, StreamedImages, batches_of_all, to_device
from cujax.data.images import Data
from cujax.data.sources import load_source
from cujax.networks.cnn import CNN
from cujax.training.predict import accuracy, predict
from cujax.training.supervised import Trainer, Training

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


@pytest.mark.parametrize(("warmup", "rising"), [(0.0, 0), (0.34, 2), (0.5, 3)])
def test_an_epoch_is_stochastic_gradient_descent_on_every_image(warmup, rising):
    images, key = make_images(), jax.random.key(5)
    recipe = Training(epochs=2, batch_size=8, optimizer="sgd", learning_rate=0.3, weight_decay=0.01, warmup=warmup)
    indices = np.arange(1, 22)
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
            fallen = 0.5 * (1 + np.cos(np.pi * (step - rising) / (6 - rising)))
            weights -= 0.3 * (step / rising if step < rising else fallen) * velocity
            step += 1
    assert sorted(seen) == sorted([*indices, *indices])
    np.testing.assert_allclose(trained.variables.params, weights, rtol=1e-5, atol=1e-6)


def test_adam_with_decoupled_decay_agrees_with_float64_on_images_from_bytes():
    rng = np.random.default_rng(1)
    pixels, labels = rng.integers(0, 256, (20, 2, 2, 1), np.uint8), rng.integers(0, 3, 20)
    images = DeviceImages(jnp.asarray(pixels), jnp.asarray(labels, jnp.int32), jnp.full(1, 0.4), jnp.full(1, 0.25))
    recipe = Training(epochs=3, batch_size=6, learning_rate=0.05, weight_decay=0.1)
    key = jax.random.key(2)
    trained = Trainer(recipe, images).train(LINEAR, np.arange(20), key)
    init_key, _, order_key = jax.random.split(key, 3)
    weights = np.asarray(jax.random.normal(init_key, (4, 3)), np.float64)
    mean, square, step = np.zeros_like(weights), np.zeros_like(weights), 0
    x = (pixels.reshape(20, 4) / 255 - 0.4) / 0.25
    for epoch in range(3):
        for rows in batches_of_all(np.arange(20), 6, jax.random.fold_in(order_key, epoch)):
            chosen = rows.indices[rows.mask]
            p = np.exp(x[chosen] @ weights)
            gradient = x[chosen].T @ (p / p.sum(1, keepdims=True) - np.eye(3)[labels[chosen]]) / len(chosen)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            rate = 0.05 * 0.5 * (1 + np.cos(np.pi * step / 12))
            step += 1
            direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            weights -= rate * (direction + 0.1 * weights)
    assert step == 12
    np.testing.assert_allclose(trained.variables.params, weights, rtol=1e-4, atol=1e-5)


def test_images_outside_the_indices_are_never_looked_at():
    images = make_images()
    poisoned = dataclasses.replace(images, images=images.images.at[15:].set(jnp.nan))
    recipe = Training(epochs=2, batch_size=4)
    clean, same = (Trainer(recipe, arrays).train(LINEAR, np.arange(15), jax.random.key(0)) for arrays in (images, poisoned))
    np.testing.assert_array_equal(clean.variables.params, same.variables.params)


def counting_apply(params, model_state, images, *, train, key):
    (embedding, logits), _ = apply(params, {}, images, train=train, key=key)
    return (embedding, logits), {"calls": model_state["calls"] + 1}


def test_the_state_of_the_network_is_carried_through_every_step():
    model = from_function(lambda key, images: (jnp.zeros((4, 3)), {"calls": jnp.int32(0)}), counting_apply)
    trained = Trainer(Training(epochs=3, batch_size=8), make_images()).train(model, np.arange(22), jax.random.key(0))
    assert int(trained.variables.model_state["calls"]) == 9


def test_one_compilation_serves_all_epochs_short_batches_and_models():
    images, recipe = make_images(), Training(epochs=3, batch_size=5, learning_rate=0.011)
    trainer = Trainer(recipe, images)
    TRACES.clear()
    trainer.train(LINEAR, np.arange(22), jax.random.key(0))
    assert TRACES.count(True) == 1
    trainer.train(LINEAR, np.arange(22), jax.random.key(1))
    assert TRACES.count(True) == 1


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


def test_each_key_starts_elsewhere():
    still = Trainer(Training(epochs=1, batch_size=22, learning_rate=1e-30), make_images())
    starts = [np.asarray(still.train(LINEAR, np.arange(22), jax.random.key(seed)).variables.params) for seed in range(3)]
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(starts, 2)) > 0.1


def test_each_key_has_an_order_of_its_own():
    model = from_function(lambda key, images: (jnp.zeros((4, 3)), {}), apply)
    trainer = Trainer(Training(epochs=1, batch_size=4, learning_rate=0.1), make_images())
    ends = [np.asarray(trainer.train(model, np.arange(22), jax.random.key(seed)).variables.params) for seed in range(3)]
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(ends, 2)) > 1e-3


def test_the_augmentation_of_the_recipe_changes_what_is_trained_on():
    images = make_images()
    model = from_function(lambda key, images: (jnp.zeros((4, 3)), {}), apply)
    plain, flipped = (
        Trainer(Training(epochs=1, batch_size=22, augmentation=name), images).train(model, np.arange(22), jax.random.key(0))
        for name in ("none", "crop_flip")
    )
    assert not np.allclose(plain.variables.params, flipped.variables.params)
    assert images.augmentation == "none"


def test_digits_are_learned():
    records = []
    source = load_source(Data())
    model = from_linen(CNN(10, features=(8, 16), hidden_dim=32, embedding_dim=16))
    train, test = to_device(source, source.train), to_device(source, source.test)
    trainer = Trainer(Training(epochs=12, learning_rate=5e-3), train, log=records.append)
    trained = trainer.train(model, np.arange(1442), jax.random.key(0))
    steps_an_epoch = -(-1442 // 64)
    losses = np.array([record["loss"] for record in records]).reshape(12, steps_an_epoch).mean(axis=1)
    assert losses[-1] < 0.6 * losses[0]
    assert (np.diff(losses[:4]) < 0).all()
    assert accuracy(predict(model, trained.variables, test, np.arange(355))) > 0.9


def test_a_batch_larger_than_the_set_is_told():
    with pytest.raises(ValueError, match=r"training.batch_size is 64, but there are only 22 images.*at most 22"):
        Trainer(Training(), make_images()).train(LINEAR, np.arange(22), jax.random.key(0))


def test_divergence_is_told_with_the_learning_rate():
    images = make_images()
    recipe = Training(epochs=20, batch_size=8, optimizer="sgd", learning_rate=1e38)
    with pytest.raises(FloatingPointError, match=r"diverged: .*not finite at step \d+.*learning_rate, now 1e\+38"):
        Trainer(recipe, images).train(LINEAR, np.arange(22), jax.random.key(0))


def test_a_small_network_diverges_at_a_huge_learning_rate_and_says_so():
    model = from_linen(CNN(3, features=(4, 8), hidden_dim=16, embedding_dim=8))
    with pytest.raises(FloatingPointError, match=r"training one diverged: .*learning_rate, now 1e\+20"):
        Trainer(Training(batch_size=8, learning_rate=1e20), make_images()).train(
            model, np.arange(22), jax.random.key(0), description="training one"
        )


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}])
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=f"training.{next(iter(wrong))}"):
        Training(**wrong)


def test_memory_decides_how_many_models_are_trained_at_once(monkeypatch):
    images, trainer = make_images(), Trainer(Training(batch_size=8), make_images())
    assert trainer.models_at_once(LINEAR) == 1  # on a CPU
    found = []
    for free in (0, 10**4, 10**5, 10**6):
        monkeypatch.setattr("cujax.training.supervised.free_memory", lambda free=free: free)
        found.append(trainer.models_at_once(LINEAR))
    assert found[0] == 1
    assert found[3] == pytest.approx(10 * found[2], rel=0.2)
    assert 10**5 / found[2] > 3 * 4 * 12  # the weights and both moments of 12 numbers
    assert dataclasses.replace(trainer, images=streamed_of(images)).models_at_once(LINEAR) == 1


def streamed_of(images):
    return StreamedImages(None, np.asarray(images.labels), images.mean, images.std)


def test_images_on_disk_are_not_trained_on_together():
    with pytest.raises(ValueError, match="read for one model at a time; train the models one by one"):
        Trainer(Training(), streamed_of(make_images())).train_together(LINEAR, np.arange(20), [jax.random.key(0)])
