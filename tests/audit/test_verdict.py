"""A figure is judged against the range of the retrained models, on both sides, or not at all and with the reason."""

import pytest

from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.verdict import judge


def refuses():
    raise NotAvailable("a bootstrap of 3 tells nothing")


def reference(value, half_width=0.0):
    return Estimate(value, lambda: (value - half_width, value + half_width))


POINTS = [reference(value) for value in (0.4, 0.6, 0.5, 0.45, 0.55)]
WIDE = [reference(value, half) for value, half in ((0.4, 0.02), (0.6, 0.01), (0.42, 0.1), (0.45, 0.05), (0.5, 0.15))]


@pytest.mark.parametrize(
    ("value", "word", "outside_by"),
    [(0.5, "within", 0.0), (0.4, "within", 0.0), (0.6, "within", 0.0), (0.61, "above", 0.01), (0.15, "below", 0.25)],
)
def test_a_figure_is_judged_on_both_sides(value, word, outside_by):
    verdict = judge(Estimate(value), POINTS)
    assert verdict.word == word
    assert verdict.outside_by == pytest.approx(outside_by)
    assert (verdict.low, verdict.high) == (0.4, 0.6)
    assert verdict.reason == ""


def test_the_range_is_widened_by_the_intervals_of_all_oracles_and_not_of_the_outermost_alone():
    assert judge(Estimate(0.33), WIDE).word == "within"
    verdict = judge(Estimate(0.30), WIDE)
    assert (verdict.word, verdict.low) == ("below", pytest.approx(0.32))
    assert verdict.outside_by == pytest.approx(0.02)
    verdict = judge(Estimate(0.70), WIDE)
    assert (verdict.word, verdict.high) == ("above", pytest.approx(0.65))
    assert verdict.outside_by == pytest.approx(0.05)


def test_the_interval_of_the_figure_itself_is_not_asked_for():
    assert judge(Estimate(0.9, refuses), POINTS).word == "above"
    assert judge(Estimate(0.7, lambda: (0.1, 0.9)), POINTS).word == "above"


def test_oracles_without_intervals_count_with_their_values():
    references = [Estimate(value) for value in (1.0, 2.0, 3.0, 4.0)] + [reference(5.0, 1.0)]
    assert judge(Estimate(6.0), references).word == "within"
    assert judge(Estimate(0.9), references).word == "below"


def test_rounding_is_not_a_difference():
    same = [Estimate(0.1 + 0.2)] * 5
    assert judge(Estimate(0.3), same).word == "within"
    assert judge(Estimate(0.30001), same).word == "above"


@pytest.mark.parametrize("n", [0, 1, 4])
def test_fewer_than_5_oracles_judge_nothing_and_say_so(n):
    verdict = judge(Estimate(0.5), POINTS[:n])
    assert verdict.word == "not judged"
    assert f"{n} retrained models" in verdict.reason
    assert "5" in verdict.reason
    assert verdict.outside_by is verdict.low is verdict.high is None


def test_how_many_oracles_it_takes_can_be_given():
    assert judge(Estimate(0.5), POINTS[:3], fewest=3).word == "within"
    assert judge(Estimate(0.5), POINTS, fewest=6).word == "not judged"


def test_where_the_interval_of_an_oracle_is_not_available_nothing_is_judged_for_that_reason():
    verdict = judge(Estimate(0.5), [*POINTS, Estimate(0.5, refuses)])
    assert verdict.word == "not judged"
    assert verdict.reason == "a bootstrap of 3 tells nothing"
    assert verdict.outside_by is verdict.low is verdict.high is None


def test_what_is_not_a_number_is_not_judged():
    assert judge(Estimate(float("nan")), [Estimate(0.5)] * 5).word == "not judged"
    assert judge(Estimate(0.5), [Estimate(0.5)] * 4 + [Estimate(float("nan"))]).word == "not judged"
