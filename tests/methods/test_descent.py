"""What the methods that descend on an objective share: settings, masks on updates, compilation, and the original."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import IMAGES, KEY, LOOP, MODEL, MODES, ORIGINAL, SPLIT, advance, counted, leaves, record, take

from cujax.methods import (
    BadTeacher,
    Delete,
    FineTune,
    GradientAscent,
    L1Sparse,
    Munba,
    NegGradPlus,
    RandomLabels,
    SalUn,
    Scrub,
)
from cujax.methods.descent import mask_updates

ALL = (FineTune, GradientAscent, NegGradPlus, RandomLabels, L1Sparse, Scrub, SalUn, BadTeacher, Delete, Munba)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0.0), ("momentum", 1.0), ("weight_decay", -1.0), ("batch_size", 0), ("max_passes", 0)],
)
def test_impossible_settings_are_named(method, name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        method(**{name: value})


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        (FineTune, "optimizer", "lion"),
        (NegGradPlus, "alpha", 1.5),
        (L1Sparse, "alpha", -1.0),
        (Scrub, "temperature", 0.0),
        (Scrub, "gamma", -0.1),
        (Scrub, "alpha", -0.1),
        (Scrub, "max_steps", 0),
        (Scrub, "forget_batch_size", 0),
        (SalUn, "salient_share", 0.0),
        (BadTeacher, "retain_share", 0.0),
    ],
)
def test_impossible_settings_of_one_method_are_named(method, name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        method(**{name: value})


@pytest.mark.parametrize("method", ALL)
def test_a_run_moves_the_parameters_and_leaves_the_original_alone(method):
    """Traps: an optimiser bound to other parameters, a teacher that moves too, a donated original."""
    before = jax.tree.map(np.array, ORIGINAL)
    loop = dataclasses.replace(LOOP, retain_tolerance=1.0, stop_early=False)
    result = method(learning_rate=0.1, max_passes=2)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=loop)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(ORIGINAL))
    chex.assert_trees_all_equal(ORIGINAL, before)
    assert result.model is MODEL
    assert result.history.cost.steps > 0
    for new, old in zip(leaves(result.params), leaves(before.params), strict=True):
        assert np.abs(new - old).max() > 1e-3


@pytest.mark.parametrize("method", ALL)
def test_a_batch_of_masked_rows_changes_nothing(method):
    """Whatever they hold."""
    recorder = record(method(weight_decay=0.0))
    for phase in recorder.phases(0):
        batch = phase.prepare(IMAGES, next(iter(phase.batches)), KEY)
        batch = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if leaf.dtype == bool else leaf, batch)
        state, metrics = advance(phase.step, recorder.state, batch)
        assert float(metrics["loss"]) == pytest.approx(0 if method is not L1Sparse else float(metrics["loss"]))
        if method is not L1Sparse:
            chex.assert_trees_all_close(state.params, recorder.state.params, atol=1e-7)


@pytest.mark.parametrize("method", ALL)
def test_masked_rows_count_in_no_loss(method):
    """A short batch, filled with rows drawn again, gives the update of the rows that count."""
    short = method(batch_size=2, **({"forget_batch_size": 2} if method is Scrub else {}))
    recorder = record(short)
    for phase in recorder.phases(0):
        for rows in list(phase.batches)[-1:]:
            batch = phase.prepare(IMAGES, rows, KEY)

            def swapped(examples):
                """Other images in the masked rows."""
                images = jnp.where(examples.mask[:, None, None, None], examples.inputs, 7.0)
                return dataclasses.replace(examples, inputs=images, labels=jnp.where(examples.mask, examples.labels, 0))

            other = jax.tree.map(swapped, batch, is_leaf=lambda node: hasattr(node, "mask"))
            chex.assert_trees_all_equal(
                advance(phase.step, recorder.state, batch)[0].params, advance(phase.step, recorder.state, other)[0].params
            )


@pytest.mark.parametrize("method", ALL)
def test_another_setting_compiles_nothing_anew(method):
    changes = {"learning_rate": 0.037, "momentum": 0.5, "weight_decay": 0.01}
    for name in ("alpha", "gamma", "temperature"):
        if hasattr(method(), name):
            changes[name] = 0.6
    for number, settings in enumerate(({}, changes)):
        recorder = record(method(**settings))
        if number:
            MODES.clear()
        for phase in recorder.phases(number):
            take(recorder.state, phase, [next(iter(phase.batches))])
    assert MODES == [] or method is SalUn  # which computes its mask beforehand, in eval mode
    assert True not in MODES


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was():
    recorder = record(FineTune())
    (phase,) = recorder.phases(0)
    batch = phase.prepare(IMAGES, next(iter(phase.batches)), KEY)
    broken = dataclasses.replace(batch, inputs=batch.inputs.at[0].set(jnp.nan))
    state, metrics = advance(phase.step, recorder.state, broken)
    assert not metrics["finite"]
    chex.assert_trees_all_equal(state.params, recorder.state.params)
    assert int(state.step) == 0


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1, weight_decay=0.3)])
def test_masked_parameters_stay_as_they_are_under_momentum_and_decay(tx):
    params, mask = {"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([True, False, True])}
    masked = optax.chain(optax.add_decayed_weights(0.1), tx, mask_updates(mask))
    state, moved = masked.init(params), params
    for step in range(4):
        updates, state = masked.update({"w": jnp.ones(3) * (step - 1.5)}, state, moved)
        moved = optax.apply_updates(moved, updates)
    assert float(moved["w"][1]) == 2.0
    assert (np.asarray(moved["w"])[[0, 2]] != np.asarray(params["w"])[[0, 2]]).all()


@pytest.mark.parametrize(("method", "looked_at"), [(FineTune, SPLIT.retain), (L1Sparse, SPLIT.retain),
                                                   (GradientAscent, SPLIT.forget), (Delete, SPLIT.forget)])  # fmt: skip
def test_a_pass_is_over_the_set_that_the_paper_names(method, looked_at):
    recorder, orders = record(method(batch_size=2)), []
    for number in range(3):
        (phase,) = recorder.phases(number)
        order = np.concatenate([counted(rows) for rows in phase.batches])
        np.testing.assert_array_equal(np.sort(order), looked_at.indices)
        orders.append(order.tolist())
    assert len({tuple(order) for order in orders}) > 1
