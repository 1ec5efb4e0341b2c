"""Optimisers of optax that take more than gradients, or less often than every step."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from optax import contrib

from cujax import (
    Batch,
    ContrastiveUnlearning,
    Examples,
    UnlearnState,
    from_function,
    from_linen,
    make_unlearn_step,
    unlearn_loss,
    unlearn_step,
)

CONFIG = ContrastiveUnlearning(temperature=0.5)
IMAGES = np.random.default_rng(1).normal(size=(8, 2, 2, 1)).astype(np.float32)
BATCH = Batch(Examples(IMAGES[:4], jnp.array([0, 1, 2, 0])), Examples(IMAGES[4:], jnp.array([1, 2, 0, 1])))


def init(key, images):
    keys = jax.random.split(key)
    return {"hidden": jax.random.normal(keys[0], (4, 5)), "head": jax.random.normal(keys[1], (5, 3))}, {}


def apply(params, model_state, images, *, train, key):
    embedding = jnp.tanh(images.reshape(len(images), -1) @ params["hidden"])
    return (embedding, embedding @ params["head"]), model_state


MODEL = from_function(init, apply)


def run(tx, steps=1):
    """The parameters after each step, the first first, and the losses."""
    state = UnlearnState.create(*MODEL.init(jax.random.key(0), IMAGES), tx, jax.random.key(1))
    params, losses = [jax.tree.map(np.asarray, state.params)], []
    for _ in range(steps):
        state, metrics = unlearn_step(state, BATCH, model=MODEL, tx=tx, config=CONFIG)
        params.append(jax.tree.map(np.asarray, state.params))
        losses.append(float(metrics["loss"]))
    return params, losses, state


def gradient():
    """Of the first step, from plain gradient descent at rate 1."""
    before, after = run(optax.sgd(1.0))[0]
    return jax.tree.map(lambda one, other: one - other, before, after)


def norm(tree):
    return np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def test_reduce_on_plateau_sees_the_loss():
    tx = optax.chain(optax.sgd(0.0), contrib.reduce_on_plateau(factor=0.5, patience=2, cooldown=0))
    _, losses, state = run(tx, 8)
    assert len(set(losses)) == 1  # the rate is 0: a plateau
    scale, best, waited = 1.0, np.inf, 0
    for loss in losses:
        improved = loss < (1 - 1e-4) * best if loss > 0 else loss < best
        best, waited = (loss, 0) if improved else (best, waited + 1)
        if waited == 2:
            scale, waited = scale * 0.5, 0
    assert float(optax.tree.get(state.opt_state, "scale")) == scale < 1


def test_polyaks_step_is_that_of_the_loss():
    (before, after), (loss,), _ = run(optax.polyak_sgd(max_learning_rate=100.0))
    step = gradient()
    expected = jax.tree.map(lambda leaf, slope: leaf - max(loss, 0) / norm(step) ** 2 * slope, before, step)
    chex.assert_trees_all_close(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tx", [optax.lbfgs(), optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5))])
def test_line_searches_are_refused(tx):
    with pytest.raises(ValueError, match=r"line search.*value_fn.*optax\.sgd"):
        run(tx)


def test_multi_steps_move_with_the_mean_gradient_every_other_step():
    tx = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    params, _, _ = run(tx, 2)
    chex.assert_trees_all_equal(params[0], params[1])
    chex.assert_trees_all_close(params[2], run(optax.sgd(1.0))[0][1], rtol=1e-5, atol=1e-6)


def test_hyperparameters_that_are_injected_follow_their_schedule():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=optax.piecewise_constant_schedule(1.0, {1: 0.0}))
    params, _, state = run(tx, 2)
    chex.assert_trees_all_close(params[1], run(optax.sgd(1.0))[0][1])
    chex.assert_trees_all_equal(params[2], params[1])
    assert float(state.opt_state.hyperparams["learning_rate"]) == 0.0


def test_gradients_are_clipped_to_their_norm():
    (before, after), _, _ = run(optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0)))
    np.testing.assert_allclose(norm(jax.tree.map(np.subtract, before, after)), 0.01, rtol=1e-3)
    chex.assert_trees_all_close(
        jax.tree.map(np.subtract, before, after),
        jax.tree.map(lambda leaf: leaf * 0.01 / norm(gradient()), gradient()),
        atol=1e-6,
    )


def test_a_scan_over_steps_is_the_plain_steps_and_seeds_may_be_mapped():
    tx = optax.sgd(0.1)
    step = make_unlearn_step(MODEL, tx, CONFIG)
    params, losses, _ = run(tx, 3)
    state = UnlearnState.create(*MODEL.init(jax.random.key(0), IMAGES), tx, jax.random.key(1))
    with jax.debug_nans(True):
        scanned, metrics = jax.jit(lambda state: jax.lax.scan(lambda state, _: step(state, BATCH), state, length=3))(state)
    chex.assert_trees_all_close(scanned.params, params[3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)

    def first_loss(key):
        state = UnlearnState.create(*init(key, IMAGES), tx, key)
        return step(state, BATCH)[1]["loss"]

    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_allclose(jax.vmap(first_loss)(keys), [jax.jit(first_loss)(key) for key in keys], rtol=1e-5)


def test_a_step_moves_nothing_between_host_and_device_unasked():
    tx = optax.sgd(0.1)
    batch = jax.device_put(BATCH)
    state = UnlearnState.create(*MODEL.init(jax.random.key(0), IMAGES), tx, jax.random.key(1))
    state, _ = unlearn_step(state, batch, model=MODEL, tx=tx, config=CONFIG)
    step = jax.jit(functools.partial(make_unlearn_step(MODEL, tx, CONFIG)))
    state, _ = step(state, batch)
    with jax.transfer_guard("disallow"):
        state, metrics = step(state, batch)
    assert metrics["finite"]


class Noisy(nn.Module):
    """With statistics and dropout."""

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(images.reshape(len(images), -1)))
        hidden = nn.Dropout(0.3, deterministic=not train)(jnp.tanh(hidden))
        return hidden, nn.Dense(3)(hidden)


NOISY = from_linen(Noisy())
MASKED = Batch(
    Examples(IMAGES[:4], BATCH.forget.labels, jnp.array([True, True, False, True])),
    Examples(IMAGES[4:], BATCH.retain.labels, jnp.array([True, False, True, True])),
)


@pytest.mark.parametrize("batch_norm", ["joint", "retain_only", "frozen"])
@pytest.mark.parametrize("denominator", ["paper", "official"])
def test_the_public_loss_is_what_a_step_descends(batch_norm, denominator):
    config = ContrastiveUnlearning(temperature=0.5, batch_norm=batch_norm, denominator=denominator, unlearn_weight=0.7)
    tx = optax.sgd(0.3)
    params, model_state = NOISY.init(jax.random.key(0), IMAGES)
    state = UnlearnState.create(params, model_state, tx, jax.random.key(1))
    key = jax.random.fold_in(state.key, state.step)
    loss = jax.jit(jax.value_and_grad(functools.partial(unlearn_loss, model=NOISY, config=config), has_aux=True))
    (value, (new_state, metrics)), gradients = loss(params, model_state, MASKED, key)
    updates, _ = tx.update(gradients, tx.init(params), params)
    stepped, of_step = unlearn_step(state, MASKED, model=NOISY, tx=tx, config=config)
    chex.assert_trees_all_close(optax.apply_updates(params, updates), stepped.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(new_state, stepped.model_state, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close({"loss": value, **metrics}, {name: of_step[name] for name in metrics}, rtol=1e-5)
    assert norm(gradients) > 0.01


def first_state(tx):
    return UnlearnState.create(*MODEL.init(jax.random.key(0), IMAGES), tx, jax.random.key(1))


def test_a_rematerialised_step_and_loss_are_the_plain_ones():
    tx = optax.sgd(0.1)
    step, state = make_unlearn_step(MODEL, tx, CONFIG), first_state(tx)
    plain, again = (jax.jit(one)(state, BATCH) for one in (step, jax.checkpoint(step)))
    chex.assert_trees_all_close((plain[0].params, plain[1]), (again[0].params, again[1]), rtol=1e-6, atol=1e-7)
    loss = functools.partial(unlearn_loss, model=MODEL, config=CONFIG)
    key = jax.random.fold_in(state.key, state.step)
    slopes = [jax.jit(jax.grad(one, has_aux=True))(state.params, {}, BATCH, key)[0] for one in (loss, jax.checkpoint(loss))]
    chex.assert_trees_all_close(*slopes, rtol=1e-6, atol=1e-7)


def over_two_devices(function, out_specs, *, check_vma, rows=("devices",)):
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs = {"in_specs": (P(), P(*rows)), "out_specs": out_specs}
    return jax.jit(jax.shard_map(function, mesh=mesh, check_vma=check_vma, **specs))


def test_a_step_inside_shard_map_on_rows_of_its_own_is_refused_while_jax_checks_replication():
    step = make_unlearn_step(MODEL, optax.sgd(0.1), CONFIG)
    with pytest.raises(ValueError, match="out_specs which require replication"):
        over_two_devices(step, P(), check_vma=True)(first_state(optax.sgd(0.1)), BATCH)


def test_the_devices_of_a_step_inside_shard_map_part_if_jax_does_not_check_replication():
    step = make_unlearn_step(MODEL, optax.sgd(0.1), CONFIG)

    def params(state, batch):
        return jax.tree.map(lambda leaf: leaf[None], step(state, batch)[0].params)

    found = over_two_devices(params, P("devices"), check_vma=False)(first_state(optax.sgd(0.1)), BATCH)
    for device in (0, 1):
        rows = jax.tree.map(lambda leaf, first=2 * device: leaf[first : first + 2], BATCH)
        alone = jax.jit(step)(first_state(optax.sgd(0.1)), rows)[0].params
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, at=device: leaf[at], found), alone, rtol=1e-5, atol=1e-6)
    assert norm(jax.tree.map(lambda leaf: leaf[0] - leaf[1], found)) > 0.01


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_step_inside_shard_map_on_all_rows_is_the_plain_step(check_vma):
    step = make_unlearn_step(MODEL, optax.sgd(0.1), CONFIG)
    inside = over_two_devices(step, P(), check_vma=check_vma, rows=())(first_state(optax.sgd(0.1)), BATCH)
    plain = jax.jit(step)(first_state(optax.sgd(0.1)), BATCH)
    chex.assert_trees_all_close((inside[0].params, inside[1]), (plain[0].params, plain[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_the_mean_loss_of_devices_inside_shard_map_is_not_the_loss_of_the_batch(check_vma):
    loss = functools.partial(unlearn_loss, model=MODEL, config=CONFIG)
    state = first_state(optax.sgd(0.1))

    def slope(params, batch):
        return jax.grad(lambda params: jax.lax.pmean(loss(params, {}, batch, state.key)[0], "devices"))(params)

    def mean(params, batch):
        found = slope(params, batch)
        return found if check_vma else jax.lax.pmean(found, "devices")

    def alone(rows):
        return jax.jit(jax.grad(loss, has_aux=True))(state.params, {}, rows, state.key)[0]

    found = over_two_devices(mean, P(), check_vma=check_vma)(state.params, BATCH)
    halves = [alone(jax.tree.map(lambda leaf, first=first: leaf[first : first + 2], BATCH)) for first in (0, 2)]
    chex.assert_trees_all_close(found, jax.tree.map(lambda *pair: sum(pair) / 2, *halves), rtol=1e-5, atol=1e-6)
    assert norm(jax.tree.map(jnp.subtract, found, alone(BATCH))) > 0.01
