"""Ranges that tuning draws from, and those beside each method."""

import dataclasses

import numpy as np
import pytest

from cujax.methods.registry import METHODS
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, places_of, settings_at
from cujax.methods.traits import reproduction_settings


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
    assert space or name in ("l_codec", "mask_logit", "retrain", "retrain_short")
    for fraction in (0.0, 0.3, 0.999):
        settings = settings_at(space, dict.fromkeys(space, fraction))
        assert dataclasses.asdict(method(**settings)) | settings == dataclasses.asdict(method(**settings))


def ranges():
    """Method, setting, range, and the optimiser that it is for."""
    for name, method in METHODS.items():
        for setting, values in getattr(method, "search_space", {}).items():
            if isinstance(values, ByOptimizer):
                yield from ((name, setting, getattr(values, optimizer), optimizer) for optimizer in OPTIMIZERS.values)
            else:
                yield name, setting, values, None


def test_published_settings_lie_within_the_ranges():
    """But for numbers of passes and batch sizes, which the first trial has as they were published."""
    for name, setting, values, optimizer in ranges():
        method = METHODS[name]()
        own = getattr(method, "optimizer_name", getattr(method, "optimizer", None))
        if isinstance(values, LogUniform) and setting != "max_passes" and optimizer in (None, own):
            published = getattr(method, setting)
            assert values.at(0.0) <= published <= values.at(0.999999) or values.below_one, (name, setting)


def test_a_range_spans_two_decades_at_most():
    for name, setting, values, _ in ranges():
        if isinstance(values, LogUniform):
            assert values.high / values.low <= 100 * (1 + 1e-9), (name, setting)


def test_every_method_that_descends_may_choose_its_optimiser():
    for name, method in METHODS.items():
        space = getattr(method, "search_space", {})
        if "learning_rate" in space:
            assert space.get("optimizer", space.get("optimizer_name")) is OPTIMIZERS, name
            assert isinstance(space["learning_rate"], ByOptimizer), name


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_of_reproductions_are_settings_of_the_method(name):
    for task in ("class", "samples"):
        settings = reproduction_settings(METHODS[name], task) or {}
        made = dataclasses.asdict(METHODS[name](**settings))
        assert made | settings == made


def test_places_lead_back_to_settings():
    space = {"optimizer": OPTIMIZERS, "learning_rate": ByOptimizer(LogUniform(0.01, 1.0), LogUniform(1e-4, 1e-2))}
    for optimizer, rate in (("sgd", 0.1), ("adamw", 1e-3)):
        places = places_of(space, {"optimizer": optimizer, "learning_rate": rate})
        assert places["learning_rate"] == pytest.approx(0.5)
        assert settings_at(space, places) == {"optimizer": optimizer, "learning_rate": rate}
