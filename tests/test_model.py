"""The contract of a Model, for linen modules, nnx modules and plain functions."""

import functools
from collections import OrderedDict

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cujax.adapters import from_function, from_linen, from_nnx
from cujax.model import Outputs, abstract_variables, compute_embeddings

IMAGES = jax.random.normal(jax.random.key(7), (8, 4, 4, 1))


def flat(images):
    return images.reshape(images.shape[0], -1)


class Pair(nn.Module):
    """An (embedding, logits) pair; alike in both modes."""

    @nn.compact
    def __call__(self, images):
        embedding = nn.relu(nn.Dense(6, name="hidden")(flat(images)))
        return embedding, nn.Dense(3, name="head")(embedding)


class Normed(nn.Module):
    """Logits alone, with batch statistics and dropout."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(6)(flat(images))
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="head")(x)


class WithoutAxisName(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train)(flat(images))
        return x, nn.Dense(3)(x)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, images, deterministic):
        x = nn.Dropout(0.5, deterministic=deterministic)(flat(images))
        return x, nn.Dense(3)(x)


class RunningAverage(nn.Module):
    @nn.compact
    def __call__(self, images, *, use_running_average):
        x = nn.BatchNorm(use_running_average=use_running_average, name="norm")(flat(images))
        return x, nn.Dense(3)(x)


class Scaled(nn.Module):
    """Takes something else than a mode beside the images."""

    @nn.compact
    def __call__(self, images, scale=2.0):
        x = scale * flat(images)
        return x, nn.Dense(3)(x)


class AnyArguments(nn.Module):
    """Hands its keywords on."""

    @nn.compact
    def __call__(self, images, **kwargs):
        return Normed(name="inner")(images, **kwargs)


class Repeated(nn.Module):
    @nn.compact
    def __call__(self, images):
        head = nn.Dense(16, name="head")
        return head(head(flat(images)))


class ByKeyword(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3, name="head")(inputs=flat(images))


class Nested(nn.Module):
    @nn.compact
    def __call__(self, images):
        class Classifier(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(3, name="last")(nn.relu(nn.Dense(5, name="first")(x)))

        return Classifier(name="classifier")(flat(images))


class Tapped(nn.Module):
    @nn.compact
    def __call__(self, images):
        z = flat(images)
        return Outputs(z, nn.Dense(3)(z), OrderedDict(zebra=z, ape=2 * z))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(16, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(12)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        x = self.dropout(self.norm(self.first(flat(images))))
        for block in self.blocks:
            x = x + nnx.tanh(block(x))
        return x, self.head(x)


def make(model):
    return model, model.init(jax.random.key(0), IMAGES)


def test_a_pair_becomes_outputs():
    model, variables = make(from_linen(Pair()))
    outputs, state = model.apply(*variables, IMAGES, train=True)
    hidden, head = variables.params["hidden"], variables.params["head"]
    embedding = np.maximum(flat(IMAGES) @ hidden["kernel"] + hidden["bias"][None], 0)
    np.testing.assert_allclose(outputs.embedding, embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, embedding @ head["kernel"] + head["bias"][None], rtol=1e-4, atol=1e-5)
    assert outputs.taps == OrderedDict()
    assert state == {} == variables.model_state


@pytest.mark.parametrize(("module", "name", "width"), [(Normed(), "head", 6), (Nested(), "classifier/last", 5)])
def test_the_input_of_a_named_submodule_is_the_embedding(module, name, width):
    model, variables = make(from_linen(module, embedding=name))
    outputs, _ = model.apply(*variables, IMAGES, train=False)
    assert outputs.embedding.shape == (8, width)
    head = functools.reduce(lambda tree, key: tree[key], name.split("/"), variables.params)
    logits = outputs.embedding @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-6)


def test_a_wrong_submodule_is_told_with_those_that_are_called():
    with pytest.raises(ValueError, match=r"embedding='haed'.*'classifier/first'.*'classifier/last'"):
        make(from_linen(Nested(), embedding="haed"))


def test_a_submodule_called_twice_is_no_embedding():
    with pytest.raises(ValueError, match=r"embedding='head' must name a submodule called once, but it is called 2 times"):
        make(from_linen(Repeated(), embedding="head"))


def test_the_input_of_a_submodule_called_by_keyword_is_the_embedding():
    model, variables = make(from_linen(ByKeyword(), embedding="head"))
    np.testing.assert_array_equal(model.apply(*variables, IMAGES, train=False)[0].embedding, flat(IMAGES))


def test_a_spatial_embedding_is_flattened():
    class Convolutional(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Conv(3, (4, 4), padding="VALID", name="head")(images)[:, 0, 0]

    model, variables = make(from_linen(Convolutional(), embedding="head"))
    np.testing.assert_array_equal(model.apply(*variables, IMAGES, train=False)[0].embedding, flat(IMAGES))


def test_outputs_pass_as_they_are():
    model, variables = make(from_linen(Tapped()))
    outputs, _ = model.apply(*variables, IMAGES, train=False)
    assert isinstance(outputs, Outputs)
    np.testing.assert_array_equal(outputs.embedding, flat(IMAGES))
    np.testing.assert_array_equal(outputs.taps["ape"], 2 * flat(IMAGES))


def test_a_named_embedding_that_is_no_submodule_is_refused_whatever_is_returned():
    with pytest.raises(ValueError, match=r"embedding='nowhere' must name a submodule called once"):
        make(from_linen(Tapped(), embedding="nowhere"))


def test_logits_alone_without_a_named_embedding_are_refused():
    with pytest.raises(ValueError, match=r"must return cujax.Outputs or an .*embedding="):
        make(from_linen(Nested()))


def test_deterministic_is_the_opposite_of_train():
    model, variables = make(from_linen(Deterministic(), train_argument="deterministic"))
    still, _ = model.apply(*variables, IMAGES, train=False)
    np.testing.assert_array_equal(still.embedding, flat(IMAGES))
    moving, _ = model.apply(*variables, IMAGES, train=True, key=jax.random.key(1))
    assert (np.asarray(moving.embedding) == 0).any()


def test_use_running_average_is_the_opposite_of_train():
    model, variables = make(from_linen(RunningAverage(), train_argument="use_running_average"))
    running, kept = model.apply(*variables, IMAGES, train=False)
    np.testing.assert_allclose(running.embedding, flat(IMAGES) / np.sqrt(1 + 1e-5), rtol=1e-5)
    chex.assert_trees_all_equal(kept, variables.model_state)
    batch_wise, moved = model.apply(*variables, IMAGES, train=True)
    np.testing.assert_allclose(np.mean(batch_wise.embedding, axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["norm"]["mean"], 0.01 * flat(IMAGES).mean(axis=0), rtol=1e-4, atol=1e-7)


def test_no_mode_argument_leaves_other_arguments_at_their_defaults():
    model, variables = make(from_linen(Scaled(), train_argument=None))
    for train in (False, True):
        outputs, _ = model.apply(*variables, IMAGES, train=train)
        np.testing.assert_array_equal(outputs.embedding, 2 * flat(IMAGES))


def test_a_module_of_any_keywords_is_given_the_mode():
    model, variables = make(from_linen(AnyArguments(), embedding="inner/head"))
    still, moving = (
        model.apply(*variables, IMAGES, train=train, key=jax.random.key(1))[0].embedding for train in (False, True)
    )
    assert (np.asarray(still) != 0).all()
    assert (np.asarray(moving) == 0).any()


class Dropping(nn.Module):
    """A first layer that has a mode."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dropout(0.5, deterministic=not train)(flat(images) + 1)


def test_a_sequence_whose_first_layer_has_no_mode_is_given_none():
    sequence = nn.Sequential([flat, nn.Dense(6), nn.relu, nn.Sequential([nn.Dense(3)])])
    model, variables = make(from_linen(sequence, embedding="layers_3"))
    assert model.num_classes == 3
    assert model.layers == ()
    first = variables.params["layers_1"]
    hidden = nn.relu(flat(IMAGES) @ first["kernel"] + first["bias"][None])
    for train in (False, True):
        outputs, _ = model.apply(*variables, IMAGES, train=train, key=jax.random.key(0))
        np.testing.assert_allclose(outputs.embedding, hidden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_a_sequence_whose_first_layer_has_a_mode_is_given_it(nested):
    first = nn.Sequential([Dropping()]) if nested else Dropping()
    model, variables = make(from_linen(nn.Sequential([first, nn.Dense(3)]), embedding="layers_1"))
    still, moving = (model.apply(*variables, IMAGES, train=t, key=jax.random.key(1))[0].embedding for t in (False, True))
    np.testing.assert_allclose(still, flat(IMAGES) + 1, rtol=1e-6)
    assert (np.asarray(moving) == 0).any()


MAKERS = {
    "linen": lambda layers: from_linen(Pair(), layers=layers),
    "nnx": lambda layers: from_nnx(NnxNet, layers=layers),
    "function": lambda layers: from_function(linear_init, linear_apply, layers=layers),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_layers_are_names_and_one_name_is_not_its_letters(maker):
    assert MAKERS[maker]("head").layers == ("head",)
    assert MAKERS[maker](["hidden", "head"]).layers == ("hidden", "head")
    with pytest.raises(ValueError, match=r"layers must be names.*\(2, 3\)"):
        MAKERS[maker]((2, 3))


@pytest.mark.parametrize(
    ("own", "expected"), [("head", ("head",)), (["hidden", "head"], ("hidden", "head")), ((32, 64), ()), (3, ())]
)
def test_a_modules_own_layers_count_only_where_they_are_names(own, expected):
    class Layered(Pair):
        @property
        def layers(self):
            return own

    assert from_linen(Layered()).layers == expected


@pytest.mark.parametrize(
    ("module", "name"), [(Deterministic(), "train"), (Normed(), "training"), (Scaled(), "train")], ids=str
)
def test_an_unknown_mode_argument_is_told(module, name):
    with pytest.raises(ValueError, match=rf"takes \['\w+'\].*train_argument='{name}'.*train_argument=None"):
        from_linen(module, train_argument=name)


def test_unhashable_fields_are_told():
    class Listed(nn.Module):
        widths: list

        def __call__(self, images):
            return images, images

    with pytest.raises(ValueError, match="not hashable"):
        from_linen(Listed([1, {2}]))


def test_batch_statistics_move_in_train_mode_alone():
    model, variables = make(from_linen(Normed(), embedding="head"))
    _, moved = model.apply(*variables, IMAGES, train=True, key=jax.random.key(0))
    _, kept = model.apply(*variables, IMAGES, train=False)
    dense = variables.params["Dense_0"]
    batch_mean = (flat(IMAGES) @ dense["kernel"] + dense["bias"][None]).mean(axis=0)
    np.testing.assert_allclose(moved["batch_stats"]["norm"]["mean"], 0.01 * batch_mean, rtol=1e-4, atol=1e-7)
    chex.assert_trees_all_equal(kept, variables.model_state)


@pytest.mark.parametrize("model", [from_linen(Normed(), embedding="head"), from_nnx(NnxNet)], ids=["linen", "nnx"])
def test_dropout_follows_the_key_in_train_mode_and_is_off_in_eval_mode(model):
    model, variables = make(model)
    apply = jax.jit(functools.partial(model.apply, *variables, IMAGES), static_argnames="train")
    first, again, other = (apply(train=True, key=jax.random.key(seed))[0].logits for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(
        apply(train=False, key=jax.random.key(1))[0].logits, apply(train=False, key=jax.random.key(2))[0].logits
    )


def test_nnx_gives_in_eval_mode_what_the_module_gives():
    model, variables = make(from_nnx(NnxNet))
    module = NnxNet(nnx.Rngs(jax.random.key(0)))
    module.eval()
    outputs, kept = model.apply(*variables, IMAGES, train=False)
    chex.assert_trees_all_close((outputs.embedding, outputs.logits), module(IMAGES), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(kept, variables.model_state)


def test_nnx_gives_in_train_mode_what_the_module_gives_with_the_dropout_of_the_key():
    model, variables = make(from_nnx(NnxNet))
    module = NnxNet(nnx.Rngs(jax.random.key(3)))  # the dropout of key 3, the parameters of key 0
    nnx.update(module, nnx.state(NnxNet(nnx.Rngs(jax.random.key(0))), nnx.Param))
    module.train()
    outputs, state = model.apply(*variables, IMAGES, train=True, key=jax.random.key(3))
    chex.assert_trees_all_close((outputs.embedding, outputs.logits), module(IMAGES), rtol=1e-5, atol=1e-6)
    for name in ("mean", "var"):
        np.testing.assert_allclose(state["norm"][name], getattr(module.norm, name)[...], rtol=1e-5, atol=1e-7)
        assert not np.allclose(state["norm"][name], variables.model_state["norm"][name])


def test_nnx_lists_longer_than_ten_have_string_keys_and_keep_their_order():
    model, variables = make(from_nnx(NnxNet))
    assert set(variables.params["blocks"]) == {str(depth) for depth in range(12)}
    blocks = NnxNet(nnx.Rngs(jax.random.key(0))).blocks
    for depth in range(12):
        np.testing.assert_array_equal(variables.params["blocks"][str(depth)]["kernel"], blocks[depth].kernel[...])
    changed = jax.tree.map(lambda leaf: leaf, variables.params)
    changed["blocks"]["2"] = variables.params["blocks"]["10"]
    first, second = (
        model.apply(params, variables.model_state, IMAGES, train=False)[0].logits for params in (variables.params, changed)
    )
    assert not np.allclose(first, second)


def test_nnx_initialisation_follows_the_key():
    model = from_nnx(NnxNet)
    first, second = (model.init(jax.random.key(seed), IMAGES).params["head"]["kernel"] for seed in (0, 1))
    assert not np.allclose(first, second)


def linear_init(key, images):
    return {"w": jax.random.normal(key, (16, 3))}, {}


def linear_apply(params, model_state, images, *, train, key):
    return (flat(images), flat(images) @ params["w"]), model_state


def test_plain_functions_become_a_model():
    model, variables = make(from_function(linear_init, linear_apply, layers=("w",)))
    np.testing.assert_allclose(
        model.apply(*variables, IMAGES, train=False)[0].logits, flat(IMAGES) @ variables.params["w"], rtol=1e-5, atol=1e-5
    )
    assert model.layers == ("w",)


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: from_linen(Normed(), embedding="head"),
        lambda: from_nnx(NnxNet),
        lambda: from_function(linear_init, linear_apply),
    ],
    ids=["linen", "nnx", "function"],
)
def test_equal_arguments_make_equal_models_and_one_compilation(make_model):
    first, second = make_model(), make_model()
    assert first == second
    assert hash(first) == hash(second)
    chex.clear_trace_counter()

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def logits(model, variables):
        return model.apply(*variables, IMAGES, train=False)[0].logits

    variables = first.init(jax.random.key(0), IMAGES)
    np.testing.assert_array_equal(logits(first, variables), logits(second, variables))


def test_other_arguments_make_another_model():
    models = [
        from_linen(Pair()),
        from_linen(Pair(), layers=("head",)),
        from_linen(Pair(), num_classes=3),
        from_linen(Pair()).with_axis_name("devices"),
        from_linen(Normed(), embedding="head"),
        from_linen(Normed(), embedding="norm"),
        from_nnx(NnxNet),
        from_function(linear_init, linear_apply),
    ]
    assert len(set(models)) == len(models)


def test_the_number_of_classes_is_seen_or_declared():
    def apply(params, model_state, images, *, train, key):
        return linear_apply(params, model_state, images, train=train, key=key)

    model = from_function(linear_init, apply)
    with pytest.raises(ValueError, match="num_classes is not known before"):
        _ = model.num_classes
    make(model)
    assert model.num_classes == model.with_axis_name("devices").num_classes == 3
    assert from_linen(Pair(), num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match="num_classes is 4, but the network returns 3 logits"):
        make(from_linen(Pair(), num_classes=4))


def test_outputs_of_another_rank_are_told():
    def apply(params, model_state, images, *, train, key):
        return (images, flat(images)), model_state

    with pytest.raises(ValueError, match=r"embedding \[batch, d\]"):
        make(from_function(linear_init, apply))


@pytest.mark.parametrize("model", [from_linen(Normed(), embedding="head"), from_nnx(NnxNet)], ids=["linen", "nnx"])
def test_statistics_under_pmap_are_those_of_the_full_batch(model):
    _, variables = make(model)
    named = model.with_axis_name("devices")

    def statistics(variables, images):
        return named.apply(*variables, images, train=True, key=jax.random.key(0))[1]

    parts = IMAGES.reshape(4, 2, *IMAGES.shape[1:])
    mapped = jax.pmap(statistics, axis_name="devices", in_axes=(None, 0), out_axes=None)(variables, parts)
    whole = model.apply(*variables, IMAGES, train=True, key=jax.random.key(0))[1]
    chex.assert_trees_all_close(mapped, whole, rtol=1e-4, atol=1e-6)
    alone = model.apply(*variables, parts[0], train=True, key=jax.random.key(0))[1]
    largest = max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (alone, whole)), strict=True))
    assert largest > 1e-4  # the devices' own statistics differ


def test_a_function_with_state_is_given_the_axis_name():
    def mean_apply(params, model_state, images, *, train, key, axis_name=None):
        mean = flat(images).mean(axis=0)
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        return linear_apply(params, model_state, images, train=train, key=key)[0], {"mean": mean}

    def without(params, model_state, images, *, train, key):
        return mean_apply(params, model_state, images, train=train, key=key)

    def mean_init(key, images):
        return linear_init(key, images)[0], {"mean": jnp.zeros(16)}

    model, variables = make(from_function(mean_init, mean_apply))
    named = model.with_axis_name("devices")
    parts = IMAGES.reshape(4, 2, *IMAGES.shape[1:])
    mapped = jax.vmap(lambda part: named.apply(*variables, part, train=True)[1], axis_name="devices")(parts)
    np.testing.assert_allclose(mapped["mean"][0], flat(IMAGES).mean(axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"without keeps state.*'devices'.*not take the argument axis_name"):
        from_function(mean_init, without).with_axis_name("devices").apply(*variables, IMAGES, train=True)


class Averaged:
    """A function that is an object, without a name of its own."""

    def __call__(self, params, model_state, images, scale=1.0, *, train, key, **others):
        mean = jax.lax.pmean(flat(images).mean(axis=0), others["axis_name"]) if others else flat(images).mean(axis=0)
        return linear_apply(params, model_state, scale * images, train=train, key=key)[0], {"mean": mean}


def named(params, model_state, images, scale, *, train, key, axis_name=None):
    others = {} if axis_name is None else {"axis_name": axis_name}
    return Averaged()(params, model_state, images, scale, train=train, key=key, **others)


def averaged_init(rows, key, images):
    return {"w": jax.random.normal(key, (rows, 3))}, {"mean": jnp.zeros(rows)}


CALLABLES = [Averaged(), functools.partial(Averaged(), scale=2.0), functools.partial(named, scale=2.0)]


@pytest.mark.parametrize("apply", CALLABLES)
def test_any_callable_with_state_runs_over_a_device_axis(apply):
    model, variables = make(from_function(functools.partial(averaged_init, 16), apply))
    parts = IMAGES.reshape(4, 2, *IMAGES.shape[1:])
    over_devices = model.with_axis_name("devices")
    mapped = jax.pmap(lambda part: over_devices.apply(*variables, part, train=True)[1], axis_name="devices")(parts)
    np.testing.assert_allclose(mapped["mean"][0], flat(IMAGES).mean(axis=0), rtol=1e-5, atol=1e-6)


class Alone:
    def __call__(self, params, model_state, images, *, train, key):
        return linear_apply(params, model_state, images, train=train, key=key)


@pytest.mark.parametrize(
    ("apply", "name"), [(Alone(), "Alone"), (functools.partial(functools.partial(linear_apply)), "linear_apply")]
)
def test_any_callable_that_lacks_the_axis_name_is_told_by_name(apply, name):
    model = from_function(linear_init, apply).with_axis_name("devices")
    with pytest.raises(ValueError, match=f"^{name} keeps state.*not take the argument axis_name"):
        model.apply({"w": jnp.zeros((16, 3))}, {"mean": jnp.zeros(16)}, IMAGES, train=True)


def test_taps_keep_their_order_through_jit():
    model, variables = make(from_linen(Tapped()))
    outputs = jax.jit(lambda variables: model.apply(*variables, IMAGES, train=False)[0])(variables)
    assert list(outputs.taps) == ["zebra", "ape"]


@pytest.mark.parametrize(
    "model",
    [from_linen(Normed(), embedding="head"), from_linen(WithoutAxisName()), from_nnx(NnxNet)],
    ids=["linen", "linen_without_axis_name", "nnx"],
)
def test_batch_statistics_are_averaged_over_the_named_axis(model):
    _, variables = make(model)
    named = model.with_axis_name("devices")
    parts = IMAGES.reshape(4, 2, *IMAGES.shape[1:])

    def statistics(images):
        return named.apply(*variables, images, train=True, key=jax.random.key(0))[1]

    mapped = jax.vmap(statistics, axis_name="devices")(parts)
    whole = model.apply(*variables, IMAGES, train=True, key=jax.random.key(0))[1]
    for device in range(4):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, d=device: leaf[d], mapped), whole, rtol=1e-4, atol=1e-6)


class Counting(nn.Module):
    """State of its own, which nothing averages."""

    @nn.compact
    def __call__(self, images, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, (16,))
        if train:
            mean.value = flat(images).mean(axis=0)
        return flat(images), nn.Dense(3)(flat(images))


def test_state_that_no_layer_averages_is_told():
    model, variables = make(from_linen(Counting()))
    with pytest.raises(ValueError, match=r"Counting keeps mean, .*'devices'.*no field axis_name: add `axis_name"):
        jax.vmap(lambda part: model.with_axis_name("devices").apply(*variables, part, train=True)[1], axis_name="devices")(
            IMAGES.reshape(4, 2, *IMAGES.shape[1:])
        )


def test_embeddings_are_those_of_eval_mode_and_compile_once():
    model, variables = make(from_linen(Normed(), embedding="head"))
    _, moved = model.apply(*variables, IMAGES, train=True, key=jax.random.key(0))
    variables = variables._replace(model_state=moved)
    expected = model.apply(*variables, IMAGES, train=False)[0].embedding
    in_train_mode = model.apply(*variables, IMAGES, train=True, key=jax.random.key(0))[0].embedding
    assert not np.allclose(expected, in_train_mode)
    before = compute_embeddings._cache_size()
    for _ in range(3):
        model = from_linen(Normed(), embedding="head")
        np.testing.assert_allclose(compute_embeddings(model, *variables, IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert compute_embeddings._cache_size() == before + 1


def test_abstract_variables_have_the_shapes_and_compute_nothing():
    model, variables = make(from_linen(Normed(), embedding="head"))
    abstract = abstract_variables(model, IMAGES.shape[1:])
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, variables)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))
