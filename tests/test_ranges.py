"""Every number that a user can set has a range, and what lies outside is refused with a sentence before any compute."""

import dataclasses
import math
import re
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np
import pytest

from cujax._ranges import Range
from cujax.benchmark import Benchmark
from cujax.commands import benchmark, import_weights, lineage, prepare_data
from cujax.data.batches import DeviceImages
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetClasses, ForgetIds, ForgetRandom, ForgetSubject, ForgetWhere
from cujax.experiments.compare import Comparison
from cujax.experiments.config import Experiment, Setup
from cujax.experiments.tune import Tuning
from cujax.experiments.user_files import load_python_file
from cujax.methods import SalUn, Scrub, SelectiveSynapticDampening
from cujax.methods.base import Loop
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.methods.registry import METHODS
from cujax.methods.search_space import LogUniform
from cujax.training.supervised import Trainer, Training

IMAGES = DeviceImages(*(np.zeros(1, np.float32) for _ in range(4)))
# Each with what it cannot be made without.
SETTINGS = {
    Data: {},
    ForgetClass: {},
    ForgetClasses: {"labels": (1,)},
    ForgetRandom: {},
    ForgetIds: {"path": "ids.txt"},
    ForgetSubject: {"subject": "anna"},
    ForgetWhere: {"predicate": max},
    Training: {},
    Trainer: {"recipe": Training(), "images": IMAGES},
    Setup: {},
    Experiment: {},
    Comparison: {},
    Tuning: {},
    Benchmark: {},
    Loop: {"images": IMAGES},
    LogUniform: {"low": 1e-3, "high": 1.0},
    benchmark.Options: {},
    load_python_file(Path(__file__).parents[1] / "scripts" / "torture.py").Torture: {},
    prepare_data.Prepare: {"name": "mnist"},
    import_weights.Import: {"file": Path("a"), "directory": Path("b")},
    lineage.Lineage: {"directory": Path("a")},
} | {method: {} for method in METHODS.values()}

EDGES = [math.nan, math.inf, -math.inf, -1, 0, 2**31, 2**32, 2**63, 2**64, 10**400]


def ranges(hint):
    """The ranges in a type, and whether a number stands in it without one."""
    if get_origin(hint) is Annotated:
        found = [item for item in hint.__metadata__ if isinstance(item, Range)]
        return (found, False) if found else ranges(hint.__origin__)
    if get_origin(hint) in (Union, UnionType, tuple):
        parts = [ranges(part) for part in get_args(hint)]
        return [item for found, _ in parts for item in found], any(bare for _, bare in parts)
    return [], hint in (int, float, complex)


def numeric_fields():
    for kind in SETTINGS:
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            found, bare = ranges(hints[field.name])
            if found or bare:
                yield kind, field.name, found, hints[field.name]


FIELDS = list(numeric_fields())
each_field = pytest.mark.parametrize(
    ("kind", "name", "found", "hint"), [pytest.param(*row, id=f"{row[0].__name__}.{row[1]}") for row in FIELDS]
)


def make(kind, name, value, hint):
    required = dict(SETTINGS[kind])
    if kind is ForgetRandom and name == "seed":
        required = {"count": 3}
    return kind(**required | {name: (value,) if get_origin(hint) is tuple else value})


def contains(limits, value):
    """Written from the words: finite, whole where it says so, between the ends."""
    if value != value or value in (math.inf, -math.inf):
        return False
    if limits.whole and value != int(value):
        return False
    if not limits.whole and abs(value) > sys.float_info.max:
        return False
    low = value > limits.low if limits.above else value >= limits.low
    return low and (value < limits.high if limits.below else value <= limits.high)


@each_field
def test_a_number_declares_one_range_and_at_its_edges_is_taken_or_refused_by_name(kind, name, found, hint):
    (limits,) = found
    for value in EDGES:
        given = (value,) if get_origin(hint) is tuple else value
        if contains(limits, value) and not refused_for_another_field(kind, name, value):
            assert getattr(make(kind, name, value, hint), name) == given
            continue
        with pytest.raises(ValueError, match=rf"\b{name}\b|0 < low < high") as refused:
            make(kind, name, value, hint)
        assert (str(value) if kind is LogUniform else repr(given)) in str(refused.value)


def refused_for_another_field(kind, name, value):
    """Whether a number of the range does not go with the other fields: low above high, nothing to compare with."""
    return (kind is LogUniform and name == "low") or (kind is Comparison and (name, value) == ("retrained", 0))


@each_field
def test_whole_numbers_of_a_range_fit_what_takes_them(kind, name, found, hint):
    (limits,) = found
    if not limits.whole:
        return
    ends = (limits.low, limits.high)
    if "seed" in name:
        assert ends == (0, 2**32 - 1)  # more would be the same bits again, or a traceback
    for end in ends:
        if "seed" in name:
            jax.random.key(end)
            np.random.default_rng(end)
            np.random.RandomState(end)
        else:
            np.int32(end)
        with pytest.raises(ValueError, match="whole number"):
            make(kind, name, end + 0.5, hint)


def test_seeds_of_the_range_are_told_apart():
    bits = {tuple(jax.random.bits(jax.random.key(seed), 4).tolist()) for seed in (0, 1, 2**31, 2**32 - 1)}
    assert len(bits) == 4


@pytest.mark.parametrize("kind", [ContrastiveUnlearning, Scrub, SelectiveSynapticDampening])
@pytest.mark.parametrize("value", [1, 1.0, 50, -0.1])
def test_an_accuracy_that_counts_as_forgotten_is_a_fraction_below_one(kind, value):
    with pytest.raises(ValueError, match=re.escape(f"forgotten_accuracy must lie in [0, 1), but is {value}")):
        kind(forgotten_accuracy=value)
    assert kind(forgotten_accuracy=None).forgotten_accuracy is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(learning_rate="high"), "training.learning_rate must be a number, but is 'high'"),
        (lambda: Data(label_noise=math.nan), r"data.label_noise must lie in \[0, 1\), but is nan"),
        (lambda: SalUn(optimizer="lion"), r"optimizer must be one of \(.*'sgd'.*\), but is 'lion'"),
        (lambda: Experiment(dtype="int8"), r"dtype must be one of \(.*\), but is 'int8'"),
        (lambda: Comparison(methods="scrub"), "methods must be a sequence, .*but is 'scrub'"),
        (lambda: Comparison(requests="random:50"), "requests must be a sequence, .*but is 'random:50'"),
        (lambda: ForgetClasses(labels="35"), "labels must be a sequence, .*but is '35'"),
        (lambda: ForgetClasses(labels=35), "labels must be a sequence, .*but is 35"),
        (lambda: Comparison(seeds=(0, 2**32)), r"seeds must be at most 4294967295, but is \(0, 4294967296\)"),
    ],
)
def test_what_is_refused_is_told_with_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_dataclass_on_a_command_line_is_walked():
    """What a user's experiment holds, at any depth."""

    def inside(kind):
        for hint in get_type_hints(kind, include_extras=False).values():
            for part in (hint, *get_args(hint)):
                if dataclasses.is_dataclass(part) and isinstance(part, type):
                    yield part
                    yield from inside(part)

    found = {part for kind in (Experiment, Comparison, Tuning) for part in inside(kind)}
    assert {Data, Training, ForgetRandom} <= found
    assert found <= set(SETTINGS)
