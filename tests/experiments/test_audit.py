"""Whole audits of small real models: calibrated on retrained ones, and not deceived by what only looks forgotten."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from etils import epath

from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.relearning import relearn
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetRandom
from cujax.experiments import audit as auditing
from cujax.experiments.audit import Audit, Level, method_of
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.methods import ContrastiveUnlearning
from cujax.reports.html import html_page
from cujax.reports.run_report import make_report
from cujax.reports.summary import describe_findings, not_computed, summary
from cujax.reports.verdict import verdict_lines
from cujax.storage.checkpoints import Metadata, save_checkpoint
from cujax.training.supervised import Training

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def small_audits():
    """Fewer models, steps and samples of probes than users get, so that tests end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(auditing.LEVELS, "standard", Level(5, 0))
        patch.setitem(auditing.LEVELS, "full", Level(10, 10))
        patch.setattr("cujax.experiments.look._PROBE_SAMPLES", 600)
        patch.setattr("cujax.experiments.look.relearn", functools.partial(relearn, at_most=60))
        yield


@pytest.fixture(scope="module")
def class_audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    experiment = Experiment(
        training=Training(epochs=12),
        method=ContrastiveUnlearning(learning_rate=0.02, unlearn_weight=1.0),
        forget=ForgetClass(5),
        retrained=0,
        workdir=str(folder / "run"),
    )
    return Audit(prepare(experiment), "standard", epath.Path(folder / "retrained models"))


@pytest.fixture(scope="module")
def class_findings(class_audit):
    """Of what the run itself unlearned."""
    return class_audit.findings(class_audit.run.original(), class_audit.run.unlearned(), None)


@pytest.fixture(scope="module")
def sample_findings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    experiment = Experiment(
        data=Data("digits", label_noise=0.2),
        training=Training(epochs=18, batch_size=128, learning_rate=5e-3),
        method=ContrastiveUnlearning(max_passes=1),
        forget=ForgetRandom(fraction=0.1),
        retrained=0,
        workdir=str(folder / "run"),
    )
    audit = Audit(prepare(experiment), "full", epath.Path(folder / "retrained models"))
    original, unlearned = audit.run.original(), audit.run.unlearned()
    findings = audit.findings(original, unlearned, method_of(unlearned))
    return audit, findings, make_report(audit.run, original, audit.retrained(), unlearned, findings)


def by_key(findings):
    return {found.key: found for found in findings.metrics}


def spread(found):
    """Values of retrained models, widened by their intervals over samples: their lowest and highest end."""
    if found.key == "class_inference_auc":  # its intervals are over one or two models, and as wide as can be
        values = [estimate.value for estimate in found.retrained]
        return min(values), max(values)

    def ends_of(estimate):
        try:
            return estimate.interval() if estimate.interval else (estimate.value,) * 2
        except NotAvailable:
            return (estimate.value,) * 2

    ends = [ends_of(estimate) for estimate in found.retrained]
    return min(low for low, _ in ends), max(high for _, high in ends)


def flagged(findings):
    """What lies outside of the widened range of retrained models."""
    keys = set()
    for found in findings.metrics:
        if isinstance(found.values["unlearned"], Estimate) and found.retrained:
            low, high = spread(found)
            if not low - 1e-9 <= found.values["unlearned"].value <= high + 1e-9:
                keys.add(found.key)
    return keys


def contains(estimate, value):
    low, high = estimate.interval()
    return low <= value <= high


def pretended(audit, folder, variables, **record):
    """A checkpoint that says that it was unlearned."""
    ids = tuple(audit.run.split.forget.ids.tolist())
    source = audit.run.source
    metadata = Metadata("unlearned", source.name, source.version, forgotten_ids=ids, record=record)
    return save_checkpoint(folder / "checkpoint", variables, metadata)


def findings_of(audit, folder, variables, **record):
    return audit.findings(audit.run.original(), pretended(audit, folder, variables, **record), None)


@pytest.fixture(scope="module")
def of_the_original(class_audit, tmp_path_factory):
    return findings_of(class_audit, tmp_path_factory.mktemp("original"), class_audit.run.original().variables)


@pytest.fixture(scope="module")
def of_the_mask(class_audit, tmp_path_factory):
    variables = class_audit.run.original().variables
    return findings_of(class_audit, tmp_path_factory.mktemp("mask"), variables, masked_classes=[5])


@pytest.fixture(scope="module")
def of_another(class_audit, tmp_path_factory):
    """Of a further retrained model."""
    folder = tmp_path_factory.mktemp("another")
    fresh = dataclasses.replace(class_audit.run.experiment, seed=9, retrained=1, workdir=str(folder / "fresh"))
    (retrained,) = prepare(fresh).retrained()
    return findings_of(class_audit, folder, retrained.variables)


# What the retrained models' range holds only where the class is gone from the network, not from its answers alone.
DEEP = {"probe_z", "nearest_class_mean", "class_inference_auc", "relearning_ratio"}


def test_an_original_returned_unchanged_is_flagged_by_every_family(of_the_original):
    findings = of_the_original
    families = {by_key(findings)[key].family for key in flagged(findings)}
    assert {"accuracy", "membership", "class inference", "distance", "representation", "relearning"} <= families
    assert {"forget_train_accuracy", "forget_test_accuracy", "mean_gap", "residual_knowledge", *DEEP} <= flagged(findings)
    assert by_key(findings)["relearning_ratio"].values["unlearned"].value == 0
    assert findings.verdict.word == "not_forgotten"
    assert findings.verdict.unchanged
    assert {"not_forgotten", "hidden", "distinguishable"} <= set(findings.verdict.faults)


def test_masked_logits_are_flagged_by_what_lies_beneath_them(of_the_mask):
    findings = of_the_mask
    assert not {"forget_train_accuracy", "forget_test_accuracy", "retain_test_accuracy"} & flagged(findings)
    assert flagged(findings) >= DEEP
    assert findings.verdict.word == "hidden"
    for key in ("mia_loss_auc", "mia_confidence", "mia_confidence_auc"):
        assert isinstance(by_key(findings)[key].values["unlearned"], str), "infinite losses tell nothing, not 0.5"


def test_a_last_layer_turned_away_from_the_class_is_flagged_by_the_features(class_audit, tmp_path):
    original = class_audit.run.original()
    params = jax.tree.map(jnp.array, original.variables.params)
    params["head"]["kernel"] = params["head"]["kernel"].at[:, 5].multiply(-1)
    turned = original.variables._replace(params=params)
    findings = findings_of(class_audit, tmp_path, turned)
    assert "forget_test_accuracy" not in flagged(findings)
    assert flagged(findings) >= DEEP - {"relearning_ratio"}
    assert findings.verdict.word == "hidden"


def test_another_retrained_model_is_within_the_spread_of_retrained_models(of_another):
    findings = of_another
    compared = [found for found in findings.metrics if found.retrained and isinstance(found.values["unlearned"], Estimate)]
    assert len(compared) > 25
    # A further one of six exchangeable models lies outside the bare range of five in one of three metrics.
    assert len(flagged(findings)) <= len(compared) / 3
    assert "forget_test_accuracy" not in flagged(findings)
    assert (findings.verdict.word, findings.verdict.faults) == ("not_judged", ())
    assert "8 retrained models are needed to say that there is no trace" in findings.verdict.reasons[0]


def test_among_oracles_class_inference_is_chance_and_the_original_is_told(class_findings):
    found = by_key(class_findings)["class_inference_auc"]
    assert np.mean([reference.value for reference in found.retrained]) == pytest.approx(0.5, abs=0.1)
    low, high = spread(found)
    assert low <= 0.5 <= high
    assert found.values["original"].value > max(high, 0.8)
    assert by_key(class_findings)["ulira_auc"].values["unlearned"].startswith("this needs shadow")


def test_no_oracle_is_trained_or_looked_into_twice(class_audit, class_findings, monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError("computed again")

    again = Audit(prepare(class_audit.run.experiment), "standard", class_audit.root)
    for name in (
        "cujax.experiments.from_scratch.Trainer.train",
        "cujax.experiments.look.relearn",
        "cujax.experiments.look.linear_probe",
    ):
        monkeypatch.setattr(name, never)
    second = again.findings(again.run.original(), again.run.unlearned(), None)
    for one, other in zip(class_findings.metrics, second.metrics, strict=True):
        assert [reference.value for reference in one.retrained] == [reference.value for reference in other.retrained]


def check_likelihood_ratios_tell_memorised_samples_and_nothing_of_oracles(sample_findings):
    _, findings, _ = sample_findings
    found = by_key(findings)["ulira_auc"]
    assert found.values["original"].value > 0.7
    assert not contains(found.values["original"], 0.5)
    assert np.mean([floor.value for floor in found.retrained]) == pytest.approx(0.5, abs=0.05)
    low, high = spread(found)
    assert low <= 0.5 <= high
    assert by_key(findings)["klom"].values["original"].value > max(o.value for o in by_key(findings)["klom"].retrained)
    quality = by_key(findings)["forgetting_quality"]
    assert quality.values["original"].value < min(floor.value for floor in quality.retrained)


def check_loss_attacks_on_oracles_are_chance_and_the_original_is_told(sample_findings):
    _, findings, _ = sample_findings
    found = by_key(findings)["mia_loss_auc"]
    assert all(contains(reference, 0.5) for reference in found.retrained)
    assert not contains(found.values["original"], 0.5)
    assert found.values["original"].value > 0.6


def test_oracles_relearn_as_fast_as_one_another(class_findings):
    found = by_key(class_findings)["relearning_ratio"]
    low, high = spread(found)
    assert low <= 1.0 <= high
    probe = by_key(class_findings)["probe_z"]
    values = [reference.value for reference in probe.retrained]
    assert max(values) - min(values) < probe.values["original"].value - max(values) + 0.2


def check_a_shadow_model_has_seen_its_half_and_the_other_the_rest(sample_findings):
    audit, _, _ = sample_findings
    forget = set(audit.run.split.forget.ids.tolist())
    shadows = audit.references.shadows(10)
    for first, second in zip(shadows[::2], shadows[1::2], strict=True):
        unseen = [set(model.metadata.forgotten_ids) for model in (first, second)]
        assert unseen[0] | unseen[1] == forget
        assert not unseen[0] & unseen[1]
    assert audit.references.missing(retrained=10, shadows=10) == 0
    assert audit.references.missing(retrained=11, shadows=12) == 3


def check_oracles_of_another_recipe_or_split_lie_elsewhere_and_of_another_method_or_seed_here(sample_findings, tmp_path):
    audit, _, _ = sample_findings
    experiment = dataclasses.replace(audit.run.experiment, original=None)

    def folder(number, **changes):
        run = prepare(dataclasses.replace(experiment, workdir=str(tmp_path / str(number)), **changes))
        return Audit(run, "standard", epath.Path(tmp_path / "retrained models")).references.directory.name

    here = audit.references.directory.name
    assert folder(0, seed=5) == folder(1, method=ContrastiveUnlearning(max_passes=7)) == here
    others = {
        folder(2, training=Training(epochs=16)),
        folder(3, forget=ForgetRandom(fraction=0.1, seed=1)),
        folder(4, data=Data("digits")),
    }
    assert len(others | {here}) == 4


def check_the_report_holds_every_metric_and_says_what_is_missing(sample_findings):
    _, findings, made = sample_findings
    report = made["report"]
    jsonschema.validate(report, SCHEMA)
    metrics = {metric["key"]: metric for metric in report["audit"]["metrics"]}
    assert len(metrics) == len(findings.metrics) > 35
    assert metrics["ulira_auc"]["values"]["unlearned"]["low"] is not None
    assert "not classes" in metrics["class_inference_auc"]["values"]["unlearned"]["reason"]
    text = "\n".join([summary(report), *verdict_lines(report)])
    assert f"Verdict: {report['verdict']['heading']}" in text
    assert f"10 retrained models, {len(findings.models['original'][0].answers.forget.labels)} forgotten samples" in text
    assert "an audit can show that something is left, not that nothing is" in text
    page = html_page(report, made["figures"])
    assert "not a certificate of deletion" in page
    assert "Likelihood-ratio attack" in page
    assert "class inference AUC, original, unlearned: the request is for samples, not classes" in not_computed(
        report["audit"]
    )
    assert not any(word in page for word in ("<script", "http://", 'src="/'))


def test_few_samples_have_wide_intervals_and_the_report_says_so(class_audit, tmp_path):
    experiment = dataclasses.replace(
        class_audit.run.experiment, forget=ForgetRandom(count=3), retrained=1, workdir=str(tmp_path / "few")
    )
    run = prepare(experiment)
    audit = Audit(run, "quick", epath.Path(tmp_path / "retrained models"))
    original, unlearned = run.original(), run.unlearned()
    findings = audit.findings(original, unlearned, None)
    described = describe_findings(findings)
    assert findings.verdict.word in ("not_judged", "not_forgotten", "damaged")
    report = make_report(run, original, audit.retrained(), unlearned, findings)["report"]
    assert "1 retrained model, 3 forgotten samples" in " ".join(verdict_lines(report))
    assert "--retrained 8" in report["verdict"]["next_step"] or findings.verdict.faults
    metrics = {metric["key"]: metric for metric in described["metrics"]}
    share = metrics["forget_train_accuracy"]["values"]["unlearned"]
    assert share["high"] - share["low"] > 0.4
    assert "at least 10" in metrics["js_to_retrained"]["values"]["unlearned"]["reason"]
    assert not (tmp_path / "retrained models").exists(), "level quick keeps nothing outside of the run"


def test_earlier_requests_are_audited_again(class_audit, tmp_path):
    first = str(class_audit.run.workdir / "checkpoints" / "unlearned")
    class_audit.run.unlearned()
    experiment = dataclasses.replace(
        class_audit.run.experiment,
        original=first,
        forget=ForgetRandom(count=40),
        retrained=1,
        workdir=str(tmp_path / "second"),
    )
    run = prepare(experiment)
    findings = Audit(run, "quick", epath.Path(tmp_path / "retrained models")).findings(run.original(), run.unlearned(), None)
    ((words, judged),) = findings.earlier
    assert words == "class 5"
    found = {metric.key: metric for metric in judged}
    assert found["forget_train_accuracy"].values["original"].value < 0.2
    assert isinstance(found["js_to_retrained"].values["unlearned"], Estimate)


def test_the_method_is_made_anew_from_what_a_checkpoint_records(class_audit):
    unlearned = class_audit.run.unlearned()
    assert method_of(unlearned) == class_audit.run.experiment.method
    unknown = dataclasses.replace(unlearned, metadata=dataclasses.replace(unlearned.metadata, config={}))
    assert method_of(unknown) is None


def test_an_unknown_level_is_named(class_audit):
    with pytest.raises(ValueError, match="level 'deep' does not exist; choose one of quick, standard, full"):
        Audit(class_audit.run, "deep", class_audit.root)


def test_a_full_audit_of_samples(sample_findings, tmp_path):
    # One test, since each worker that takes one of several would train all the models anew.
    check_likelihood_ratios_tell_memorised_samples_and_nothing_of_oracles(sample_findings)
    check_loss_attacks_on_oracles_are_chance_and_the_original_is_told(sample_findings)
    check_a_shadow_model_has_seen_its_half_and_the_other_the_rest(sample_findings)
    check_oracles_of_another_recipe_or_split_lie_elsewhere_and_of_another_method_or_seed_here(sample_findings, tmp_path)
    check_the_report_holds_every_metric_and_says_what_is_missing(sample_findings)


def test_closer_looks_show_the_original_and_the_mask_and_not_another_retrained_model(
    of_the_original, of_the_mask, of_another
):
    found = {"original": by_key(of_the_original), "masked": by_key(of_the_mask), "retrained": by_key(of_another)}
    for name in ("original", "masked"):
        values = {key: metric.values["unlearned"] for key, metric in found[name].items()}
        assert values["accuracy_from_retain"].value > 0.5
        assert values["distance_to_original"].value == values["line_barrier"].value == 0
        assert values["line_forget_halfway"].value > 0.9
        assert values["few_shot_5"].value > max(estimate.value for estimate in found[name]["few_shot_5"].retrained)
    for key in ("accuracy_from_retain", "distance_to_original", "line_barrier", "few_shot_1", "few_shot_5", "few_shot_10"):
        metric = found["retrained"][key]
        values = np.array([estimate.value for estimate in metric.retrained])
        half = 4 * max(values.std(ddof=1), 0.05)
        assert abs(metric.values["unlearned"].value - values.mean()) < half, key
        assert metric.judged is None, "it is shown and takes no part in the verdict"
    assert max(estimate.value for estimate in found["retrained"]["accuracy_from_retain"].retrained) < 0.05
    assert "no batch statistics" in found["retrained"]["recalibrated_accuracy"].values["unlearned"]
