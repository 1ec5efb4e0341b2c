"""Command lines drawn at random end in success, or in a sentence and status 2."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("script_fuzz", PATH)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_forty_command_lines_end_as_they_should(fuzz):
    assert fuzz.fuzz(fuzz.Fuzz(draws=40, seed=3)) == []


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (lambda words: 0, None),
        (lambda words: print("error: a sentence that helps.") or 2, None),
        (lambda words: 1, "status 1"),
        (lambda words: 2, "without a word"),
        (lambda words: 1 / 0, "ZeroDivisionError"),
        (lambda words: Path("../outside").mkdir() or 0, "outside"),
        (lambda words: sys.exit(3), "status 3"),
    ],
)
def test_what_should_not_happen_is_noticed(fuzz, run, problem):
    found = fuzz.outcome(run, [], random.Random(0))
    assert (found is None) if problem is None else problem in found
