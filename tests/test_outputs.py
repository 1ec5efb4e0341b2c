"""What networks return: pairs in either order, dicts, and a named embedding, which always wins."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cujax
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)
RETURNS = {
    "logits": lambda hidden, logits: logits,
    "embedding_logits": lambda hidden, logits: (hidden, logits),
    "logits_embedding": lambda hidden, logits: (logits, hidden),
    "logits_dict": lambda hidden, logits: (logits, {"embedding": hidden, "other": hidden * 2}),
    "outputs": lambda hidden, logits: cujax.Outputs(hidden, logits),
    "other_embedding": lambda hidden, logits: (hidden * 3, logits),
    "copy_of_logits": lambda hidden, logits: (hidden, logits + 0),
}


class Net(nn.Module):
    returns: str
    width: int = 6
    classes: int = 10

    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(self.width)(images.reshape(len(images), -1)))
        return RETURNS[self.returns](hidden, nn.Dense(self.classes, name="head")(hidden))


def of(model):
    """Embedding and logits, and what they are by hand."""
    params, state = model.init(jax.random.key(0), IMAGES)
    outputs, _ = model.apply(params, state, IMAGES, train=False)
    kernel, bias = (np.asarray(params["Dense_0"][name], np.float64) for name in ("kernel", "bias"))
    hidden = np.maximum(np.asarray(IMAGES, np.float64).reshape(len(IMAGES), -1) @ kernel + bias, 0)
    kernel, bias = (np.asarray(params["head"][name], np.float64) for name in ("kernel", "bias"))
    return outputs, hidden, hidden @ kernel + bias


@pytest.mark.parametrize("returns", RETURNS)
def test_a_named_embedding_wins_over_whatever_is_returned(returns):
    outputs, hidden, logits = of(cujax.from_linen(Net(returns), embedding="head"))
    np.testing.assert_allclose(outputs.embedding, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("returns", "names"),
    [
        ("embedding_logits", None),
        ("embedding_logits", ("embedding", "logits")),
        ("logits_embedding", ("logits", "embedding")),
        ("logits_dict", None),
        ("outputs", None),
    ],
)
def test_pairs_are_read_in_the_order_that_is_said(returns, names):
    outputs, hidden, logits = of(cujax.from_linen(Net(returns), outputs=names))
    np.testing.assert_allclose(outputs.embedding, hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-5)


def test_the_order_is_said_for_nnx_and_functions_alike():
    class Mine(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.head = nnx.Linear(64, 6, rngs=rngs), nnx.Linear(6, 10, rngs=rngs)

        def __call__(self, images):
            hidden = self.hidden(images.reshape(len(images), -1))
            return self.head(hidden), hidden

    def init(key, images):
        return jax.random.normal(key, (64, 6)), {}

    def apply(params, state, images, *, train, key):
        hidden = images.reshape(len(images), -1) @ params
        return (jnp.tile(hidden, 2)[:, :10], hidden), state

    for model in (
        cujax.from_nnx(Mine, outputs=("logits", "embedding")),
        cujax.from_function(init, apply, outputs=("logits", "embedding")),
    ):
        outputs, _ = model.apply(*model.init(jax.random.key(0), IMAGES), IMAGES, train=False)
        assert (outputs.embedding.shape, outputs.logits.shape) == ((3, 6), (3, 10))


def test_contradictory_settings_are_refused():
    with pytest.raises(ValueError, match="give one of the two"):
        cujax.from_linen(Net("logits"), embedding="head", outputs=("logits", "embedding"))
    with pytest.raises(ValueError, match="outputs must be"):
        cujax.from_linen(Net("logits"), outputs=("logits", "features"))


def test_a_dict_without_an_embedding_is_refused_with_its_names():
    class Named(Net):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(10)(images.reshape(len(images), -1)), {"features": images}

    with pytest.raises(ValueError, match=r"a dict of \['features'\]; name the embedding"):
        of(cujax.from_linen(Named("logits")))


NETWORK = """
import flax.linen as nn
import cujax

class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(32)(images.reshape(len(images), -1)))
        return nn.Dense(10)(hidden), hidden

def mine(num_classes):
    return cujax.from_linen(Net(){outputs})
"""


def test_a_pair_the_wrong_way_round_is_refused_before_anything_is_trained(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NETWORK.format(outputs=""))
    experiment = Experiment(network=f"{path}:mine", workdir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"widths 10 and 32. Read as \(embedding, logits\).*outputs=\(.logits"):
        prepare(experiment)
    path.write_text(NETWORK.format(outputs=', outputs=("logits", "embedding")'))
    assert prepare(experiment).model.num_classes == 10


METHOD = cujax.ContrastiveUnlearning(max_passes=1, retain_batch_size=16)


def unlearned(network, labels, **options):
    rows = np.random.default_rng(0).normal(size=(len(labels), 8, 8, 1)).astype(np.float32)
    variables = network.init(jax.random.key(0), rows[:1])
    return cujax.unlearn(network, variables, rows, labels, forget=0, method=METHOD, **options)


@pytest.mark.parametrize(
    ("width", "classes", "used"),
    [(8, 3, 3), (8, 3, 2), (3, 8, 8), (3, 8, 5)],
    ids=["narrow_logits", "a_class_without_samples", "wide_logits", "logits_for_all_but_not_all_used"],
)
def test_one_call_refuses_a_pair_whose_order_the_labels_contradict(width, classes, used):
    labels = np.arange(60) % used
    with pytest.raises(ValueError, match=rf"widths {classes} and {width}.*label is {used - 1}.*outputs=\(.logits"):
        unlearned(Net("logits_embedding", width, classes), labels)
    found = unlearned(Net("logits_embedding", width, classes), labels, outputs=("logits", "embedding"))
    assert found.model.num_classes == classes


@pytest.mark.parametrize(("width", "classes", "used"), [(8, 3, 3), (8, 3, 2), (3, 8, 8), (4, 4, 4), (4, 4, 2)])
@pytest.mark.parametrize("returns", ["embedding_logits", "outputs"])
def test_one_call_takes_a_pair_in_order_with_labels_of_all_classes(returns, width, classes, used):
    found = unlearned(Net(returns, width, classes), np.arange(60) % used)
    assert found.model.num_classes == classes


@pytest.mark.parametrize(
    ("returns", "options"),
    [("embedding_logits", {"outputs": ("embedding", "logits")}), ("logits", {"embedding": "head"}), ("outputs", {})],
)
def test_one_call_asks_for_no_order_that_is_said(returns, options):
    network = Net(returns, 3, 8)
    labels = np.arange(60) % 2
    rows = np.ones((60, 8, 8, 1), np.float32) * np.arange(60)[:, None, None, None]
    variables = network.init(jax.random.key(0), rows[:1])
    found = cujax.unlearn(network, variables, rows, labels, forget=0, method=METHOD, **options)
    assert found.model.num_classes == 8


def test_an_order_is_not_said_twice():
    with pytest.raises(
        ValueError, match=r"outputs is .* give it where the model is created: cujax.from_linen\(module, outputs="
    ):
        unlearned(cujax.from_linen(Net("outputs")), np.arange(60) % 3, outputs=("logits", "embedding"))
