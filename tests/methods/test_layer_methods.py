"""Methods that treat layers differently: CF-k, EU-k, layer negation."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CLASS_SPLIT,
    IMAGES,
    KEY,
    LOOP,
    MODEL,
    ORIGINAL,
    SPLIT,
    Recorder,
    X,
    Y,
    advance,
    apply,
    assert_follows,
    counted,
    cross_entropy_gradient,
    float64,
    forward,
    init,
    label_of,
    leaves,
    record,
    take,
)

from cujax.adapters import from_function, from_linen
from cujax.methods import CatastrophicForgetLastK, ExactUnlearnLastK, LayerNegation
from cujax.methods.layer_negation import negated
from cujax.methods.layers import as_mask, in_layers, merge
from cujax.model import Variables

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
    assert in_layers({"batch_stats": {"stem": {"mean": 0}, "head": {"mean": 0}}}, ["stem"], collections=True) == {
        "batch_stats": {"stem": {"mean": True}, "head": {"mean": False}}
    }


def test_the_mask_holds_against_decoupled_decay_too():
    method = ExactUnlearnLastK(optimizer="adam", learning_rate=0.05, batch_size=2, weight_decay=0.1, last_layers=1)
    state, batches = assert_follows(method, retain_gradient, record(method), mask=HEAD)
    chex.assert_trees_all_equal(state.params["hidden"], ORIGINAL.params["hidden"])
    np.testing.assert_array_equal(np.sort(np.concatenate([counted(rows) for rows in batches])), SPLIT.retain.indices)
    assert int(state.model_state["calls"]) == 3


def test_the_last_layers_are_counted_from_the_head():
    layers = ("stem", "stage_1", "stage_2", "head")
    deep, params = (
        from_function(init, apply, num_classes=3, layers=layers),
        {name: {"kernel": jnp.ones(1)} for name in layers},
    )
    assert CatastrophicForgetLastK(last_layers=1).moving(deep, params) == ("head",)
    assert ExactUnlearnLastK(last_layers=3).moving(deep, params) == ("stage_1", "stage_2", "head")


def test_the_statistics_of_fresh_layers_are_fresh_and_the_others_the_originals():
    """Trap: a fresh layer that keeps statistics of the forget set."""

    def init_with_statistics(key, images):
        return init(key, images)[0], {"batch_stats": {name: {"mean": jnp.zeros(2)} for name in ("hidden", "head")}}

    def apply_with_statistics(params, model_state, images, *, train, key):
        return apply(params, {"calls": 0}, images, train=train, key=key)[0], model_state

    model = from_function(init_with_statistics, apply_with_statistics, num_classes=3, layers=("hidden", "head"))
    trained = Variables(ORIGINAL.params, {"batch_stats": {name: {"mean": jnp.full(2, 5.0)} for name in ("hidden", "head")}})
    for kind, of_head in ((CatastrophicForgetLastK, 5.0), (ExactUnlearnLastK, 0.0)):
        recorder = Recorder(IMAGES)
        kind(last_layers=1)(model, trained, SPLIT, key=KEY, loop=recorder)
        means = {name: layer["mean"].tolist() for name, layer in recorder.state.model_state["batch_stats"].items()}
        assert means == {"hidden": [5.0, 5.0], "head": [of_head, of_head]}


@dataclasses.dataclass(frozen=True)
class AfterAStep:
    def holds(self, observation):
        return "a step was made" if observation.check.step else None


@pytest.mark.parametrize(
    ("kind", "passes"),
    [(CatastrophicForgetLastK, 1), (ExactUnlearnLastK, 3), (LayerNegation, 3)],
)
def test_cf_k_ends_by_the_rule_and_the_others_make_all_passes(kind, passes):
    method = kind(**({} if kind is LayerNegation else {"last_layers": 1}), max_passes=3)
    anything = dataclasses.replace(LOOP, retain_tolerance=1.0, stop_rule=AfterAStep())
    history = method(MODEL, ORIGINAL, CLASS_SPLIT, key=KEY, loop=anything).history
    assert history.stop_rule == "stop_rule"
    assert [check.step for check in history.checks] == list(range(passes + 1))
    assert history.cost.steps == history.step == passes
    assert history.cost.samples == 6 * passes
    assert history.cost.flops > 0


def test_a_network_harmed_by_negation_is_not_returned():
    """Trap: a run that is compared with the negated network instead of the original."""
    strict, seen = dataclasses.replace(LOOP, retain_tolerance=1e-9), set()
    method = LayerNegation(max_passes=2, learning_rate=1e-30)
    rows = SPLIT.validation.indices

    def accuracy(params):
        return np.mean(forward(float64(params), X[rows])[1].argmax(1) == Y[rows])

    for number in range(12):
        original = Variables(*init(jax.random.key(number), None))
        start = negated(original.params, "hidden")
        result = method(MODEL, original, SPLIT, key=KEY, loop=strict)
        first, _, last = result.history.checks
        assert first.retain_accuracy == pytest.approx(accuracy(original.params))
        assert last.retain_accuracy == pytest.approx(accuracy(start))
        harmed = bool(accuracy(start) < accuracy(original.params))
        assert (result.history.step == 0) == (result.history.stop_rule == "retain_tolerance") == harmed
        if harmed:
            chex.assert_trees_all_equal(result.params, original.params)
        else:
            chex.assert_trees_all_close(result.params, start, rtol=0, atol=1e-20)
        seen.add(harmed)
    assert seen == {True, False}


def test_biases_scales_and_other_layers_are_not_negated():
    """Trap: a normalisation whose scale is negated with the kernel before it, which undoes both."""
    layer = {"conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    found = negated({"stem": layer, "stem_2": layer, "stage": {"block": layer}}, "stem")
    signs = {"conv": {"kernel": -1, "bias": 1}, "norm": {"scale": 1}}
    same = {"conv": {"kernel": 1, "bias": 1}, "norm": {"scale": 1}}
    expected = {"stem": signs, "stem_2": same, "stage": {"block": same}}
    assert jax.tree.map(lambda leaf: int(np.unique(leaf).item()), found) == expected


def test_layers_are_found_at_any_depth_and_in_a_state_without_collections():
    tree = {"stage": {"block_1": {"conv": {"kernel": 0}}, "block_10": {"conv": {"kernel": 0}}}, "stage_1": {"kernel": 0}}

    def found(layers):
        return [path for path, inside in zip(paths, leaves(in_layers(tree, layers)), strict=True) if inside]

    paths = ["block_1", "block_10", "stage_1"]
    assert found(["stage"]) == ["block_1", "block_10"]
    assert found(["stage/block_1"]) == found(["stage/block_1/conv"]) == ["block_1"]
    assert found(["stage_1", "stage/block_10"]) == ["block_10", "stage_1"]
    assert found(["stage/block_1/bias", "stage/block", "block"]) == found([]) == []
    state = {"batch_stats": {"stage": {"block_1": {"mean": 0}, "block_10": {"mean": 0}}}}
    assert leaves(in_layers(state, ["stage/block_1"], collections=True)) == [True, False]
    assert leaves(in_layers({"stem": {"mean": 0}, "head": {"mean": 0}}, ["stem"])) == [False, True]


def test_a_mask_has_the_shapes_of_the_parameters_and_a_merge_takes_each_array_from_one_side():
    mask = as_mask(HEAD, ORIGINAL.params)
    for keep, leaf in zip(*map(jax.tree.leaves, (mask, ORIGINAL.params)), strict=True):
        assert (keep.shape, keep.dtype) == (leaf.shape, bool)
    assert [leaf.all() for leaf in leaves(mask)] == [leaf.any() for leaf in leaves(mask)] == [True, True, False, False]
    other = jax.tree.map(lambda leaf: leaf + 7, ORIGINAL.params)
    merged = merge(HEAD, other, ORIGINAL.params)
    chex.assert_trees_all_equal(merged, {"hidden": ORIGINAL.params["hidden"], "head": other["head"]})


@pytest.mark.parametrize("kind", [CatastrophicForgetLastK, ExactUnlearnLastK, LayerNegation])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "lion"),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("batch_size", 0),
        ("max_passes", 0),
    ],
)
def test_impossible_settings_are_named(kind, name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        kind(**{name: value})


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4)(x))


class Nested(nn.Module):
    """Names of layers come again inside others, as linen gives them."""

    stem: bool

    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        x = Block()(nn.Dense(4)(x) if self.stem else x)
        return x, nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("method", "stem", "layers"),
    [
        (LayerNegation(), True, ("Dense_0", "Block_0", "Dense_1")),
        (CatastrophicForgetLastK(last_layers=1, learning_rate=0.3), False, ("Block_0", "Dense_0")),
    ],
)
def test_a_layers_name_inside_another_layer_is_not_that_layer(method, stem, layers):
    model = from_linen(Nested(stem), layers=layers)
    original, recorder = model.init(KEY, IMAGES.images), Recorder(IMAGES)
    method(model, original, SPLIT, key=KEY, loop=recorder)
    params = recorder.state.params if stem else take(recorder.state, recorder.phases(0)[0])[0].params
    np.testing.assert_array_equal(params["Block_0"]["Dense_0"]["kernel"], original.params["Block_0"]["Dense_0"]["kernel"])


def test_a_layer_that_the_network_does_not_have_is_named():
    model = from_function(init, apply, num_classes=3, layers=("hidden", "haed"))
    with pytest.raises(ValueError, match="has no parameters of haed; at the top there are hidden, head"):
        CatastrophicForgetLastK(last_layers=1)(model, ORIGINAL, SPLIT, key=KEY, loop=Recorder(IMAGES))
