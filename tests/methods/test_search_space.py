"""Ranges that tuning draws from, and those beside each method."""

import dataclasses

import numpy as np
import pytest

from cujax.methods.registry import METHODS
from cujax.methods.search_space import LogUniform


def test_every_factor_is_as_likely_as_another():
    values = [LogUniform(1e-4, 1e-1).at(fraction) for fraction in np.linspace(0, 1, 3001)]
    counts, _ = np.histogram(np.log10(values), bins=[-4, -3, -2, -1])
    assert counts == pytest.approx([1000, 1000, 1000], abs=2)


def test_whole_numbers_reach_both_ends():
    values = {LogUniform(1, 20).at(fraction) for fraction in np.linspace(0, 1, 2000, endpoint=False)}
    assert values == set(range(1, 21))
    assert all(type(value) is int for value in values)


@pytest.mark.parametrize("space", [LogUniform(0.01, 10.0), LogUniform(1, 20), LogUniform(1e-4, 0.5, below_one=True)])
def test_a_place_leads_back_to_its_value(space):
    for fraction in np.linspace(0, 1, 50, endpoint=False):
        value = space.at(fraction)
        assert space.at(space.place(value) + 1e-9) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(("low", "high", "below_one"), [(0.0, 1.0, False), (2.0, 1.0, False), (0.1, 1.5, True)])
def test_an_impossible_range_is_refused(low, high, below_one):
    with pytest.raises(ValueError, match=rf"low must be positive, but is {low}|{low} to {high}"):
        LogUniform(low, high, below_one)


@pytest.mark.parametrize("name", METHODS)
def test_every_range_beside_a_method_gives_settings_that_it_takes(name):
    method = METHODS[name]
    space = getattr(method, "search_space", {})
    assert space or name in ("l_codec", "mask_logit", "retrain")
    for fraction in (0.0, 0.3, 0.999):
        settings = {setting: values.at(fraction) for setting, values in space.items()}
        assert dataclasses.asdict(method(**settings)) | settings == dataclasses.asdict(method(**settings))


def test_published_settings_lie_within_the_ranges():
    """But for numbers of passes: with the stop rule a range of small ones would only cut runs short."""
    for name, method in METHODS.items():
        for setting, values in getattr(method, "search_space", {}).items():
            if setting != "max_passes":
                published = getattr(method(), setting)
                assert values.at(0.0) <= published <= values.at(0.999999) or values.below_one, (name, setting)
