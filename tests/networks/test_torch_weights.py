"""Weights from PyTorch: whole networks against NumPy float64 in PyTorch's own layout, and files that do not fit."""

import math
import pickle
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import erf

from cujax.networks import make_network
from cujax.networks.torch_weights import import_weights

STAGES = {"resnet8": (1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


# PyTorch's layout, one function an operation: images [B, C, H, W], kernels [out, in, H, W], matrices [out, in].


def conv(x, kernel, stride, pad):
    size = kernel.shape[2]
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, kernel, optimize=True)


def batch_norm(x, tensors, name, train):
    mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    if train:
        mean, var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    scaled = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    return scaled * tensors[f"{name}.weight"][:, None, None] + tensors[f"{name}.bias"][:, None, None]


def dense(x, tensors, name):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def max_pool(x):
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))


def resnet(tensors, x, *, stages, bottleneck, imagenet, shortcut, prefix="", train=False):
    """The features of a ResNet, [B, d]."""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    x = conv(x, tensors["conv1.weight"], *((2, 3) if imagenet else (1, 1)))
    x = np.maximum(batch_norm(x, tensors, "bn1", train), 0)
    x = max_pool(x) if imagenet else x
    for stage, blocks in enumerate(stages, start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            plan = [(0, 1), (1, stride), (0, 1)] if bottleneck else [(1, stride), (1, 1)]
            y = x
            for number, (pad, step) in enumerate(plan, start=1):
                y = conv(y, tensors[f"{name}.conv{number}.weight"], step, pad)
                y = batch_norm(y, tensors, f"{name}.bn{number}", train)
                y = y if number == len(plan) else np.maximum(y, 0)
            if f"{name}.{shortcut}.0.weight" in tensors:
                x = conv(x, tensors[f"{name}.{shortcut}.0.weight"], stride, 0)
                x = batch_norm(x, tensors, f"{name}.{shortcut}.1", train)
            x = np.maximum(x + y, 0)
    return x.mean(axis=(2, 3))


def official_head(tensors, features):
    z = dense(np.maximum(dense(features, tensors, "head.0"), 0), tensors, "head.2")
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z, dense(np.maximum(z, 0), tensors, "fc.1")


def layer_norm(x, tensors, name):
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def vit(tensors, x, *, heads, patch):
    """The class token after the last normalisation, [B, d]."""
    x = conv(x, tensors["patch_embed.proj.weight"], patch, 0) + tensors["patch_embed.proj.bias"][:, None, None]
    x = x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
    x = np.concatenate([np.repeat(tensors["cls_token"], len(x), axis=0), x], axis=1) + tensors["pos_embed"]
    for number in range(12):
        name = f"blocks.{number}"
        qkv = dense(layer_norm(x, tensors, f"{name}.norm1"), tensors, f"{name}.attn.qkv")
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        x = x + dense(attended.swapaxes(1, 2).reshape(x.shape), tensors, f"{name}.attn.proj")
        hidden = dense(layer_norm(x, tensors, f"{name}.norm2"), tensors, f"{name}.mlp.fc1")
        gelu = 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
        x = x + dense(gelu, tensors, f"{name}.mlp.fc2")
    return layer_norm(x, tensors, "norm")[:, 0]


def add_dense(shapes, name, outputs, inputs):
    shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def resnet_shapes(*, stages, bottleneck, imagenet, shortcut, prefix="", width=64, classes=10, official=False):
    """Names and shapes as PyTorch's state_dict has them."""
    shapes = {}

    def add(name, outputs, inputs, size, norm):
        shapes[f"{prefix}{name}.weight"] = (outputs, inputs, size, size)
        shapes.update({f"{prefix}{norm}.{kind}": (outputs,) for kind in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{prefix}{norm}.num_batches_tracked"] = ()

    add("conv1", width, 3, 7 if imagenet else 3, "bn1")
    before = width
    for stage, blocks in enumerate(stages, start=1):
        inner = width << (stage - 1)
        after = 4 * inner if bottleneck else inner
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            plan = [(inner, before, 1), (inner, inner, 3), (after, inner, 1)]
            plan = plan if bottleneck else [(inner, before, 3), (inner, inner, 3)]
            for number, (outputs, inputs, size) in enumerate(plan, start=1):
                add(f"{name}.conv{number}", outputs, inputs, size, f"{name}.bn{number}")
            if block == 0 and (stage > 1 or before != after):
                add(f"{name}.{shortcut}.0", after, before, 1, f"{name}.{shortcut}.1")
            before = after
    if official:
        add_dense(shapes, "head.0", before, before)
        add_dense(shapes, "head.2", 128, before)
        add_dense(shapes, "fc.1", classes, 128)
    else:
        add_dense(shapes, "fc", classes, before)
    return shapes


def vit_shapes(*, width, patch, tokens, classes):
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens + 1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for number in range(12):
        name = f"blocks.{number}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{name}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        for layer, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            add_dense(shapes, f"{name}.{layer}", outputs, inputs)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    add_dense(shapes, "head", classes, width)
    return shapes


def random_tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape)
        if len(shape) >= 2:
            values /= math.sqrt(math.prod(shape[1:]) / 2)
        elif name.endswith(("running_var", "weight")):
            values = 1 + 0.3 * np.abs(values)
        tensors[name] = np.asarray(np.asarray(0.3 * values if len(shape) == 3 else values, np.float32))
    return tensors


def written(tmp_path, tensors, name="net.safetensors"):
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, tmp_path / name)
    return tmp_path / name


def in_float64(tensors):
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def outputs_of(weights, network, images, train=False):
    model = make_network(network, weights.num_classes)
    run = jax.jit(lambda variables, images: model.apply(*variables, images, train=train))
    return run(weights.variables, jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32))


RESNETS = {
    "resnet18": {"bottleneck": False, "imagenet": False, "shortcut": "shortcut", "prefix": "encoder."},
    "resnet50": {"bottleneck": True, "imagenet": False, "shortcut": "shortcut", "prefix": "module.encoder."},
    "resnet18_imagenet_linear": {"bottleneck": False, "imagenet": True, "shortcut": "downsample"},
    "resnet50_imagenet_linear": {"bottleneck": True, "imagenet": True, "shortcut": "downsample"},
}


@pytest.mark.parametrize("network", RESNETS)
def test_a_whole_resnet_agrees_with_float64_in_pytorchs_layout(network, tmp_path):
    what, official = RESNETS[network], not network.endswith("_linear")
    stages = STAGES[network.split("_")[0]]
    tensors = random_tensors(resnet_shapes(stages=stages, **what, official=official, classes=7))
    images = np.random.default_rng(1).normal(size=(2, 3, 40, 40) if what["imagenet"] else (2, 3, 9, 9))
    weights = import_weights(written(tmp_path, tensors), network)
    assert weights.num_classes == 7
    exact = in_float64(tensors)
    features = resnet(exact, images, stages=stages, **what)
    embedding, logits = official_head(exact, features) if official else (features, dense(features, exact, "fc"))
    outputs, _ = outputs_of(weights, network, images)
    np.testing.assert_allclose(outputs.taps["encoder"], features, rtol=1e-4, atol=1e-5 * np.abs(features).max())
    np.testing.assert_allclose(outputs.embedding, embedding, rtol=1e-4, atol=1e-5 * np.abs(embedding).max())
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())


def test_in_train_mode_batches_are_normalised_by_their_own_statistics_which_move_the_running_ones(tmp_path):
    what = {"bottleneck": False, "imagenet": False, "shortcut": "shortcut"}
    tensors = random_tensors(resnet_shapes(stages=STAGES["resnet8"], **what, width=16))
    images = np.random.default_rng(1).normal(size=(4, 3, 8, 8))
    weights = import_weights(written(tmp_path, tensors), "resnet8_linear")
    exact = in_float64(tensors)
    outputs, state = outputs_of(weights, "resnet8_linear", images, train=True)
    features = resnet(exact, images, stages=STAGES["resnet8"], **what, train=True)
    np.testing.assert_allclose(outputs.embedding, features, rtol=1e-4, atol=1e-5)
    first = conv(images, exact["conv1.weight"], 1, 1)
    moved = state["batch_stats"]["stem"]["norm"]
    expected = 0.9 * exact["bn1.running_mean"] + 0.1 * first.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(moved["mean"], expected, rtol=1e-5, atol=1e-6)
    expected = 0.9 * exact["bn1.running_var"] + 0.1 * first.var(axis=(0, 2, 3))
    np.testing.assert_allclose(moved["var"], expected, rtol=1e-5)


@pytest.mark.parametrize(("network", "patch", "side"), [("vit_tiny_32_linear", 4, 32), ("vit_tiny_224_linear", 16, 224)])
def test_a_whole_vision_transformer_agrees_with_float64_in_timms_layout(network, patch, side, tmp_path):
    tensors = random_tensors(vit_shapes(width=192, patch=patch, tokens=(side // patch) ** 2, classes=5))
    images = np.random.default_rng(1).normal(size=(2, 3, side, side))
    weights = import_weights(written(tmp_path, tensors), network)
    assert (weights.num_classes, weights.image_shape) == (5, (side, side, 3))
    exact = in_float64(tensors)
    features = vit(exact, images, heads=3, patch=patch)
    outputs, _ = outputs_of(weights, network, images)
    np.testing.assert_allclose(outputs.embedding, features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.logits, dense(features, exact, "head"), rtol=1e-3, atol=1e-4)


SMALL = {"stages": STAGES["resnet8"], "bottleneck": False, "imagenet": False, "shortcut": "shortcut", "width": 16}


def small_tensors():
    return random_tensors(resnet_shapes(**SMALL, official=True))


def test_bfloat16_weights_become_float32(tmp_path):
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in small_tensors().items()}
    weights = import_weights(written(tmp_path, tensors), "resnet8")
    kernel = weights.variables.params["head"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, tensors["fc.1.weight"].astype(np.float32).T)


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "model.net."])
def test_a_last_layer_without_a_bias_has_one_of_zeros(prefix, tmp_path):
    tensors = small_tensors()
    biased = tensors | {"fc.1.bias": np.zeros_like(tensors["fc.1.bias"])}
    without = {f"{prefix}{name}": tensor for name, tensor in tensors.items() if name != "fc.1.bias"}
    found = import_weights(written(tmp_path, without), "resnet8")
    chex.assert_trees_all_equal(found.variables, import_weights(written(tmp_path, biased), "resnet8").variables)


def refused(path, network="resnet8"):
    with pytest.raises(ValueError) as error:
        import_weights(path, network)
    return str(error.value)


def test_what_does_not_fit_is_listed(tmp_path):
    tensors = small_tensors()
    del tensors["layer2.0.bn1.running_mean"]
    tensors["projector.weight"] = np.zeros((3, 3), np.float32)
    tensors["layer9.0.conv1.weight"] = np.zeros((3, 3, 3, 3), np.float32)
    tensors["head.2.weight"] = np.zeros((128, 63), np.float32)
    message = refused(written(tmp_path, tensors))
    assert "missing in the file: batch_stats/stage_2/block_0/norm_1/mean (1 in all)" in message
    assert "unknown to the network: layer9.0.conv1.weight, projector.weight (2 in all)" in message
    assert "head.2.weight makes params/embedding/kernel (63, 128), but the network's is (64, 128)" in message
    assert "_linear" in message


def test_a_file_of_another_network_is_refused(tmp_path):
    path = written(tmp_path, random_tensors(resnet_shapes(**SMALL)))
    assert "fc.weight makes params/head/kernel (64, 10), but the network's is (128, 10)" in refused(path)
    assert "is not of a network that can be read" in refused(written(tmp_path, {"weight": np.zeros((2, 2), np.float32)}))


def test_two_tensors_for_one_place_are_refused(tmp_path):
    tensors = small_tensors()
    tensors["module.conv1.weight"] = tensors["conv1.weight"]
    assert "several tensors for one place in the network, among them" in refused(written(tmp_path, tensors))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_numbers_are_refused(bad, tmp_path):
    tensors = small_tensors()
    tensors["layer1.0.conv2.weight"][0, 0, 0, 0] = bad
    assert "holds NaN or infinity in layer1.0.conv2.weight (1 in all)" in refused(written(tmp_path, tensors))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_pickle_is_never_opened_and_the_error_converts_it(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    message = refused(path)
    assert not Path("exploded").exists()
    assert f'torch.load("model{suffix}", map_location="cpu", weights_only=True)' in message
    assert '"model.safetensors"' in message
    assert len(re.findall(r"^  ", message, re.MULTILINE)) == 3


def test_a_pickle_by_another_name_is_not_opened_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    assert "cannot be read as safetensors" in refused(path)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_cut_file_is_refused(keep, tmp_path):
    path = written(tmp_path, small_tensors())
    path.write_bytes(path.read_bytes()[:keep])
    assert "cannot be read as safetensors" in refused(path)


def test_a_missing_file_and_an_unknown_network_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors does not exist"):
        import_weights(tmp_path / "nowhere.safetensors", "resnet8")
    assert "network 'resnet9' does not exist; choose one of" in refused(written(tmp_path, small_tensors()), "resnet9")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "net.", "student.backbone."])
def test_what_training_tools_put_before_all_names_means_nothing_and_is_told(tmp_path, prefix):
    tensors = random_tensors(resnet_shapes(**SMALL))
    expected = import_weights(written(tmp_path, tensors), "resnet8_linear")
    found = import_weights(written(tmp_path, {prefix + name: tensor for name, tensor in tensors.items()}), "resnet8_linear")
    assert (expected.prefix, found.prefix) == ("", prefix)
    chex.assert_trees_all_equal(found.variables, expected.variables)
