"""Inputs that are no images: read, fed, trained on, unlearned, audited and given on the command line as a table."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cujax
from cujax.data.batches import DeviceImages, batches_of_all, preprocess, to_device
from cujax.methods import ContrastiveUnlearning
from cujax.training.predict import predict

RNG = np.random.default_rng(0)
N = 60
LABELS = np.arange(N) % 3
TREE = {"tokens": RNG.integers(0, 9, (N, 5)), "mask": RNG.random((N, 5)) < 0.8, "age": RNG.normal(size=(N, 1))}


def load(tmp_path, **arrays):
    np.savez(tmp_path / "own.npz", **arrays)
    return cujax.load_source(cujax.Data(str(tmp_path / "own.npz")))


class Text(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        words = nn.Embed(9, 4)(inputs["tokens"]) * inputs["mask"][..., None]
        hidden = nn.relu(nn.Dense(6)(jnp.concatenate([words.sum(axis=1), inputs["age"]], axis=1)))
        return nn.Dense(3, name="head")(hidden)


MODEL = cujax.from_linen(Text(), embedding="head")


@pytest.fixture
def source(tmp_path):
    named = {f"inputs/{name}": rows for name, rows in TREE.items()}
    return load(tmp_path, labels=LABELS, **named)


def test_several_arrays_are_a_dict_of_what_networks_take(source):
    assert {name: rows.dtype.name for name, rows in source.train.images.items()} == {
        "age": "float32", "mask": "bool", "tokens": "int32",
    }  # fmt: skip
    assert len(source.train) == 48
    assert len(source.test) == 12
    assert not source.are_images


def test_a_batch_holds_the_rows_as_they_are(source):
    arrays = to_device(source, source.train)
    rows = next(batches_of_all(np.array([3, 1, 4]), 4))
    inputs = preprocess(arrays, rows, jax.random.key(0)).inputs
    for name, stored in source.train.images.items():
        np.testing.assert_array_equal(inputs[name][:3], stored[[3, 1, 4]])


def test_predictions_are_those_of_the_network(source):
    arrays = to_device(source, source.train)
    some = jax.tree.map(lambda rows: rows[:7], source.train.images)
    variables = MODEL.init(jax.random.key(0), some)
    expected = MODEL.apply(*variables, some, train=False)[0].logits
    np.testing.assert_allclose(predict(MODEL, variables, arrays, np.arange(7)).logits, expected, rtol=1e-5, atol=1e-6)
    assert cujax.compute_embeddings(MODEL, *variables, some).shape == (7, 6)
    assert cujax.abstract_variables(MODEL, some).params["head"]["kernel"].shape == (6, 3)


@pytest.mark.parametrize("batch_norm", ["joint", "retain_only"])
def test_the_step_joins_rows_of_every_array(source, batch_norm):
    """One tree is the same as its one array: a step on `{"x": x}` moves the parameters as one on `x`."""
    x = jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32)
    labels = jnp.arange(8) % 3

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            rows = inputs["x"] if isinstance(inputs, dict) else inputs
            return nn.Dense(3, name="head")(nn.relu(nn.Dense(4)(rows)))

    model = cujax.from_linen(Plain(), embedding="head")
    config = ContrastiveUnlearning(batch_norm=batch_norm)
    tx = config.optimizer()
    moved = []
    for wrap in (lambda rows: rows, lambda rows: {"x": rows}):
        variables = model.init(jax.random.key(0), wrap(x))
        state = cujax.UnlearnState.create(*variables, tx, jax.random.key(1))
        batch = cujax.Batch(cujax.Examples(wrap(x[:3]), labels[:3]), cujax.Examples(wrap(x[3:]), labels[3:]))
        moved.append(cujax.unlearn_step(state, batch, model=model, tx=tx, config=config)[0].params)
    jax.tree.map(np.testing.assert_array_equal, *moved)


def test_images_are_the_old_name_of_inputs():
    x, labels = jnp.ones((2, 3)), jnp.array([0, 1])
    with pytest.warns(DeprecationWarning, match="inputs"):
        examples = cujax.Examples(images=x, labels=labels)
    with pytest.warns(DeprecationWarning, match="inputs"):
        assert examples.images is examples.inputs
    with pytest.warns(DeprecationWarning, match="inputs"):
        replaced = dataclasses.replace(examples, images=2 * x)
    np.testing.assert_array_equal(replaced.inputs, 2 * x)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, examples)
    np.testing.assert_array_equal(doubled.inputs, 2 * x)
    model = cujax.from_function(
        lambda key, inputs: ({"w": jnp.ones((3, 2))}, {}),
        lambda params, state, inputs, *, train, key: ((inputs, inputs @ params["w"]), state),
    )
    with pytest.warns(DeprecationWarning, match="inputs"):
        variables = model.init(jax.random.key(0), images=x)
    with pytest.warns(DeprecationWarning, match="inputs"):
        outputs, _ = model.apply(*variables, images=x, train=False)
    np.testing.assert_array_equal(outputs.logits, 3 * jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="one leading row axis"):
        model.apply(*variables, {"a": x, "b": x[:1]}, train=False)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"inputs": np.arange(N)}, r"array\[:, None\]"),
        ({"inputs": np.full((N, 2), np.nan)}, "NaN"),
        ({"inputs": np.full((N, 2), "a")}, "must be numbers"),
        ({"inputs": np.full((N, 2), 2**40)}, "more than 32 bits"),
        ({"inputs": np.ones((N, 2)), "inputs/age": np.ones((N, 2))}, "either one array or several"),
        ({"inputs/a": np.ones((N, 2)), "inputs/b": np.ones((N - 1, 2))}, "the same number of rows"),
        ({"inputs": np.ones((N, 2)), "images": np.ones((N, 2, 2))}, "one of the two"),
        ({"inputs": np.ones((N - 1, 2))}, r"\[59\] integers, one for each row"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, arrays, said):
    with pytest.raises(ValueError, match=said):
        load(tmp_path, labels=LABELS, **arrays)


def test_only_images_are_augmented():
    table = DeviceImages(jnp.ones((4, 3)), jnp.zeros(4, jnp.int32), jnp.zeros(0), jnp.zeros(0), "crop")
    with pytest.raises(ValueError, match="augmentation is 'crop'"):
        preprocess(table, next(batches_of_all(np.arange(4), 4)), jax.random.key(0))


def test_copies_of_rows_are_seen(tmp_path):
    rows = RNG.normal(size=(N, 4))
    rows[8] = rows[0]
    source = load(tmp_path, inputs=rows, labels=LABELS, ids=[f"row-{number}" for number in range(N)])
    request = cujax.ForgetWhere(lambda name, label: name == "row-0")
    with pytest.raises(ValueError, match="row-8"):
        cujax.make_split(source, request)
    both = cujax.make_split(source, dataclasses.replace(request, copies="with"))
    assert both.forget.ids.tolist() == ["row-0", "row-8"]
