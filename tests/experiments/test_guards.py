"""What cannot be computed costs nothing else: one sample, no test image of the class, memory, chained requests."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.intervals import Estimate
from cujax.audit.metric import MetricContext
from cujax.audit.over_models import TOPICS, measure_over_models
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetRandom
from cujax.experiments.audit import Audit, Level, _utility, method_of
from cujax.experiments.compare import Comparison, prepare_comparison
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.methods import FineTune, Retrain
from cujax.reports.comparison_report import as_csv, as_html, as_markdown, tabulate
from cujax.reports.run_report import make_report
from cujax.storage.checkpoints import Metadata
from cujax.training.predict import Predictions
from cujax.training.supervised import Training

QUICK = {"data": Data(limit=300), "training": Training(epochs=2), "method": FineTune(max_passes=1)}


def test_one_sample_gets_a_report_at_level_full(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("cujax.experiments.audit", fromlist=["LEVELS"]).LEVELS, "full", Level(6, 6))
    run = prepare(Experiment(**QUICK, forget=ForgetRandom(count=1), workdir=str(tmp_path / "run"), retrained=0))
    audit = Audit(run, "full", epath.Path(tmp_path / "models"))
    original, unlearned = run.original(), run.unlearned()
    findings = audit.findings(original, unlearned, run.experiment.method)
    report = make_report(run, original, audit.retrained(), unlearned, findings)["report"]
    by_key = {metric["key"]: metric for metric in report["audit"]["metrics"]}
    assert {topic.key for topic in TOPICS} <= by_key.keys()
    for metric in by_key.values():
        for value in metric["values"].values():
            assert value["value"] is not None or value["reason"]
    assert report["verdict"]["forget_samples"] == 1


def test_log_odds_of_one_sample_give_reasons_instead_of_an_error():
    rng = np.random.default_rng(0)
    members = np.array([[True], [False]] * 4)
    found = measure_over_models(
        {"original": rng.normal(size=(8, 1)), "unlearned": rng.normal(size=(8, 1))}, rng.normal(size=(8, 1)), members,
        {"original": 1.0, "unlearned": 1.0},
    )  # fmt: skip
    for topic in TOPICS:
        for value in found.values[topic.key].values():
            assert isinstance(value, Estimate | str)
    assert all(isinstance(value, str) and value for value in found.values["ulira_auc"].values())


def test_a_class_without_test_images_is_compared(tmp_path):
    """Its mean gap cannot be computed, which is no reason to fail."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (240, 6, 6), np.uint8), np.arange(240) % 4
    test = labels != 3
    path = tmp_path / "data.npz"
    np.savez(path, images=images, labels=labels, test_images=images[test][:60], test_labels=labels[test][:60])
    comparison = Comparison(
        data=Data(str(path)), training=Training(epochs=1), workdir=str(tmp_path / "c"), requests=("class:3",),
        methods=("fine_tune", "mask_logit"), retrained=1,
    )  # fmt: skip
    run = prepare_comparison(comparison)
    found = tabulate(run.run())
    assert run.failures == []
    assert found["tables"]["class:3"]["fine_tune"]["mean"]["mean_gap"] is None
    assert all("fine_tune" in text for text in (as_csv(found), as_html(found), as_markdown(found)))


def test_no_embedding_of_a_retained_training_sample_is_kept(tmp_path):
    run = prepare(Experiment(**QUICK, forget=ForgetClass(3), workdir=str(tmp_path / "run"), retrained=0))
    answers = run.answers(run.original())
    assert answers.retain.embeddings.size == 0
    assert len(answers.retain.logits) == len(run.split.retain)
    assert answers.forget.embeddings.shape[1] == answers.test.embeddings.shape[1] > 0


def test_two_earlier_requests_in_the_same_words_are_both_asked_again(tmp_path):
    experiment = Experiment(**QUICK, forget=ForgetRandom(count=5), workdir=str(tmp_path / "0"), retrained=1)
    for number in (1, 2):
        run = prepare(experiment)
        run.unlearned()
        given = str(run.workdir / "checkpoints" / "unlearned")
        experiment = dataclasses.replace(experiment, original=given, workdir=str(tmp_path / str(number)))
    run = prepare(experiment)
    findings = Audit(run, "quick").findings(run.original(), run.unlearned(), None)
    words = [request for request, _ in findings.earlier]
    assert len(words) == 2
    assert words[0] == words[1]
    assert len({part.ids.tobytes() for _, part in run.earlier_requests()}) == 2


def test_retraining_is_made_anew_from_what_a_checkpoint_records(tmp_path):
    run = prepare(
        Experiment(**QUICK | {"method": Retrain()}, forget=ForgetClass(3), workdir=str(tmp_path / "r"), retrained=0)
    )
    method = method_of(run.unlearned())
    assert method == Retrain(run.experiment.training)
    assert isinstance(method.training, Training)


def test_a_plain_function_is_a_method(tmp_path):
    def keep(model, original, split, *, key, loop):
        return FineTune(max_passes=1)(model, original, split, key=key, loop=loop)

    run = prepare(Experiment(**QUICK | {"method": keep}, forget=ForgetClass(3), workdir=str(tmp_path / "f"), retrained=0))
    unlearned = run.unlearned()
    assert unlearned.metadata.method.endswith("keep")
    assert method_of(unlearned) is None
    assert isinstance(unlearned.metadata, Metadata)


@pytest.mark.parametrize("forgotten", [(), (2,)])
def test_utility_is_of_retained_data_alone(forgotten):
    """An original that still knows the class is not credited for it."""

    class Split:
        forgotten_classes = absent_classes = forgotten
        is_class_task = bool(forgotten)

    def answers(right):
        labels = np.repeat([0, 1, 2], 10)
        logits = np.eye(3)[np.where(np.isin(labels, right), labels, (labels + 1) % 3)]
        part = Predictions(logits, np.zeros((30, 1)), labels)
        return Evidence(Answers(part, part, part, part))

    everything, without = answers([0, 1, 2]), answers([0, 1])
    retrained = without if forgotten else everything
    context = MetricContext(Split(), everything, [retrained])
    models = {"original": [everything], "unlearned": [without], "retrained": [retrained]}
    retain = {True: 1.0, False: 2 / 3}
    found = _utility(models, context)
    if forgotten:
        assert found == pytest.approx({"original": 1.0 / retain[False], "unlearned": 1.0})
    else:
        assert found == pytest.approx({"original": 1.0, "unlearned": retain[False] ** 2})
