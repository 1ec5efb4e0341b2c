"""flax.linen modules as they are found: flax's ImageNet example, several streams, growing collections, transforms, boxes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cujax import Batch, ContrastiveUnlearning, Examples, UnlearnState, from_linen, pmap_unlearn_step, unlearn_step

IMAGES = jax.random.normal(jax.random.key(7), (16, 8, 8, 1))
SETTINGS = ContrastiveUnlearning()
ModuleDef = Any


class ResNetBlock(nn.Module):
    filters: int
    conv: ModuleDef
    norm: ModuleDef
    act: Callable
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = self.norm()(y)
        y = self.act(y)
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return self.act(residual + y)


class ResNet(nn.Module):
    """The structure of flax/examples/imagenet/models.py."""

    stage_sizes: Sequence[int]
    block_cls: ModuleDef
    num_classes: int
    num_filters: int = 64
    dtype: Any = jnp.float32
    act: Callable = nn.relu
    conv: ModuleDef = nn.Conv

    @nn.compact
    def __call__(self, x, train: bool = True):
        conv = functools.partial(self.conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name="batch",
        )
        x = conv(self.num_filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = norm(name="bn_init")(x)
        x = nn.relu(x)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, block_size in enumerate(self.stage_sizes):
            for j in range(block_size):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = self.block_cls(self.num_filters * 2**i, strides=strides, conv=conv, norm=norm, act=self.act)(x)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return jnp.asarray(x, self.dtype)


def resnet(**others):
    return ResNet(stage_sizes=[1, 1], block_cls=ResNetBlock, num_classes=3, num_filters=4, **others)


def batch(images=IMAGES):
    labels = jnp.arange(len(images)) % 3
    half = len(images) // 2
    return Batch(Examples(images[:half], labels[:half]), Examples(images[half:], labels[half:]))


def test_fields_are_compared_by_value():
    assert from_linen(resnet(), embedding="Dense_0") == from_linen(resnet(), embedding="Dense_0")
    with_partial = [
        from_linen(resnet(conv=functools.partial(nn.Conv, precision=p)), embedding="Dense_0") for p in ("high", "high", None)
    ]
    assert with_partial[0] == with_partial[1] != with_partial[2]
    assert hash(with_partial[0]) == hash(with_partial[1])
    assert from_linen(resnet(), embedding="Dense_0") != from_linen(resnet(dtype=jnp.bfloat16), embedding="Dense_0")


class Fields(nn.Module):
    sizes: Any

    @nn.compact
    def __call__(self, x):
        return x.reshape(len(x), -1), nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("value", "other"),
    [([1, [2]], [1, [3]]), ({"a": [1]}, {"a": [2]}), (np.zeros(2), np.ones(2)), ([1], [True]), ([1], (1,))],
    ids=str,
)
def test_lists_dicts_and_arrays_are_values(value, other):
    import copy

    assert from_linen(Fields(value)) == from_linen(Fields(copy.deepcopy(value)))
    assert from_linen(Fields(value)) != from_linen(Fields(other))


def test_a_layer_that_recurs_is_not_two_layers_like_it():
    layer = nn.Dense(16)
    shared, twice = nn.Sequential([layer, layer]), nn.Sequential([nn.Dense(16), nn.Dense(16)])
    assert from_linen(shared, embedding="layers_0") != from_linen(twice, embedding="layers_0")


def test_a_hard_wired_axis_name_means_the_batch_where_no_axis_is_mapped():
    model = from_linen(resnet(), embedding="Dense_0")
    variables = model.init(jax.random.key(0), IMAGES)
    outputs, state = jax.jit(functools.partial(model.apply, train=True))(*variables, IMAGES)
    kernel = np.asarray(variables.params["conv_init"]["kernel"])
    first = lax.conv_general_dilated(
        IMAGES, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    expected = 0.1 * np.asarray(first, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(state["batch_stats"]["bn_init"]["mean"], expected, rtol=1e-4, atol=1e-6)
    head = variables.params["Dense_0"]
    np.testing.assert_allclose(outputs.logits, outputs.embedding @ head["kernel"] + head["bias"][None], rtol=1e-4, atol=1e-5)


def test_the_example_unlearns_and_pmapped_devices_agree_with_one():
    model, tx = from_linen(resnet(), embedding="Dense_0"), SETTINGS.optimizer()
    state = UnlearnState.create(*model.init(jax.random.key(0), IMAGES), tx, jax.random.key(1))
    by_device = jax.tree.map(lambda rows: rows.reshape(4, -1, *rows.shape[1:]), batch())
    over_devices, _ = pmap_unlearn_step(model, tx, SETTINGS, axis_name="devices")(state, by_device)
    alone, metrics = unlearn_step(state, batch(), model=model, tx=tx, config=SETTINGS)
    assert metrics["finite"]
    chex.assert_trees_all_close(alone.model_state, over_devices.model_state, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(alone.params, over_devices.params, rtol=1e-3, atol=1e-5)


def test_an_axis_that_the_caller_maps_is_averaged_over():
    model = from_linen(resnet(), embedding="Dense_0")
    variables = model.init(jax.random.key(0), IMAGES)

    def statistics(images):
        return model.apply(*variables, images, train=True)[1]["batch_stats"]["bn_init"]

    mapped = jax.vmap(statistics, axis_name="batch")(IMAGES.reshape(4, 4, 8, 8, 1))
    for name, whole in statistics(IMAGES).items():
        for device in range(4):
            np.testing.assert_allclose(mapped[name][device], whole, rtol=1e-4, atol=1e-6)


class Streams(nn.Module):
    """Dropout, and a drop of whole rows with a stream of its own."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1) + 3)
        if train:
            x = x * jax.random.bernoulli(self.make_rng("drop_path"), 0.5, (len(x), 1))
        return x, nn.Dense(3)(x)


def test_streams_are_the_key_folded_with_their_names():
    model = from_linen(Streams(), rng_streams=("dropout", "drop_path"))
    variables = model.init(jax.random.key(0), IMAGES)
    keys = map(jax.random.key, (1, 1, 2))
    first, again, other = (model.apply(*variables, IMAGES, train=True, key=key)[0].embedding for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    alone = from_linen(Streams(), rng_streams=["drop_path"])
    with pytest.raises(Exception, match="dropout"):
        alone.apply(*variables, IMAGES, train=True, key=jax.random.key(1))
    # Rows that were not dropped have the dropout of the key itself.
    dropped = np.asarray(first == 0).all(1)
    assert 0 < dropped.sum() < 16

    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1) + 3)
            return x, nn.Dense(3)(x)

    by_key = from_linen(Dropped()).apply(*variables, IMAGES, train=True, key=jax.random.key(1))[0].embedding
    np.testing.assert_array_equal(first[~dropped], by_key[~dropped])


class Sowing(nn.Module):
    """Sows to three collections, keeps a count in a fourth, and has a fifth that only a call makes."""

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(len(x), -1)
        self.sow("intermediates", "features", x)
        self.sow("losses", "l2", jnp.sum(x**2))
        self.sow("last", "features", x, reduce_fn=lambda old, new: new, init_fn=lambda: 0.0)
        count = self.variable("counts", "calls", lambda: jnp.int32(0))
        if train:
            count.value += 1
        if not self.is_initializing():
            self.variable("cache", "features", lambda: x)
        return x, nn.Dense(3)(x)


def test_collections_that_grow_are_no_model_state():
    model = from_linen(Sowing())
    params, state = model.init(jax.random.key(0), IMAGES)
    assert list(state) == ["counts"]
    for calls in range(1, 4):
        _, state = jax.jit(functools.partial(model.apply, train=True))(params, state, IMAGES)
        assert state == {"counts": {"calls": calls}}
    _, state = model.apply(params, state, IMAGES, train=False)
    assert state == {"counts": {"calls": 3}}


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(64)(x)), None


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="last")(nn.tanh(nn.Dense(5)(x)))


class Transformed(nn.Module):
    """A scanned trunk, and a head that is traced inside remat and jit."""

    wrap: Any = None
    wrap_last: Any = None

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        trunk = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = trunk(name="trunk")(x, None)
        return (Head if self.wrap is None else self.wrap(Head))(name="head")(x)


@pytest.mark.parametrize("wrap", [nn.remat, nn.jit, lambda head: nn.remat(nn.jit(head))], ids=["remat", "jit", "both"])
@pytest.mark.parametrize("name", ["head", "head/last"])
def test_a_named_embedding_may_lie_within_a_transform(wrap, name):
    plain, wrapped = from_linen(Transformed(), embedding=name), from_linen(Transformed(wrap), embedding=name)
    variables = plain.init(jax.random.key(0), IMAGES)
    chex.assert_trees_all_equal_shapes(wrapped.init(jax.random.key(0), IMAGES), variables)

    def loss(model, params):
        outputs, _ = model.apply(params, {}, IMAGES, train=True)
        return jnp.sum(outputs.embedding**2) + jnp.sum(outputs.logits**2), outputs

    (expected, outputs), gradients = jax.value_and_grad(functools.partial(loss, plain), has_aux=True)(variables.params)
    found = jax.jit(jax.value_and_grad(functools.partial(loss, wrapped), has_aux=True))(variables.params)
    assert outputs.embedding.shape == (16, 64 if name == "head" else 5)
    chex.assert_trees_all_close(found, ((expected, outputs), gradients), rtol=1e-4, atol=1e-4)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, kernel_init=self.boxed(nn.initializers.lecun_normal()))
        return dense(3, name="head")(nn.relu(dense(6)(x.reshape(len(x), -1))))

    def boxed(self, init):
        return nn.with_partitioning(init, (None, "model"))


class LogicallyBoxed(Boxed):
    def boxed(self, init):
        return nn.with_logical_partitioning(init, ("in", "out"))


@pytest.mark.parametrize("module", [Boxed(), LogicallyBoxed()])
def test_partitioned_parameters_are_plain_arrays_here(module):
    model, tx = from_linen(module, embedding="head"), SETTINGS.optimizer()
    variables = model.init(jax.random.key(0), IMAGES)
    boxed = module.init(jax.random.key(0), IMAGES)["params"]
    chex.assert_trees_all_close(variables.params, nn.meta.unbox(boxed), rtol=1e-6)
    assert isinstance(variables.params["head"]["kernel"], jax.Array)
    np.testing.assert_allclose(
        model.apply(*variables, IMAGES, train=False)[0].logits, module.apply({"params": boxed}, IMAGES), rtol=1e-5, atol=1e-6
    )
    state = UnlearnState.create(*variables, tx, jax.random.key(1))
    assert unlearn_step(state, batch(), model=model, tx=tx, config=SETTINGS)[1]["finite"]


class TrainField(nn.Module):
    train: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train, name="norm")(x.reshape(len(x), -1))
        return x, nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.train)(x))


class DeterministicField(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=self.deterministic, name="norm")(x.reshape(len(x), -1))
        return x, nn.Dense(3)(nn.Dropout(0.5, deterministic=self.deterministic)(x))


BY_FIELD = [from_linen(TrainField()), from_linen(DeterministicField(), train_argument="deterministic")]


@pytest.mark.parametrize("model", BY_FIELD)
def test_a_field_may_be_the_mode(model):
    variables = model.init(jax.random.key(0), IMAGES)
    flat = np.asarray(IMAGES, np.float64).reshape(16, -1)
    still, kept = model.apply(*variables, IMAGES, train=False)
    np.testing.assert_allclose(still.embedding, flat / np.sqrt(1 + 1e-5), rtol=1e-5)
    chex.assert_trees_all_equal(kept, variables.model_state)
    moving, state = model.apply(*variables, IMAGES, train=True, key=jax.random.key(0))
    np.testing.assert_allclose(moving.embedding, (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state["batch_stats"]["norm"]["mean"], 0.01 * flat.mean(0), rtol=1e-4, atol=1e-7)
