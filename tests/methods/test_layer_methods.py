"""Methods that treat layers differently: CF-k, EU-k, layer negation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    IMAGES,
    KEY,
    LOOP,
    MODEL,
    ORIGINAL,
    SPLIT,
    X,
    advance,
    apply,
    assert_follows,
    counted,
    cross_entropy_gradient,
    init,
    label_of,
    record,
    take,
)

from cujax.methods import CatastrophicForgetLastK, ExactUnlearnLastK, LayerNegation
from cujax.methods.layers import in_layers
from cujax.model import from_function

ANONYMOUS = from_function(init, apply, num_classes=3)
HEAD = {"hidden": {"bias": False, "kernel": False}, "head": {"bias": True, "kernel": True}}


def retain_gradient(params, rows, step):
    return cross_entropy_gradient(params, X[counted(rows)], label_of(rows))


@pytest.mark.parametrize("kind", [CatastrophicForgetLastK, ExactUnlearnLastK])
def test_the_last_layers_alone_are_trained_and_the_others_stay_to_the_bit(kind):
    """Trap: masked weights that momentum or decay move."""
    method = kind(learning_rate=0.3, batch_size=2, weight_decay=0.1, last_layers=1)
    recorder = record(method)
    state, _ = assert_follows(method, retain_gradient, recorder, mask=HEAD)
    chex.assert_trees_all_equal(state.params["hidden"], ORIGINAL.params["hidden"])
    everything = kind(learning_rate=0.3, batch_size=2, weight_decay=0.1, last_layers=2)
    assert_follows(everything, retain_gradient, record(everything))


def test_cf_k_starts_from_the_original():
    chex.assert_trees_all_equal(record(CatastrophicForgetLastK(last_layers=1)).state.params, ORIGINAL.params)


def test_eu_k_starts_the_last_layers_afresh_and_the_others_as_they_were():
    start = record(ExactUnlearnLastK(last_layers=1)).state.params
    chex.assert_trees_all_equal(start["hidden"], ORIGINAL.params["hidden"])
    assert np.abs(start["head"]["kernel"] - ORIGINAL.params["head"]["kernel"]).max() > 0.3
    other = {"hidden": ORIGINAL.params["hidden"], "head": jax.tree.map(lambda leaf: leaf + 7, ORIGINAL.params["head"])}
    elsewhere = record(ExactUnlearnLastK(last_layers=1), original=ORIGINAL._replace(params=other)).state.params
    chex.assert_trees_all_equal(elsewhere, start)
    another = record(ExactUnlearnLastK(last_layers=1), key=jax.random.key(8)).state.params
    assert np.abs(another["head"]["kernel"] - start["head"]["kernel"]).max() > 0.3


@pytest.mark.parametrize("method", [ExactUnlearnLastK(last_layers=2, max_passes=3), LayerNegation(max_passes=3)])
def test_what_begins_with_a_network_that_knows_nothing_makes_all_passes(method):
    anything = dataclasses.replace(LOOP, retain_tolerance=1.0)
    assert len(method(MODEL, ORIGINAL, SPLIT, key=KEY, loop=anything).history.checks) == 4


def test_a_harmed_network_is_not_returned():
    """Of twelve keys, some fresh heads answer worse than the original: then the original is what comes back."""
    strict = dataclasses.replace(LOOP, retain_tolerance=1e-9)
    method = ExactUnlearnLastK(last_layers=1, max_passes=1, learning_rate=1e-30)
    seen = set()
    for number in range(12):
        result = method(MODEL, ORIGINAL, SPLIT, key=jax.random.key(number), loop=strict)
        first, last = result.history.checks
        harmed = last.retain_accuracy < first.retain_accuracy
        assert (result.history.step == 0) == harmed
        assert bool(np.array_equal(result.params["head"]["kernel"], ORIGINAL.params["head"]["kernel"])) == harmed
        seen.add(harmed)
    assert seen == {True, False}


def test_negation_is_of_the_kernels_of_the_first_layer():
    recorder = record(LayerNegation(learning_rate=0.3, batch_size=2, weight_decay=0.01))
    start = recorder.state.params
    np.testing.assert_array_equal(start["hidden"]["kernel"], -ORIGINAL.params["hidden"]["kernel"])
    np.testing.assert_array_equal(start["hidden"]["bias"], ORIGINAL.params["hidden"]["bias"])
    chex.assert_trees_all_equal(start["head"], ORIGINAL.params["head"])
    assert_follows(LayerNegation(learning_rate=0.3, batch_size=2, weight_decay=0.01), retain_gradient, recorder)


@pytest.mark.parametrize("kind", [CatastrophicForgetLastK, ExactUnlearnLastK, LayerNegation])
def test_the_forget_set_is_never_looked_at(kind):
    method = kind(**({} if kind is LayerNegation else {"last_layers": 1}), learning_rate=0.1)
    broken = IMAGES.images.at[SPLIT.forget.indices].set(jnp.nan)
    recorder = record(method)
    (phase,) = recorder.phases(0)
    batches = list(phase.batches)
    expected, _ = take(recorder.state, phase, batches)
    arrays = dataclasses.replace(IMAGES, images=broken)
    state = record(method).state
    for batch in batches:
        state, metrics = advance(phase.step, state, phase.prepare(arrays, batch, KEY))
        assert metrics["finite"]
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-6)


@pytest.mark.parametrize("method", [CatastrophicForgetLastK(), ExactUnlearnLastK(), LayerNegation()])
def test_a_network_that_does_not_name_its_layers_is_refused(method):
    with pytest.raises(ValueError, match=rf"{type(method).__name__} must know the layers.*give layers="):
        method(ANONYMOUS, ORIGINAL, SPLIT, key=KEY, loop=LOOP)


@pytest.mark.parametrize("kind", [CatastrophicForgetLastK, ExactUnlearnLastK])
def test_more_layers_than_there_are_are_refused(kind):
    with pytest.raises(ValueError, match="last_layers is 3, but the network has 2: hidden, head; make it at most 2"):
        record(kind(last_layers=3))
    with pytest.raises(ValueError, match="last_layers must be at least 1, but is 0"):
        kind(last_layers=0)


def test_layers_are_found_by_whole_names_and_in_collections():
    tree = {"conv_1": {"kernel": 0}, "conv_10": {"kernel": 0}, "stage": {"block_1": {"scale": 0}, "block_2": {"scale": 0}}}
    assert in_layers(tree, ["conv_1", "stage/block_2"]) == {
        "conv_1": {"kernel": True},
        "conv_10": {"kernel": False},
        "stage": {"block_1": {"scale": False}, "block_2": {"scale": True}},
    }
    assert in_layers({"batch_stats": {"stem": {"mean": 0}, "head": {"mean": 0}}}, ["stem"]) == {
        "batch_stats": {"stem": {"mean": True}, "head": {"mean": False}}
    }
