"""A frozen backbone keeps its bits and its statistics, in training and by every method."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cujax import (
    Batch,
    ContrastiveUnlearning,
    Examples,
    Loop,
    Split,
    UnlearnState,
    Variables,
    from_function,
    from_linen,
    from_nnx,
    unlearn_step,
)
from cujax.data.batches import DeviceImages
from cujax.data.requests import Part
from cujax.methods.registry import METHODS
from cujax.methods.retrain import Retrain
from cujax.training.supervised import Trainer, Training, make_optimizer, make_train_step

IMAGES = jax.random.normal(jax.random.key(7), (24, 4, 4, 1))
LABELS = jnp.arange(24) % 3


class Net(nn.Module):
    layers = ("backbone", "head")

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(3, name="head")(Backbone(name="backbone")(images, train))


class Backbone(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(6, name="dense")(images.reshape(len(images), -1))
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.backbone = NnxBackbone(rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        return self.head(self.backbone(images))


class NnxBackbone(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(16, 6, rngs=rngs), nnx.BatchNorm(6, momentum=0.5, rngs=rngs)

    def __call__(self, images):
        return nnx.relu(self.norm(self.dense(images.reshape(len(images), -1))))


def head_alone(path):
    return path.startswith("head/")


def head_and_statistics(path):
    return path.startswith("head/") or path.endswith(("mean", "var"))


FUNCTIONS_OF = from_linen(Net(), embedding="head")


def init(key, images):
    params, state = FUNCTIONS_OF._init(key, images)
    return params, state["batch_stats"]


def apply(params, model_state, images, *, train, key):
    outputs, state = FUNCTIONS_OF.apply(params, {"batch_stats": model_state}, images, train=train, key=key)
    return (outputs.embedding, outputs.logits), state["batch_stats"]


def models(trainable):
    return {
        "linen": from_linen(Net(), embedding="head", trainable=trainable),
        "nnx": from_nnx(NnxNet, embedding="head", layers=("backbone", "head"), trainable=trainable),
        "function": from_function(init, apply, layers=("backbone", "head"), trainable=trainable),
    }


def started(model):
    params, state = model.init(jax.random.key(0), IMAGES)
    return Variables(params, jax.tree.map(lambda leaf: leaf + 0.5, state))  # unlike any initialisation


def assert_kept(after, before, *, statistics=True):
    for name in ("dense", "norm"):
        kept, was = (jax.tree.leaves(variables.params["backbone"][name]) for variables in (after, before))
        for one, other in zip(kept, was, strict=True):
            np.testing.assert_array_equal(one, other)
    pairs = zip(*(jax.tree.leaves(variables.model_state) for variables in (after, before)), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs) == statistics


def moved(after, before):
    return not np.array_equal(after.params["head"]["kernel"], before.params["head"]["kernel"])


@pytest.mark.parametrize("kind", ["linen", "nnx", "function"])
@pytest.mark.parametrize("batch_norm", ["joint", "retain_only"])
def test_contrastive_steps_with_weight_decay_keep_a_frozen_backbone(kind, batch_norm):
    model, config = models(head_alone)[kind], ContrastiveUnlearning(batch_norm=batch_norm)
    before, tx = started(model), optax.adamw(0.1, weight_decay=0.5)
    state = UnlearnState.create(*before, tx, jax.random.key(1))
    batch = Batch(Examples(IMAGES[:12], LABELS[:12]), Examples(IMAGES[12:], LABELS[12:]))
    for _ in range(3):
        state, metrics = unlearn_step(state, batch, model=model, tx=tx, config=config)
        assert metrics["finite"]
    assert_kept(state, before)
    assert moved(state, before)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_frozen_layer_normalises_by_its_running_statistics_in_both_modes(kind):
    model = models(head_alone)[kind]
    variables = started(model)
    still, moving = (model.apply(*variables, IMAGES, train=train)[0].embedding for train in (False, True))
    np.testing.assert_allclose(still, moving, rtol=1e-6)


@pytest.mark.parametrize("kind", ["linen", "nnx", "function"])
def test_statistics_move_where_they_are_trainable(kind):
    model = models(head_and_statistics)[kind]
    before, tx = started(model), make_optimizer("sgd", 0.1, weight_decay=0.1)
    state = UnlearnState.create(*before, tx, jax.random.key(1))
    after, _ = jax.jit(make_train_step(model, tx))(state, Examples(IMAGES, LABELS))
    assert_kept(after, before, statistics=False)
    dense = before.params["backbone"]["dense"]
    mean = (np.asarray(IMAGES.reshape(24, -1)) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])).mean(0)
    found = dict(_leaves(after.model_state))["mean"]
    np.testing.assert_allclose(found, 0.5 * 0.5 + 0.5 * mean, rtol=1e-4, atol=1e-5)


def _leaves(tree):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2], leaf


def test_no_predicate_and_one_that_freezes_nothing_give_the_same_bits():
    tx = make_optimizer("sgd", 0.1, weight_decay=0.1)
    found = []
    for trainable in (None, bool):
        model = models(trainable)["linen"]
        state = UnlearnState.create(*started(model), tx, jax.random.key(1))
        found.append(jax.jit(make_train_step(model, tx))(state, Examples(IMAGES, LABELS)))
    for one, other in zip(jax.tree.leaves(found[0][0].params), jax.tree.leaves(found[1][0].params), strict=True):
        np.testing.assert_array_equal(one, other)


def part(rows):
    rows = np.array(rows, np.int32)
    return Part(rows, rows.astype(str))


STORED = DeviceImages(IMAGES, LABELS.astype(jnp.int32), jnp.zeros(1), jnp.ones(1))
CLASS_SPLIT = Split(
    part([0, 3, 6, 9]), part([1, 2, 4, 5, 7, 8, 10, 11, 13, 14]), part([12, 15, 16, 17]), part([]), part([]), (0,), (0,)
)
SAMPLES_SPLIT = Split(
    part([0, 1, 2]), part([3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14]), part([12, 15, 16, 17]), part([]), part([]), (), ()
)


def set_up(kind):
    """A method with few passes, where it has passes."""
    fields = getattr(kind, "__dataclass_fields__", {})
    small = {"max_passes": 1, "retain_batch_size": 8, "last_layers": 1}
    options = {name: value for name, value in small.items() if name in fields}
    return kind(training=Training(epochs=1, batch_size=4), **options) if "training" in fields else kind(**options)


@pytest.mark.filterwarnings("ignore:the network returns no features below its embedding")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_a_frozen_backbone(name):
    model = models(head_alone)["linen"]
    before = started(model)
    method = set_up(METHODS[name])
    split = SAMPLES_SPLIT if name == "margin_matching" else CLASS_SPLIT
    result = method(model, before, split, key=jax.random.key(2), loop=Loop(STORED, retain_tolerance=1.0))
    assert_kept(result.variables, before)


def test_training_anew_takes_what_is_frozen_from_a_network_that_has_it():
    model = models(head_alone)["linen"]
    before, trainer = started(model), Trainer(Training(epochs=2, batch_size=8, weight_decay=0.1), STORED)
    with pytest.raises(ValueError, match=r"freezes parameters .*random initialisation.*--original"):
        trainer.train(model, np.arange(24), jax.random.key(0))
    trained = trainer.train(model, np.arange(24), jax.random.key(5), frozen=before)
    assert_kept(trained.variables, before)
    assert moved(trained.variables, before)
    retrained = Retrain(trainer.recipe)(model, before, CLASS_SPLIT, key=jax.random.key(2), loop=Loop(STORED))
    assert_kept(retrained.variables, before)
