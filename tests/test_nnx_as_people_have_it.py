"""flax.nnx modules as they are found: instances, logits alone, rngs of the call, LoRA and frozen types, transforms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cujax import Batch, ContrastiveUnlearning, Examples, UnlearnState, abstract_variables, from_nnx, unlearn_step

IMAGES = jax.random.normal(jax.random.key(7), (8, 4, 4, 1))
SETTINGS = ContrastiveUnlearning(batch_norm="joint")


def flat(images):
    return images.reshape(len(images), -1)


class Logits(nnx.Module):
    """Logits alone, with statistics and two streams of random numbers."""

    def __init__(self, rngs):
        self.first = nnx.Linear(16, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.noise = nnx.Dropout(0.5, rng_collection="noise", rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])

    def __call__(self, images):
        x = self.noise(self.dropout(self.norm(self.first(flat(images)))))
        return self.blocks[1](nnx.relu(self.blocks[0](x)))


def batch():
    labels = jnp.arange(4) % 3
    return Batch(Examples(IMAGES[:4], labels), Examples(IMAGES[4:], labels))


def instance(seed=0):
    return Logits(nnx.Rngs(params=seed, dropout=1, noise=2))


def test_an_instance_is_a_model_and_takes_back_what_was_unlearned():
    module = instance()
    model = from_nnx(module, embedding="blocks/1")
    variables, tx = model.variables_of(module), SETTINGS.optimizer()
    module.eval()
    outputs, _ = model.apply(*variables, IMAGES, train=False)
    np.testing.assert_allclose(outputs.logits, module(IMAGES), rtol=1e-5, atol=1e-6)
    head = variables.params["blocks"]["1"]
    np.testing.assert_allclose(outputs.logits, outputs.embedding @ head["kernel"] + head["bias"][None], rtol=1e-5, atol=1e-6)
    state = UnlearnState.create(*variables, tx, jax.random.key(1))
    state, metrics = unlearn_step(state, batch(), model=model, tx=tx, config=SETTINGS)
    assert metrics["finite"]
    after = variables._replace(params=state.params, model_state=state.model_state)
    before = module(IMAGES)
    model.update(module, after)
    np.testing.assert_allclose(module(IMAGES), model.apply(*after, IMAGES, train=False)[0].logits, rtol=1e-5, atol=1e-6)
    assert not np.allclose(before, module(IMAGES))
    chex.assert_trees_all_equal(model.variables_of(module), after)
    chex.assert_trees_all_equal(model.variables_of(nnx.state(module)), after)
    other = instance(5)
    nnx.update(other, model.state_of(after))
    chex.assert_trees_all_equal(model.variables_of(other), after)


def test_instances_of_one_structure_are_one_model():
    assert from_nnx(instance(0), embedding="blocks/1") == from_nnx(instance(1), embedding="blocks/1")
    assert hash(from_nnx(instance(0))) == hash(from_nnx(instance(1)))
    assert from_nnx(instance()) != from_nnx(nnx.Linear(16, 3, rngs=nnx.Rngs(0)))


def test_an_instance_alone_cannot_be_trained_anew_but_has_shapes():
    model = from_nnx(instance(), embedding="blocks/1")
    with pytest.raises(ValueError, match=r"cannot be initialised again.*constructor="):
        model.init(jax.random.key(0), IMAGES)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract_variables(model, (4, 4, 1)), model.variables_of(instance()))
    anew = from_nnx(instance(), constructor=Logits, embedding="blocks/1")
    assert anew == from_nnx(Logits, embedding="blocks/1")
    first, second = (anew.init(jax.random.key(seed), IMAGES).params["first"]["kernel"] for seed in (0, 1))
    assert not np.allclose(first, second)


def test_arrays_of_another_module_are_refused():
    with pytest.raises(ValueError, match=r"the module's arrays have the shapes .*but the model's are"):
        from_nnx(instance()).variables_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def test_every_stream_of_an_instance_follows_the_key():
    model = from_nnx(instance(), embedding="first")
    module = nnx.Sequential(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rng_collection="noise", rngs=nnx.Rngs(0)))
    model = from_nnx(nnx.Sequential(module, nnx.Linear(64, 3, rngs=nnx.Rngs(0))), embedding="layers/1")
    variables = model.variables_of(nnx.Sequential(module, nnx.Linear(64, 3, rngs=nnx.Rngs(0))))
    ones = jnp.ones((64, 64))
    first, again, other = (model.apply(*variables, ones, train=True, key=jax.random.key(s))[0].embedding for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert set(np.unique(first)) == {0.0, 4.0}
    assert abs((np.asarray(first) > 0).mean() - 0.25) < 0.03  # two streams of one key would keep a half
    np.testing.assert_array_equal(model.apply(*variables, ones, train=False)[0].embedding, ones)


class CallTime(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, images, *, deterministic, rngs):
        return self.head(self.dropout(flat(images) + 3, deterministic=deterministic, rngs=rngs))


def test_rngs_may_be_an_argument_of_the_call_and_so_may_the_mode():
    model = from_nnx(CallTime, embedding="head", train_argument="deterministic")
    variables = model.init(jax.random.key(0), IMAGES)
    np.testing.assert_array_equal(model.apply(*variables, IMAGES, train=False)[0].embedding, flat(IMAGES) + 3)
    keys = map(jax.random.key, (1, 1, 2))
    first, again, other = (model.apply(*variables, IMAGES, train=True, key=key)[0].embedding for key in keys)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (np.asarray(first) == 0).any()


class Frozen(nnx.Variable):
    pass


class WithLora(nnx.Module):
    """A kernel of a type that is not trained, an adapter of low rank, and a trained head."""

    def __init__(self, rngs):
        self.base = Frozen(jax.random.normal(rngs.params(), (16, 6)))
        self.adapter = nnx.LoRA(16, 2, 6, rngs=rngs, b_initializer=nnx.initializers.normal(0.1))
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        x = flat(images)
        self.seen = nnx.Intermediate(x)
        return self.head(nnx.tanh(x @ self.base[...] + self.adapter(x)))


@pytest.mark.parametrize("trainable", [None, lambda path: "lora" in path], ids=["all", "lora"])
def test_only_parameters_are_trained_and_sown_values_are_no_state(trainable):
    module = WithLora(nnx.Rngs(0))
    model = from_nnx(module, embedding="head", trainable=trainable)
    variables, tx = model.variables_of(module), SETTINGS.optimizer()
    assert set(variables.params) == {"adapter", "head"}
    assert set(variables.model_state) == {"base"}
    state = UnlearnState.create(*variables, tx, jax.random.key(1))
    for _ in range(2):
        state, _ = unlearn_step(state, batch(), model=model, tx=tx, config=SETTINGS)
    np.testing.assert_array_equal(state.model_state["base"], variables.model_state["base"])
    for name in ("lora_a", "lora_b"):
        assert not np.array_equal(state.params["adapter"][name], variables.params["adapter"][name])
    unmoved = np.array_equal(state.params["head"]["kernel"], variables.params["head"]["kernel"])
    assert unmoved == (trainable is not None)


class Rematerialised(nnx.Module):
    def __init__(self, rngs):
        self.inner = Inner(rngs)

    def __call__(self, images):
        return nnx.remat(lambda inner, images: inner(images))(self.inner, images)


class Jitted(Rematerialised):
    def __call__(self, images):
        return nnx.jit(lambda inner, images: inner(images))(self.inner, images)


class Inner(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.head = nnx.Linear(16, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.relu(self.hidden(flat(images))))


@pytest.mark.parametrize("kind", [Rematerialised, Jitted])
def test_a_named_embedding_may_lie_within_a_transform(kind):
    model = from_nnx(kind, embedding="inner/head")
    variables = model.init(jax.random.key(0), IMAGES)

    def embedding(params):
        return model.apply(params, variables.model_state, IMAGES, train=True)[0].embedding

    hidden = variables.params["inner"]["hidden"]
    expected = nnx.relu(flat(IMAGES) @ hidden["kernel"] + hidden["bias"][None])
    np.testing.assert_allclose(jax.jit(embedding)(variables.params), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda params: jnp.sum(embedding(params)))(variables.params)["inner"]["hidden"]["bias"]
    np.testing.assert_allclose(gradient, (expected > 0).sum(0), rtol=1e-5)


class Twice(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, images):
        return self.head(self.head(flat(images)))


@pytest.mark.parametrize(("name", "message"), [("haed", r"\['head'\]"), ("head", "called 2 times")])
def test_a_wrong_submodule_is_told(name, message):
    module = Twice(nnx.Rngs(0))
    model = from_nnx(module, embedding=name)
    with pytest.raises(ValueError, match=f"embedding='{name}' must name a submodule.*{message}"):
        model.apply(*model.variables_of(module), IMAGES, train=False)


def test_a_pair_is_not_named_twice():
    with pytest.raises(ValueError, match="give one of the two"):
        from_nnx(Twice, embedding="head", outputs=("logits", "embedding"))
