"""Every setting is documented under its own name, in words that somebody wrote."""

import dataclasses

import pytest
from docstrings import attributes, written
from test_ranges import SETTINGS

import cujax


@dataclasses.dataclass
class Bare:
    batch_size: int = 1


@dataclasses.dataclass
class Half:
    """Something.

    Attributes:
        retain_batch_size: Rows; batch_size: not an entry.
    """

    batch_size: int = 1
    retain_batch_size: int = 1


class Plain(Half):
    pass


def test_a_docstring_of_python_itself_and_a_part_of_another_name_do_not_count():
    assert Bare.__doc__
    assert written(Bare) == ""
    assert attributes(Bare) == set()
    assert attributes(Half) == {"retain_batch_size"}
    assert written(Half).startswith("Something.")
    assert written(Plain) == ""


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_setting_has_an_entry_of_exactly_its_name(kind):
    assert written(kind)
    assert {field.name for field in dataclasses.fields(kind)} <= attributes(kind)


@pytest.mark.parametrize("name", cujax.__all__)
def test_every_public_name_is_documented(name):
    assert isinstance(getattr(cujax, name), str) or written(getattr(cujax, name))
