"""Deep contrastive unlearning: its updates against NumPy float64, where it acts, and what it does to the head."""

import dataclasses
import re
from collections import OrderedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import (
    CLASS_SPLIT,
    CLASSES,
    KEY,
    LOOP,
    MODEL,
    ORIGINAL,
    SPLIT,
    X,
    Y,
    assert_follows,
    combine,
    counted,
    cross_entropy_gradient,
    float64,
    forward,
    log_softmax,
    record,
)

from cujax.adapters import from_function, from_linen
from cujax.data.batches import DeviceImages
from cujax.methods import DeepContrastiveUnlearning
from cujax.methods.deep_contrastive import features, layers_above
from cujax.model import Outputs, Variables
from cujax.networks.cnn import CNN
from cujax.networks.resnet import ResNet
from cujax.training.supervised import fresh_variables

METHOD = DeepContrastiveUnlearning(
    learning_rate=0.3, batch_size=2, retain_batch_size=3, retain_draws=2, unlearn_weight=0.7, temperature=0.5
)


def apply_with_taps(params, model_state, images, *, train, key):
    (embedding, logits), model_state = tiny.apply(params, model_state, images, train=train, key=key)
    x = images.reshape(len(images), -1)
    return Outputs(x, logits, OrderedDict(first=x, second=embedding)), model_state


# Its embedding does not depend on the parameters; its last tap is what the others' embedding is.
TAPPED = from_function(tiny.init, apply_with_taps, num_classes=CLASSES, layers=("hidden", "head"))


@pytest.fixture(autouse=True)
def tapped(monkeypatch):
    monkeypatch.setattr(tiny, "MODEL", TAPPED)


# A layer lies between the last tap and the head.
def init_three(key, images):
    keys = jax.random.split(key)
    params, model_state = tiny.init(keys[0], images)
    return params | {"middle": {"kernel": jax.random.normal(keys[1], (5, 5))}}, model_state


def apply_three(params, model_state, images, *, train, key):
    x = images.reshape(len(images), -1)
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    embedding = jnp.tanh(hidden @ params["middle"]["kernel"])
    logits = embedding @ params["head"]["kernel"] + params["head"]["bias"][None]
    return Outputs(embedding, logits, OrderedDict(hidden=hidden)), model_state


THREE = from_function(init_three, apply_three, num_classes=CLASSES, layers=("hidden", "middle", "head"))
THREE_ORIGINAL = Variables(*init_three(jax.random.key(0), None))


def loss(params, batch, fixed, weight):
    """The objective in float64, anchor by anchor; retain features are those of the parameters `fixed`."""
    forget, retain = counted(batch.forget), counted(batch.retain)

    def unit(params, rows):
        embeddings, _ = forward(params, X[rows])
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    z, others = unit(params, forget), unit(fixed, retain)
    losses = []
    for i, row in enumerate(forget):
        positives = [z[i] @ z[j] / 0.5 for j in range(len(forget)) if j != i and Y[forget[j]] == Y[row]]
        positives += [z[i] @ other / 0.5 for other, label in zip(others, Y[retain], strict=True) if label == Y[row]]
        negatives = [z[i] @ other / 0.5 for other, label in zip(others, Y[retain], strict=True) if label != Y[row]]
        push = np.log(np.sum(np.exp(positives))) if positives else 0.0
        losses.append(0.5 * push - np.log(np.sum(np.exp(negatives))))
    assert losses
    cross_entropy = -log_softmax(forward(params, X[retain])[1])[np.arange(len(retain)), Y[retain]].mean()
    return weight * np.mean(losses) + cross_entropy


def slopes(params, batch, weight=0.7):
    """Its gradient, by central differences."""
    leaves, structure = jax.tree.flatten(params)
    gradients = [np.zeros_like(leaf) for leaf in leaves]
    for number, leaf in enumerate(leaves):
        for place in np.ndindex(leaf.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [other.copy() for other in leaves]
                moved[number][place] += step
                ends.append(loss(jax.tree.unflatten(structure, moved), batch, params, weight))
            gradients[number][place] = (ends[0] - ends[1]) / 2e-6
    return jax.tree.unflatten(structure, gradients)


@pytest.mark.parametrize("split", [SPLIT, CLASS_SPLIT], ids=["samples", "class"])
def test_every_update_agrees_with_float64(split):
    assert_follows(METHOD, lambda params, batch, step: slopes(params, batch), record(METHOD, split))


@pytest.mark.parametrize(("number", "weight"), [(1, 0.7 * 3 / 4), (3, 0.7 / 4)])
def test_the_contrastive_loss_counts_less_from_pass_to_pass(number, weight):
    assert_follows(METHOD, lambda params, batch, step: slopes(params, batch, weight), record(METHOD), number=number)


def test_a_step_without_the_contrastive_loss_trains_on_the_retain_batch():
    method = dataclasses.replace(METHOD, unlearn_weight=0.0)

    def gradient(params, batch, step):
        retain = counted(batch.retain)
        return combine((1, cross_entropy_gradient(params, X[retain], Y[retain])))

    assert_follows(method, gradient, record(method))


def test_only_the_heads_column_of_a_forgotten_class_is_set_to_zero_and_none_where_samples_are_forgotten():
    of_class, of_samples = record(METHOD, CLASS_SPLIT), record(METHOD, SPLIT)
    chex.assert_trees_all_equal(of_samples.state.params, ORIGINAL.params)
    expected = float64(ORIGINAL.params)
    expected["head"]["kernel"][:, 0] = 0
    expected["head"]["bias"][0] = 0
    chex.assert_trees_all_equal(float64(of_class.state.params), expected)


def test_of_a_class_the_layers_above_the_features_start_anew_and_nothing_where_samples_are_forgotten(monkeypatch):
    monkeypatch.setattr(tiny, "MODEL", THREE)
    of_class, again, of_samples = (
        record(METHOD, split, THREE_ORIGINAL, key).state.params
        for split, key in ((CLASS_SPLIT, KEY), (CLASS_SPLIT, jax.random.key(4)), (SPLIT, KEY))
    )
    chex.assert_trees_all_equal(of_samples, THREE_ORIGINAL.params)
    chex.assert_trees_all_equal(of_class["hidden"], THREE_ORIGINAL.params["hidden"])
    chex.assert_trees_all_equal(of_class["head"]["kernel"][:, 1:], THREE_ORIGINAL.params["head"]["kernel"][:, 1:])
    assert not of_class["head"]["kernel"][:, 0].any()
    for one, other in ((of_class, THREE_ORIGINAL.params), (of_class, again)):
        assert np.abs(one["middle"]["kernel"] - other["middle"]["kernel"]).min() > 1e-4


@pytest.mark.parametrize(
    ("network", "above"),
    [
        (CNN(CLASSES, features=(8, 8)), ["embedding"]),
        (ResNet(CLASSES, stage_sizes=(1,), width=8), ["embedding"]),
        (ResNet(CLASSES, stage_sizes=(1,), width=8, head="linear"), []),
    ],
)
def test_the_layers_above_the_features_are_found_by_what_a_gradient_reaches(network, above):
    model = from_linen(network)
    images = DeviceImages(jnp.zeros((1, 8, 8, 3)), jnp.zeros(1, jnp.int32), jnp.zeros(3), jnp.ones(3))
    assert layers_above(model, fresh_variables(model, images, KEY), images) == above


def test_the_run_is_held_against_the_original_and_falls_back_to_it():
    """Not to the one whose head has lost a column."""
    strict = dataclasses.replace(LOOP, retain_tolerance=-2.0)
    result = METHOD(TAPPED, ORIGINAL, CLASS_SPLIT, key=KEY, loop=strict)
    assert result.history.stop_rule == "retain_tolerance"
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)
    answers = forward(float64(ORIGINAL.params), X)[1].argmax(1)
    held_out = CLASS_SPLIT.validation.indices[Y[CLASS_SPLIT.validation.indices] == 0]
    before = max(np.mean(answers[rows] == Y[rows]) for rows in (CLASS_SPLIT.forget.indices, held_out))
    assert result.history.checks[0].forget_accuracy == pytest.approx(before)


def test_it_makes_all_its_passes():
    result = METHOD(TAPPED, ORIGINAL, CLASS_SPLIT, key=KEY, loop=dataclasses.replace(LOOP, retain_tolerance=2.0))
    assert len(result.history.checks) == 1 + METHOD.max_passes
    assert result.history.cost.steps == result.history.step == METHOD.max_passes * 2 * 2


def test_features_of_more_axes_are_one_vector_each():
    maps = jnp.arange(24.0).reshape(2, 3, 2, 2)
    assert features(Outputs(maps[:, :, 0, 0], maps[:, :, 0, 0], OrderedDict(maps=maps))).shape == (2, 12)


def test_a_network_without_taps_is_told_that_its_embedding_is_acted_on(monkeypatch):
    monkeypatch.setattr(tiny, "MODEL", MODEL)
    with pytest.warns(UserWarning, match="no features below its embedding"):
        recorder = record(METHOD)
    assert_follows(METHOD, lambda params, batch, step: slopes(params, batch), recorder)


def test_a_network_that_does_not_name_its_layers_is_told_how_to():
    nameless = from_function(tiny.init, apply_with_taps, num_classes=CLASSES)
    with pytest.raises(ValueError, match=re.escape('give layers=(..., "HEAD")')):
        METHOD(nameless, ORIGINAL, CLASS_SPLIT, key=KEY, loop=LOOP)


def test_a_retain_batch_larger_than_the_retain_set_is_named():
    with pytest.raises(ValueError, match="retain_batch_size is 7, but the retain set has only 6 images"):
        dataclasses.replace(METHOD, retain_batch_size=7).check(SPLIT)


def test_another_setting_compiles_nothing_anew():
    for number, changes in enumerate(({}, {"unlearn_weight": 0.1, "temperature": 0.9, "push_weight": 1.0})):
        recorder = record(dataclasses.replace(METHOD, **changes))
        if number:
            tiny.MODES.clear()
        for phase in recorder.phases(number):
            tiny.take(recorder.state, phase, [next(iter(phase.batches))])
    assert True not in tiny.MODES


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", 0.0, "temperature must be positive"),
        ("push_weight", -1.0, "push_weight must not be negative"),
        ("unlearn_weight", -0.1, "unlearn_weight must not be negative"),
        ("retain_draws", 0, "retain_draws must be at least 1"),
    ],
)
def test_settings_out_of_range_are_named(setting, value, message):
    with pytest.raises(ValueError, match=message):
        DeepContrastiveUnlearning(**{setting: value})
