"""Without retrained models faults that show by themselves are named, and nothing else is ever claimed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cujax.audit.verdict_without_retrained import Alone, Probe, Share, judge_without_retrained
from cujax.audit.verdict_words import family_lines


def probe(unlearned, original=0.98, untrained=(0.3, 0.35, 0.4), n=100):
    return Probe(unlearned=Share(unlearned, n), original=Share(original, n), untrained=untrained)


# As in a model that never saw what was to be forgotten.
CLASS = Alone(
    forget_before=Share(0.95, 100),
    forget_after=Share(0.0, 100),
    probes={"hidden": probe(0.7), "z": probe(0.6)},
    retain_before=Share(0.95, 1000),
    retain_after=Share(0.95, 1000),
)
SAMPLES = replace(
    CLASS,
    forget_before=Share(1.0, 130),
    forget_after=Share(0.7, 130),
    held_out_after=Share(0.7, 140),
    loss_auc=(0.5, 0.43, 0.57),
    probes={"z": probe(0.7, original=1.0, n=130)},
)


@pytest.mark.parametrize(
    ("task", "known", "faults"),
    [
        ("class", CLASS, ()),
        ("samples", SAMPLES, ()),
        ("class", replace(CLASS, forget_after=Share(0.9, 100)), ("not_forgotten",)),
        ("class", replace(CLASS, forget_after=Share(0.05, 100)), ()),
        ("class", replace(CLASS, forget_after=Share(0.3, 100)), ("not_forgotten",)),
        ("class", replace(CLASS, forget_after=Share(1.0, 1)), ()),
        ("class", replace(CLASS, loss_auc=(0.9, 0.85, 0.95)), ()),  # shows nothing of a class
        ("samples", replace(SAMPLES, forget_after=Share(0.95, 130)), ("not_forgotten",)),
        ("samples", replace(SAMPLES, forget_after=Share(0.75, 130)), ()),
        ("samples", replace(SAMPLES, forget_after=Share(0.83, 130), held_out_after=Share(0.7, 1400)), ()),  # half is gone
        ("samples", replace(SAMPLES, loss_auc=(0.75, 0.69, 0.81)), ("not_forgotten",)),
        ("samples", replace(SAMPLES, loss_auc=(0.55, 0.48, 0.62)), ()),
        ("samples", replace(SAMPLES, loss_auc=(0.51, 0.505, 0.515)), ()),  # clear, but too small
        ("class", replace(CLASS, probes={"hidden": probe(0.98), "z": probe(0.97)}), ("hidden",)),
        ("class", replace(CLASS, probes={"hidden": probe(0.98), "z": probe(0.7)}), ()),  # one depth is not enough
        ("samples", replace(SAMPLES, probes={"z": probe(0.99, original=1.0, n=130)}), ("hidden",)),
        ("class", replace(CLASS, retain_after=Share(0.85, 1000)), ("damaged",)),
        ("class", replace(CLASS, retain_after=Share(0.945, 1000)), ()),
        ("class", replace(CLASS, retain_before=Share(0.95, 20), retain_after=Share(0.9, 20)), ()),  # chance
        ("class", replace(CLASS, retain_after=Share(1.0, 1000)), ()),
        (
            "class",
            replace(CLASS, retain_after=Share(0.5, 1000), forget_after=Share(0.9, 100), probes={"z": probe(0.98)}),
            ("damaged", "not_forgotten", "hidden"),
        ),
    ],
)
def test_faults(task, known, faults):
    verdict = judge_without_retrained(known, task)
    assert verdict.faults == faults
    assert verdict.word == (faults[0] if faults else "not_judged")
    assert verdict.n_retrained == 0
    assert verdict.reasons
    if not faults:
        assert "8 to say that there is no trace" in verdict.reasons[0]


def test_a_probe_of_samples_is_compared_with_held_out_accuracy_as_well():
    # An untrained network reads 35 of 100, but one that learned others reads 90 of 100 that nobody saw.
    known = replace(SAMPLES, held_out_after=Share(0.9, 140), forget_after=Share(0.9, 130))
    known = replace(known, probes={"z": probe(0.93, original=1.0, n=130)})
    assert judge_without_retrained(known, "samples").faults == ()


def test_a_depth_that_an_untrained_network_reads_as_well_decides_nothing():
    known = replace(CLASS, probes={"encoder": probe(0.97, original=0.97, untrained=(0.95, 0.96))})
    verdict = judge_without_retrained(known, "class")
    assert verdict.faults == ()
    assert (
        verdict.missing["probe_encoder"]
        == "a probe reads no more from the original than from a network that learned nothing"
    )
    both = replace(known, probes=known.probes | {"z": probe(0.98)})
    assert judge_without_retrained(both, "class").faults == ("hidden",)


def test_what_was_not_measured_is_missing_with_its_reason():
    verdict = judge_without_retrained(Alone(), "samples")
    assert verdict.word == "not_judged"
    assert set(verdict.missing) == {"retain_accuracy", "forget_accuracy", "mia_loss_auc", "probes"}
    lonely = replace(SAMPLES, held_out_after=None, probes={"z": probe(0.9, untrained=())})
    missing = judge_without_retrained(lonely, "samples").missing
    assert missing["forget_accuracy"] == "there is no held-out accuracy to compare with"
    assert missing["probe_z"] == "there is no untrained network to compare with"
    for auc in ((float("nan"), 0.4, 0.6), (0.5, 0.5, 0.5), (0.9, 0.4, 0.6)):
        assert "mia_loss_auc" in judge_without_retrained(replace(SAMPLES, loss_auc=auc), "samples").missing


def test_unchanged_is_noted():
    assert judge_without_retrained(CLASS, "class", unchanged=True).unchanged


@pytest.mark.parametrize(("value", "n"), [(-0.1, 5), (1.1, 5), (float("nan"), 5), (0.5, 0)])
def test_a_share_that_is_none_raises(value, n):
    with pytest.raises(ValueError, match="a share must be"):
        Share(value, n)


def test_a_line_for_each_family_that_was_tested():
    known = replace(SAMPLES, retain_after=Share(0.8, 1000))
    lines = family_lines(judge_without_retrained(known, "samples"))
    words = {line.family: line.word for line in lines}
    assert words == {
        "Retained accuracy": "NO",
        "Answers": "no fault visible",
        "Attacker": "no fault visible",
        "Features": "no fault visible",
    }
    assert not any("forgotten" in " ".join(line) for line in lines)


def test_models_that_never_saw_the_samples_are_given_a_fault_in_at_most_5_percent():
    rng = np.random.default_rng(0)
    n, draws = 130, 400
    faults = 0
    for _ in range(draws):
        after, held_out = rng.binomial(n, 0.7, 2) / n
        kept, before = rng.binomial(500, 0.85, 2) / 500
        auc = 0.5 + 0.035 * rng.standard_normal()
        known = Alone(
            forget_before=Share(1.0, n),
            forget_after=Share(after, n),
            held_out_after=Share(held_out, n),
            loss_auc=(auc, auc - 1.96 * 0.035, auc + 1.96 * 0.035),
            probes={"z": probe(rng.binomial(n, 0.7) / n, original=1.0, n=n)},
            retain_before=Share(before, 500),
            retain_after=Share(kept, 500),
        )
        faults += bool(judge_without_retrained(known, "samples").faults)
    assert stats.binomtest(faults, draws, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("accuracy", [0.85, 0.98])
def test_fisher_is_that_of_scipy(accuracy):
    after = Share(accuracy - 0.05, 300)
    verdict = judge_without_retrained(Alone(retain_before=Share(accuracy, 300), retain_after=after), "class")
    table = [[round(accuracy * 300), 300 - round(accuracy * 300)], [after.count, 300 - after.count]]
    p = stats.fisher_exact(table, alternative="greater").pvalue
    assert (verdict.word == "damaged") == (p <= 0.05)


def test_the_number_of_retrained_models_is_reported_though_they_are_too_few_to_judge_by():
    verdict = judge_without_retrained(CLASS, "class", n_retrained=3)
    assert verdict.n_retrained == 3
    assert family_lines(verdict) == family_lines(judge_without_retrained(CLASS, "class"))
