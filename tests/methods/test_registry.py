"""Methods by name, from this package and from others."""

import dataclasses
import json

import pytest

from cujax.methods import Scrub
from cujax.methods.base import Method
from cujax.methods.registry import METHODS, find_method, method_names


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """An installed package that registers a method, one that is not there, and one under a name that is taken."""
    (tmp_path / "theirs.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Theirs:\n    strength: float = 2.0\n"
        "    def __call__(self, model, original, split, *, key, loop): ...\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cujax.methods]\ntheirs = theirs:Theirs\nbroken = theirs:Absent\nscrub = theirs:Theirs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_frozen_dataclass_with_defaults(name):
    method = METHODS[name]
    assert isinstance(method(), Method)
    assert method() == method()
    assert hash(method()) == hash(method())
    assert method.__dataclass_params__.frozen


def test_other_packages_register_methods(other_package):
    assert {"theirs", "scrub"} <= set(method_names())
    assert find_method("theirs")().strength == 2.0
    assert find_method("scrub") is Scrub


def test_a_method_that_cannot_be_loaded_is_named(other_package):
    with pytest.raises(ValueError, match=r"'broken' is registered as theirs:Absent, which cannot be loaded"):
        find_method("broken")


def test_an_unknown_method_lists_those_that_there_are():
    with pytest.raises(
        ValueError, match="'nothing' does not exist; choose one of bad_teacher, boundary_expand, boundary_shrink, "
    ):
        find_method("nothing")


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_of_every_method_are_json(name):
    settings = dataclasses.asdict(METHODS[name]())
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
