"""All reference networks: sizes, depths, initialisation, dtypes, and which statistics the unlearning step moves."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_linen
from cujax.batch import Batch, Examples
from cujax.methods import ContrastiveUnlearning
from cujax.model import abstract_variables
from cujax.networks import MODULES, make_network
from cujax.networks.resnet import ResNet
from cujax.networks.vit import ViT
from cujax.step import UnlearnState, make_unlearn_step


def image_shape(name):
    return (224, 224, 3) if name.endswith(("224", "224_linear")) else (32, 32, 3)


def n_parameters(name, classes=10):
    params = abstract_variables(make_network(name, classes), image_shape(name)).params
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_498_442), ("resnet34", 21_606_602), ("resnet50", 27_960_266), ("resnet101", 46_952_394)],
)
def test_the_papers_networks_have_the_papers_sizes(name, count):
    assert n_parameters(name) == count


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        # torchvision's and timm's own figures for their models.
        ("resnet18_imagenet_linear", 1000, 11_689_512),
        ("resnet34_imagenet_linear", 1000, 21_797_672),
        ("resnet50_imagenet_linear", 1000, 25_557_032),
        ("resnet101_imagenet_linear", 1000, 44_549_160),
        ("vit_tiny_224_linear", 1000, 5_717_416),
        ("vit_small_224_linear", 1000, 22_050_664),
    ],
)
def test_networks_for_large_images_have_their_published_sizes(name, classes, count):
    assert n_parameters(name, classes) == count


@pytest.mark.parametrize("name", MODULES)
def test_layers_name_the_parameters_and_taps_the_depths_shallow_first(name):
    model, shape = make_network(name, 7), image_shape(name)
    variables = abstract_variables(model, shape)
    assert set(model.layers) == set(variables.params)
    assert model.layers[-1] == "head"
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    outputs, _ = jax.eval_shape(lambda v, x: model.apply(*v, x, train=False), variables, images)
    assert model.num_classes == 7
    chex.assert_shape([outputs.logits], (2, 7))
    taps = list(outputs.taps)
    assert taps[-1:] == ["encoder"] if name.endswith("_linear") else taps[-2:] == ["encoder", "hidden"]
    assert taps[: taps.index("encoder")] == sorted(taps[: taps.index("encoder")])
    assert all(tap.ndim == 2 and tap.dtype == jnp.float32 for tap in outputs.taps.values())


def test_stages_are_tapped_and_the_last_is_the_encoder():
    model = make_network("resnet20", 10)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    outputs, _ = jax.jit(lambda v, x: model.apply(*v, x, train=False))(variables, images)
    assert {name: tap.shape[1] for name, tap in outputs.taps.items()} == {
        "stage_1": 16,
        "stage_2": 32,
        "encoder": 64,
        "hidden": 64,
    }


def test_convolutions_start_as_he_et_al_have_them():
    params = make_network("resnet18", 10).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))).params
    for path, kernel in jax.tree_util.tree_flatten_with_path(params)[0]:
        if kernel.ndim == 4:
            deviation = math.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3]))  # fan-out
            tolerance = 5 / math.sqrt(2 * kernel.size)  # five standard errors of a standard deviation
            assert np.std(kernel) == pytest.approx(deviation, rel=tolerance), path
            assert abs(np.mean(kernel)) < 5 * deviation / math.sqrt(kernel.size), path
    assert not np.any(params["head"]["bias"])
    assert np.all(params["stem"]["norm"]["scale"] == 1)


SMALL = {
    "resnet": ResNet(5, stage_sizes=(1, 1), width=8),
    "vit": ViT(5, patch_size=4, width=16, depth=2, num_heads=2),
}


@pytest.mark.parametrize("name", SMALL)
def test_in_bfloat16_what_is_kept_and_returned_is_float32_and_answers_are_near(name):
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    exact = from_linen(SMALL[name])
    rough = from_linen(SMALL[name].clone(dtype=jnp.bfloat16))
    variables = rough.init(jax.random.key(0), images)
    chex.assert_trees_all_equal(variables, exact.init(jax.random.key(0), images))
    for train in (False, True):
        outputs, state = rough.apply(*variables, images, train=train)
        expected, _ = exact.apply(*variables, images, train=train)
        assert {leaf.dtype for leaf in jax.tree.leaves((outputs, state, variables))} == {jnp.dtype("float32")}
        np.testing.assert_allclose(outputs.embedding, expected.embedding, atol=0.05)
        assert not np.array_equal(outputs.embedding, expected.embedding)


def test_images_that_cannot_be_cut_into_patches_are_told():
    with pytest.raises(ValueError, match="10x10 pixels cannot be cut into patches of 4"):
        from_linen(SMALL["vit"]).init(jax.random.key(0), jnp.zeros((1, 10, 10, 3)))


def test_an_unknown_network_is_told_with_those_that_there_are():
    with pytest.raises(
        ValueError, match=r"network 'resnet19' does not exist; choose one of airbench32, .*cnn, .*resnet18_linear"
    ):
        make_network("resnet19", 10)


# ---------------------------------------------------------------------------------------------------------------------
# Batch statistics of the unlearning step, by policy.
# ---------------------------------------------------------------------------------------------------------------------

MODEL = from_linen(ResNet(5, stage_sizes=(1,), width=8))


def stem_output(params, images):
    """The first convolution in NumPy float64: what the first BatchNorm reads."""
    kernel = np.asarray(params["stem"]["conv"]["kernel"], np.float64)
    padded = np.pad(np.asarray(images, np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel)


@pytest.mark.parametrize("policy", ["joint", "retain_only", "frozen"])
def test_the_step_moves_the_statistics_of_the_rows_its_policy_names(policy):
    config = ContrastiveUnlearning(batch_norm=policy)
    images = jax.random.normal(jax.random.key(1), (12, 8, 8, 3)) * jnp.arange(1, 13)[:, None, None, None]
    labels = jnp.array([0, 0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4])
    batch = Batch(Examples(images[:4], labels[:4]), Examples(images[4:], labels[4:]))
    variables = MODEL.init(jax.random.key(0), images)
    tx = config.optimizer()
    state = UnlearnState.create(*variables, tx, jax.random.key(2))
    after, metrics = jax.jit(make_unlearn_step(MODEL, tx, config))(state, batch)
    assert bool(metrics["finite"])
    if policy == "frozen":
        chex.assert_trees_all_equal(after.model_state, variables.model_state)
        return
    seen = stem_output(variables.params, {"joint": images, "retain_only": images[4:]}[policy])
    moved = after.model_state["batch_stats"]["stem"]["norm"]
    np.testing.assert_allclose(moved["mean"], 0.1 * seen.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * seen.var(axis=(0, 1, 2)), rtol=1e-4)
    for old, new in zip(jax.tree.leaves(variables.model_state), jax.tree.leaves(after.model_state), strict=True):
        assert not np.array_equal(old, new)


def test_holding_inputs_in_memory_changes_no_gradient(monkeypatch):
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    variables = MODEL.init(jax.random.key(0), images)

    def gradients():
        def loss(params):
            outputs, _ = MODEL.apply(params, variables.model_state, images, train=True)
            return jnp.sum(outputs.logits**2)

        return jax.jit(jax.grad(loss))(variables.params)

    held = gradients()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, **branches: branches["default"](x))
    chex.assert_trees_all_close(held, gradients(), rtol=1e-5, atol=1e-6)
