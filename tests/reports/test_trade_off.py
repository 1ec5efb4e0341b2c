"""What a run gave up for what it forgot is shown to its end, also where the guard returned an earlier state."""

import numpy as np
import pytest

from cujax.reports.trade_off import courses, ends_beyond, lost, remark_on_end, trade_off_curves, trade_off_curves_caption


def course(*points, target=0.01):
    return [
        {"step": 10 * number, "forget_accuracy": forget, "retain_accuracy": retain, "target": target}
        for number, (forget, retain) in enumerate(points)
    ]


RUINS = course((1.0, 0.9), (0.6, 0.88), (0.6, 0.89), (0.0, 0.5))
REPAIRS = course((1.0, 0.9), (0.0, 0.3), (0.0, 0.9))
SHORT = course((1.0, 0.9), (0.5, 0.85))


def test_courses_are_of_methods_that_have_one_and_not_of_the_controls():
    cells = {"a": {"0": {"course": RUINS}, "1": {"failed": "no"}}, "old": {"0": {}}, "short": {"0": {"course": SHORT}}}
    assert courses({"cells": cells, "controls": ["short"]}) == {"a": {"0": RUINS}}


def test_a_run_that_repairs_what_it_harmed_ends_within():
    np.testing.assert_allclose(lost(REPAIRS), [0, 0.6, 0])
    assert not ends_beyond(REPAIRS, 0.05)
    assert not ends_beyond(SHORT, 0.05), "the tolerance itself is within"
    assert remark_on_end({"0": REPAIRS, "1": SHORT}, 0.05, class_task=True) is None


def test_a_run_that_ended_beyond_is_shown_at_its_end_and_at_its_best_within():
    remark = remark_on_end({"0": SHORT, "3": RUINS}, 0.05, class_task=True)
    assert "in 1 of 2 seeds" in remark
    assert "seed 3, last state: step 30, forget accuracy 0.000, retained -40.0 points" in remark
    assert remark.endswith(
        "best state within the tolerance: step 20, forget accuracy 0.600, retained -1.0 points (validation)"
    )


@pytest.mark.parametrize(("target", "best"), [(0.7, 10), (0.97, 0), (None, 10)])
def test_of_samples_the_best_state_is_nearest_to_its_target(target, best):
    ruins = course((1.0, 0.9), (0.6, 0.88), (0.0, 0.5), target=target)
    remark = remark_on_end({"0": ruins}, 0.05, class_task=False)
    assert f"best state within the tolerance: step {best}," in remark


def test_the_pictures_show_every_run_and_the_caption_names_who_ended_beyond():
    by_method = {"scrub": {"0": REPAIRS}, "ascent": {"0": RUINS, "1": SHORT}, **{f"m{n}": {"0": SHORT} for n in range(4)}}
    axes = trade_off_curves(by_method, 0.05).axes
    assert [axis.get_title() for axis in axes[:6]] == ["ascent", "m0", "m1", "m2", "m3", "scrub"]
    drawn = [line for line in axes[0].lines if len(line.get_xdata()) == len(RUINS)]
    np.testing.assert_allclose(drawn[0].get_xdata(), [0, 2, 1, 40])
    np.testing.assert_allclose(drawn[0].get_ydata(), [1, 0.6, 0.6, 0])
    assert "1 of 6 methods ended outside the tolerance in a seed: ascent." in trade_off_curves_caption(by_method, 0.05)
