"""The script that imports weights: what flax users save, and the comparison with logits of the source."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import serialization

from cujax import export_weights, load_checkpoint
from cujax.commands import export_weights as export_command
from cujax.commands import import_weights
from cujax.networks import make_network

NETWORK = """
import flax.linen as nn
import cujax

class Small(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes, name="head")(nn.relu(nn.Dense(5)(images.reshape(len(images), -1))))

def small(num_classes):
    return cujax.from_linen(Small(num_classes), embedding="head")
"""


@pytest.fixture
def main(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETWORK)
    return lambda *arguments: import_weights.main(arguments)


def parameters():
    rng = np.random.default_rng(0)
    dense = {"kernel": rng.normal(size=(16, 5)), "bias": rng.normal(size=5)}
    head = {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)}
    return jax.tree.map(np.float32, {"Dense_0": dense, "head": head})


def logits_of(params, inputs):
    hidden = np.maximum(inputs.reshape(len(inputs), -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


FLAX = ("--network", "nets.py:small", "--num-classes", "3", "--image-shape", "4", "4", "1")


def test_what_flax_saved_becomes_an_original_whose_logits_are_those_of_the_source(main, capsys):
    params, inputs = parameters(), np.random.default_rng(1).normal(size=(6, 4, 4, 1)).astype(np.float32)
    state = {"step": 7, "params": params, "opt_state": {"count": np.zeros(())}}
    Path("net.msgpack").write_bytes(serialization.to_bytes(state))
    np.savez("right.npz", inputs=inputs, logits=logits_of(params, inputs))
    np.savez("wrong.npz", inputs=inputs, logits=logits_of(params, inputs) + 0.01)
    assert main("net.msgpack", "wrong", *FLAX, "--check", "wrong.npz") == 2
    assert "more than 0.001" in capsys.readouterr().err
    assert not Path("wrong").exists()
    assert main("net.msgpack", "original", *FLAX, "--check", "right.npz") == 0
    said = capsys.readouterr().out
    assert "Left out: opt_state, step." in said
    assert "3 classes" in said
    loaded = load_checkpoint("original")
    np.testing.assert_array_equal(loaded.variables.params["head"]["kernel"], params["head"]["kernel"])
    assert loaded.metadata.config["imported_from"] == {"file": "net.msgpack"}


def test_what_is_missing_is_told(main, capsys):
    Path("net.msgpack").write_bytes(serialization.to_bytes({"params": parameters()}))
    for arguments, message in (
        (("net.msgpack", "out"), "give --num-classes and --image-shape"),
        (("net.msgpack", "out", "--num-classes", "3"), "go together"),
        (("net.safetensors", "out", "--step", "3"), "weights saved by flax"),
        (("nothing.msgpack", "out", *FLAX), "does not exist"),
        (("net.msgpack", "out", *FLAX[:2], "--num-classes", "4", *FLAX[4:]), "params/head/bias is float32 (3,)"),
    ):
        assert main(*arguments) == 2
        assert message in capsys.readouterr().err
        assert not Path("out").exists()


def test_a_reference_network_that_was_exported_is_imported_again(main, capsys):
    model = make_network("cnn", 3)
    variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    export_weights(variables, "net.safetensors")
    assert (
        main("net.safetensors", "original", "--network", "cnn", "--num-classes", "3", "--image-shape", "16", "16", "3") == 0
    )
    for one, other in zip(*map(jax.tree.leaves, (load_checkpoint("original").variables, variables)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["back.safetensors", "back.msgpack", "back"])
def test_what_was_imported_is_exported_bit_for_bit_and_comes_in_again(name, main, capsys):
    Path("net.msgpack").write_bytes(serialization.to_bytes({"params": parameters()}))
    assert main("net.msgpack", "original", *FLAX) == 0
    assert export_command.main(["original", name]) == 0
    assert "4 arrays" in capsys.readouterr().out
    assert main(name, "again", *FLAX) == 0
    first, again = load_checkpoint("original"), load_checkpoint("again")
    for one, other in zip(jax.tree.leaves(first.variables), jax.tree.leaves(again.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    before = [path.read_bytes() for path in sorted(Path(name).rglob("*")) if path.is_file()]
    assert export_command.main(["original", name]) == 2
    assert "exists" in capsys.readouterr().err
    assert [path.read_bytes() for path in sorted(Path(name).rglob("*")) if path.is_file()] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out.msgpack"], "nowhere"),
        (["original", "out.onnx"], "must end in .safetensors or .msgpack"),
        (["damaged", "out.msgpack"], "damaged"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence_and_nothing_is_written(arguments, message, main, capsys):
    Path("net.msgpack").write_bytes(serialization.to_bytes({"params": parameters()}))
    assert main("net.msgpack", "original", *FLAX) == 0
    shutil.copytree("original", "damaged")
    largest = max((path for path in Path("damaged").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-3])
    assert export_command.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().glob("out*"))
