"""Files that a user names: loaded once, as modules that can be found, and anew where they changed."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.experiments.user_files import build_model, load_python_file
from cujax.methods import MaskLogit
from cujax.model import compute_embeddings
from cujax.training.supervised import Training

NETWORK = """
from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

import cujax


@dataclasses.dataclass(frozen=True)
class Widths:
    hidden: int = 6


class Net(nn.Module):
    classes: int
    widths: Widths = Widths()

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        embedding = nn.relu(nn.Dense(self.widths.hidden, name="hidden")(images.reshape(len(images), -1)))
        return embedding, nn.Dense(self.classes, name="head")(embedding)


def mine(num_classes: int) -> cujax.Model:
    return cujax.from_linen(Net(num_classes))
"""
IMAGES = jnp.ones((2, 4, 4, 1))


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return path


def test_annotations_that_are_text_are_looked_up_in_the_file(network):
    model = build_model(f"{network}:mine", 3)
    variables = model.init(jax.random.key(0), IMAGES)
    kernel, bias = variables.params["hidden"]["kernel"], variables.params["hidden"]["bias"]
    expected = np.maximum(np.asarray(IMAGES).reshape(2, -1) @ np.asarray(kernel) + np.asarray(bias)[None], 0)
    np.testing.assert_allclose(compute_embeddings(model, *variables, IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert model.num_classes == 3


def test_a_file_loaded_twice_gives_equal_models_and_one_compilation(network, monkeypatch):
    first = build_model(f"{network}:mine", 3)
    monkeypatch.chdir(network.parent)
    second = build_model("./net.py:mine", 3)
    assert first == second
    assert hash(first) == hash(second)
    variables = first.init(jax.random.key(0), IMAGES)
    before = compute_embeddings._cache_size()
    for model in (first, second):
        compute_embeddings(model, *variables, IMAGES)
    assert compute_embeddings._cache_size() == before + 1


def test_a_file_loaded_often_stays_one_module(network):
    modules = {load_python_file(network) for _ in range(5)}
    assert len(modules) == 1
    (module,) = modules
    assert sys.modules[module.__name__] is module


def test_a_changed_file_is_loaded_anew_and_files_of_one_name_are_two(network, tmp_path):
    first = build_model(f"{network}:mine", 3)
    other = tmp_path / "other" / "net.py"
    other.parent.mkdir()
    other.write_text(NETWORK)
    assert build_model(f"{other}:mine", 3) != first
    network.write_text(NETWORK.replace("nn.relu", "jax.numpy.sin"))
    second = build_model(f"{network}:mine", 3)
    assert second != first
    variables = second.init(jax.random.key(0), IMAGES)
    embeddings = [compute_embeddings(model, *variables, IMAGES) for model in (first, second)]
    assert not np.allclose(*embeddings)


def test_a_file_that_cannot_be_loaded_is_tried_again(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1 / 0\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"broken.py, line 1: ZeroDivisionError: division by zero; correct it"):
            load_python_file(path)
    assert not [name for name in sys.modules if "_broken_" in name]


def test_a_changed_network_is_refused_in_the_folder_of_the_one_before(network, tmp_path):
    experiment = Experiment(
        network=f"{network}:mine",
        training=Training(epochs=1),
        forget=ForgetClass(5),
        method=MaskLogit(),
        retrained=0,
        workdir=str(tmp_path / "run"),
    )
    digest = prepare(experiment).original().digest
    assert prepare(dataclasses.replace(experiment)).original().digest == digest
    network.write_text(NETWORK.replace("nn.relu", "jax.numpy.sin"))
    with pytest.raises(
        FileExistsError, match=r"another configuration:\n  network_sha256: \w{64} there, \w{64} now\n.*--workdir"
    ):
        prepare(experiment)
    network.write_text(NETWORK)
    assert prepare(experiment).original().digest == digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def mine(:\n", r"net.py, line 1: .*; correct it"),
        (
            "x = 1\nimport no_such_package\n",
            r"net.py, line 2: ModuleNotFoundError: No module named 'no_such_package'; install it",
        ),
        ("def helper():\n    raise ValueError('wrong')\n\nhelper()\n", r"net.py, line 2: ValueError: wrong; correct it"),
        ("def mine(num_classes):\n    return num_classes.net\n", r"net.py, line 2: AttributeError"),
        ("mine = 3\n", "returns int"),
        ("x = 1\n", r"net.py has no 'mine'; it has no functions"),
        ("def yours(num_classes):\n    return None\n", r"net.py has no 'mine'; it has yours"),
        (
            NETWORK.replace("nn.Dense(self.classes", "nn.Dense(self.none_such"),
            r"net.py, line 24 when applied to images \[8, 8, 1\]: AttributeError",
        ),
        (NETWORK.replace("len(images), -1", "7, 7"), r"net.py, line 23 when applied to images .*: TypeError"),
    ],
)
def test_what_is_wrong_in_a_network_file_is_a_sentence_with_its_line(tmp_path, text, message):
    path = tmp_path / "net.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare(Experiment(network=f"{path}:mine", workdir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_file_finds_the_modules_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_a_user_file.py").write_text("WIDTH = 7\n")
    (tmp_path / "mine.py").write_text("import beside_a_user_file\nCONFIG = beside_a_user_file.WIDTH\n")
    assert load_python_file(tmp_path / "mine.py").CONFIG == 7
    assert sys.path[-1] == str(tmp_path), "after all others: what lies there hides no module"
