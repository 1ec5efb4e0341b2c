"""What a person and a program see of the verdict."""

import dataclasses
import json
import re

import pytest
from etils.epath import Path

from cujax.audit.findings import Findings
from cujax.audit.key_metrics import key_metrics
from cujax.audit.verdict import ORDER, Figure, judge
from cujax.reports.verdict import describe_verdict, exit_status, trust, verdict_lines
from cujax.storage.records import RecordError
from cujax.storage.verdicts import load_verdict, save_verdict


def findings(unlearned, retrained=8, **changes):
    """Of a class: the original at .95, retrained models about .05 on the figures of answers, features and return."""
    figures = {}
    for metric in key_metrics("class"):
        if metric.kind == "share":
            values = [0.04 + 0.002 * k for k in range(retrained)]
            figures[metric.key] = Figure(unlearned=0.045, original=0.95, retrained=values, n=200)
        if metric.kind == "steps":
            values = [20.0 + k for k in range(retrained)]
            figures[metric.key] = Figure(unlearned=22.0, original=0.0, retrained=values)
    for key in ("retain_test_accuracy", "test_accuracy", "agreement"):
        values = [0.9 + 0.001 * k for k in range(retrained)]
        figures[key] = Figure(unlearned=0.903, original=0.9, retrained=values, n=1000)
    figures |= {key: dataclasses.replace(figures[key], unlearned=value) for key, value in unlearned.items()}
    verdict = judge(figures, "class", headings={"probe_z": "probe at z"}, **changes)
    return Findings("standard", [], verdict, {"retrained": [None] * retrained}, seconds_to_judge=40.0)


def report(found):
    cost = {"seconds": 1.5, "steps": 84, "flops": 1e9}
    return {
        "verdict": json.loads(json.dumps(describe_verdict(found, 131), allow_nan=False)),
        "part": "",
        "cost": {"unlearned": cost, "retrained": {**cost, "flops": 4e9}},
    }


CASES = {
    "no_trace": {},
    "not_forgotten": {"forget_test_accuracy": 0.9},
    "hidden": {"probe_z": 0.94},
    "over_forgotten": {"relearning_steps": 300.0},
    "damaged": {"retain_test_accuracy": 0.8, "test_accuracy": 0.8},
}


@pytest.mark.parametrize("word", CASES)
def test_the_last_lines_say_the_verdict_its_reasons_and_the_next_step(word):
    made = report(findings(CASES[word]))
    assert made["verdict"]["word"] == word
    lines = verdict_lines(made)
    assert lines[0].startswith(f"Verdict: {made['verdict']['heading']}")
    text = "\n".join(lines)
    for family in ("Answers", "Features", "Comes back", "Retained accuracy", "Cost", "Trust", "Next"):
        assert f"  {family}" in text
    assert "84 steps, 1.5 s; 25% of the operations" in text
    assert not any(line.strip().lower().startswith("forgot") for line in lines)
    assert "8 retrained models, 131 forgotten samples" in text


def test_several_faults_are_all_named():
    made = report(findings(CASES["not_forgotten"] | CASES["hidden"] | CASES["damaged"]))
    assert verdict_lines(made)[0] == "Verdict: Damaged (also: not forgotten, hidden)"


def test_reasons_and_trust_call_metrics_by_their_headings():
    verdict = report(findings(CASES["hidden"]))["verdict"]
    assert verdict["reasons"][0].startswith("probe at z is 0.94, retrained models")
    named = verdict | {"metrics": [metric | {"heading": "accuracy of it"} for metric in verdict["metrics"]]}
    assert "original's accuracy of it" in trust(named)


def test_the_next_step_is_a_method_for_the_task():
    found = findings(CASES["hidden"])
    assert "method:retrain_short" in report(found)["verdict"]["next_step"]
    of_samples = dataclasses.replace(found, verdict=dataclasses.replace(found.verdict, task="samples"))
    assert "method:shrink_perturb" in report(of_samples)["verdict"]["next_step"]


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"no_trace"}))
@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("RetrainShort", "--method.share"),
        ("ShrinkPerturb", "--method.shrink"),
        ("Undo", "--method.shrink"),
        ("Retrain", "--seed"),
    ],
)
def test_the_next_step_after_retraining_is_one_that_it_can_take(case, method, advice):
    step = describe_verdict(findings(CASES[case]), 131, method)["next_step"]
    assert advice in step
    assert "weight" not in step
    assert "passes" not in step


def test_with_too_few_models_the_next_step_is_how_to_judge():
    made = report(findings({}, retrained=5))
    assert made["verdict"]["word"] == "not_judged"
    assert "--retrained 8 (about 40 s of additional training)" in made["verdict"]["next_step"]
    assert "8 retrained models are needed to say that there is no trace" in "\n".join(verdict_lines(made))


def test_a_small_request_is_told_how_many_samples_it_takes():
    verdict = report(findings({}))["verdict"]
    assert verdict["required_samples"] < 131
    assert "even the original can pass" not in trust(verdict)
    assert "even the original can pass" in trust(verdict | {"forget_samples": verdict["required_samples"] - 1})


@pytest.mark.parametrize(
    ("original", "weaker", "stranger"), [(0.9, False, False), (0.92, False, False), (0.95, True, False), (0.33, False, True)]
)
def test_a_weaker_recipe_and_an_original_of_other_data_are_reported(original, weaker, stranger):
    found = findings({})
    metrics = [
        dataclasses.replace(judged, original=original) if judged.metric.key == "retain_test_accuracy" else judged
        for judged in found.verdict.metrics
    ]
    found = dataclasses.replace(found, verdict=dataclasses.replace(found.verdict, metrics=tuple(metrics)))
    text = trust(report(found)["verdict"])
    found = re.search(r"classify only 90\.[34] of 100 retained test samples correctly, the original 95\.0", text)
    assert (found is not None) == weaker
    assert ("--training.epochs" in text) == weaker
    assert ("the original classifies only 33.0 of 100" in text) == stranger
    assert ("classes in another order" in text) == stranger


def test_counts_of_one_are_singular():
    verdict = report(findings({}))["verdict"] | {"retrained": 1, "forget_samples": 1}
    assert trust(verdict).startswith("1 retrained model, 1 forgotten sample;")


def test_without_an_audit_there_is_no_verdict():
    assert verdict_lines({"verdict": None}) == ["No verdict: the run was not audited (--audit none)."]
    assert exit_status(None, None) == 0


@pytest.mark.parametrize(
    ("word", "unchanged", "require", "status"),
    [
        ("no_trace", False, None, 0),
        ("hidden", False, None, 0),
        ("not_judged", False, None, 0),
        ("distinguishable", False, None, 0),
        ("over_forgotten", False, None, 0),
        ("not_forgotten", False, None, 3),
        ("damaged", False, None, 3),
        ("hidden", True, None, 3),
        ("no_trace", False, "no_trace", 0),
        ("not_judged", False, "no_trace", 3),
        ("distinguishable", False, "no_trace", 3),
        ("distinguishable", False, "hidden", 0),
        ("hidden", False, "distinguishable", 3),
        ("not_judged", False, "hidden", 3),
        ("not_judged", False, "not_judged", 0),
    ],
)
def test_the_exit_status(word, unchanged, require, status):
    assert exit_status({"word": word, "unchanged": unchanged}, require) == status


def test_the_order_names_every_verdict_once():
    assert sorted(ORDER) == sorted({*CASES, "distinguishable", "not_judged"})


def test_a_verdict_is_kept_with_its_checkpoint(tmp_path):
    folder, verdict = Path(tmp_path), report(findings({}))["verdict"]
    assert load_verdict(folder, "a" * 64) is None
    save_verdict(folder, "a" * 64, verdict)
    assert load_verdict(folder, "a" * 64) == verdict
    assert load_verdict(folder, "b" * 64) is None, "it was about another checkpoint"
    save_verdict(folder, "a" * 64, verdict | {"word": "hidden"})
    assert load_verdict(folder, "a" * 64)["word"] == "hidden", "a later audit's counts"
    text = (folder / "verdict.json").read_text()
    (folder / "verdict.json").write_text(text.replace('"hidden"', '"no_trace"'))
    with pytest.raises(RecordError, match="does not match its digest"):
        load_verdict(folder, "a" * 64)
