"""The pmapped step equals one device's step on the same rows; forms that are known to be wrong do not."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from many_devices import (
    AFTER_ONE_STEP,
    AFTER_TWENTY,
    MODEL,
    POLICIES,
    assert_same,
    largest_difference,
    make_batches,
    on_one_device,
    run,
    settings,
    start,
)

from cujax import UnlearnState, from_function, from_linen, make_unlearn_step, pmap_unlearn_step
from cujax.sharding import data_mesh, replicate

AXIS = "devices"


def by_device(state, batch):
    # A state that is where the step will put it spares a second compilation.
    return replicate(state, data_mesh()), jax.tree.map(lambda rows: rows.reshape(8, -1, *rows.shape[1:]), batch)


def pmapped(policy="joint", model=MODEL):
    config = settings(policy)
    return pmap_unlearn_step(model, config.optimizer(), config)


@pytest.mark.parametrize("policy", POLICIES)
def test_eight_pmapped_devices_equal_one(policy):
    assert_same(on_one_device(policy), run(policy, place=by_device, step=pmapped(policy)))


def test_the_state_is_neither_stacked_nor_donated():
    state, batch = by_device(start(), make_batches(1)[0])
    after, metrics = pmapped()(state, batch)
    assert jax.tree.map(np.shape, after.params) == jax.tree.map(np.shape, state.params)
    assert all(value.shape == () for value in metrics.values())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def averaged(tx):
    """The optimiser, after averaging the gradients over devices: what code that knows no better does."""

    def update(gradients, state, params=None):
        return tx.update(jax.lax.pmean(gradients, AXIS), state, params)

    return optax.GradientTransformation(tx.init, update)


def wrong_step():
    """Every device contrasts its own forget rows with its own retain rows; losses and gradients are averaged."""
    config = settings("joint")
    step = make_unlearn_step(MODEL.with_axis_name(AXIS), averaged(config.optimizer()), config)

    def wrong(state, batch):
        state, metrics = step(state, batch)
        return state, jax.lax.pmean({name: value * 1.0 for name, value in metrics.items()}, AXIS)

    return wrong


@pytest.fixture(scope="module")
def averaged_by_pmap():
    return run(place=by_device, step=jax.pmap(wrong_step(), AXIS, in_axes=(None, 0), out_axes=None))


def test_averaging_the_losses_of_devices_is_another_loss(averaged_by_pmap):
    right = on_one_device()
    for part in ("first['metrics'][0]['contrastive_loss']", "first['momentum']"):
        assert largest_difference(right, averaged_by_pmap, part) > 1000 * AFTER_ONE_STEP
    assert largest_difference(right, averaged_by_pmap, "last['params']") > 100 * AFTER_TWENTY


def test_averaging_gradients_of_replicated_parameters_in_shard_map_is_wrong_by_the_number_of_devices(averaged_by_pmap):
    """There they come summed already, which pmap's do not: the same code is wrong in another way."""
    mesh = jax.make_mesh((8,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(AXIS)), out_specs=PartitionSpec())
    def wrong(state, batch):
        after, metrics = wrong_step()(state, batch)
        alike = jax.tree.map(lambda leaf: jax.lax.pmean(leaf, AXIS).astype(leaf.dtype), (after.opt_state, after.model_state))
        return dataclasses.replace(state, opt_state=alike[0], model_state=alike[1]), metrics

    summed = run(step=wrong, n_steps=1)
    assert largest_difference(on_one_device(), summed, "first['momentum']") > 1000 * AFTER_ONE_STEP
    for name, value in averaged_by_pmap.items():
        if name.startswith("first['momentum']"):
            np.testing.assert_allclose(summed[name], 8 * value, rtol=1e-3, atol=1e-5)


class WithoutAxisName(nn.Module):
    """State that no layer averages over devices."""

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(images.shape[0], -1)
        mean = self.variable("batch_stats", "mean", jax.numpy.zeros, x.shape[1:])
        if train:
            mean.value = x.mean(axis=0)
        return x, nn.Dense(10)(x - mean.value[None])


def with_state(params, model_state, images, *, train, key):
    flat = images.reshape(images.shape[0], -1)
    return (flat, flat[:, :10] * params["scale"]), model_state


def first_step(model, policy="joint"):
    config = settings(policy)
    _, batch = by_device(start(), make_batches(1)[0])
    variables = model.init(jax.random.key(0), batch.forget.inputs[0])
    state = UnlearnState.create(*variables, config.optimizer(), jax.random.key(1))
    return pmapped(policy, model)(state, batch)


@pytest.mark.parametrize("policy", ["joint", "retain_only"])
def test_statistics_that_cannot_be_averaged_are_refused(policy):
    with pytest.raises(ValueError, match=r"WithoutAxisName keeps.*'devices'.*no field axis_name: add"):
        first_step(from_linen(WithoutAxisName()), policy)
    function = from_function(lambda key, images: ({"scale": np.ones(())}, {"seen": np.zeros(3)}), with_state)
    with pytest.raises(ValueError, match=r"with_state keeps state.*not take the argument axis_name"):
        first_step(function, policy)


def test_frozen_statistics_need_no_averaging():
    _, metrics = first_step(from_linen(WithoutAxisName()), "frozen")
    assert metrics["finite"]


class WithDropout(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        kept = nn.Dropout(0.5, deterministic=not train)(jax.numpy.ones((images.shape[0], 64)))
        return kept, nn.Dense(10)(kept)


def test_dropout_differs_between_devices():
    """All rows are alike, so on equal noise every device would have the same share of the losses."""
    seen = []

    class Seen(WithDropout):
        @nn.compact
        def __call__(self, images, train):
            kept, logits = super().__call__(images, train)
            jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), kept)
            return kept, logits

    jax.block_until_ready(first_step(from_linen(Seen()), "joint"))
    jax.effects_barrier()
    drawn = {rows.tobytes() for rows in seen if rows.shape == (6, 64)}
    assert len(drawn) == 8
