"""Requests for whole classes and for samples of others: each part is judged as what it is."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from cujax.audit.verdict import ORDER
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetClasses, ForgetIds, ForgetRandom, make_split
from cujax.data.sources import load_source
from cujax.experiments.audit import Audit
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.methods import ContrastiveUnlearning
from cujax.reports.parts import _badness, report_on_parts
from cujax.storage.verdicts import load_verdict
from cujax.training.supervised import Training


@pytest.fixture(scope="module")
def source():
    return load_source(Data("digits"))


@pytest.fixture
def mixed(source, tmp_path):
    """A list of all images of classes 2 and 7 that can be forgotten, and twelve of others."""
    classes = make_split(source, ForgetClasses((2, 7))).forget.ids.tolist()
    others = [name for name in make_split(source, ForgetRandom(count=40)).forget.ids.tolist() if name not in classes][:12]
    path = tmp_path / "list.txt"
    path.write_text("\n".join(classes + others))
    return ForgetIds(str(path)), set(classes), set(others)


def test_a_mixed_request_is_divided_and_others_are_not(source, mixed):
    request, classes, others = mixed
    of_classes, of_samples = make_split(source, request).divided(source.train.labels)
    assert set(of_classes.forget.ids.tolist()) == classes
    assert of_classes.forgotten_classes == (2, 7)
    assert set(of_samples.forget.ids.tolist()) == others
    assert not of_samples.is_class_task
    assert of_samples.absent_classes == of_classes.absent_classes == (2, 7)
    for part in (of_classes, of_samples):
        assert not np.isin(part.retain.ids, [*classes, *others]).any()
    for single in (ForgetClass(3), ForgetRandom(count=5), ForgetClasses((1, 2))):
        split = make_split(source, single)
        assert split.divided(source.train.labels) == (split,)


def test_a_later_request_for_samples_is_no_class_because_an_earlier_one_was(source, mixed):
    _, classes, _ = mixed
    split = make_split(source, ForgetRandom(count=20), tuple(classes))
    assert split.divided(source.train.labels) == (split,)
    assert not split.is_class_task


@pytest.mark.slow
def test_each_part_has_a_report_and_the_worse_one_names_the_verdict(mixed, tmp_path):
    request, classes, others = mixed
    run = prepare(
        Experiment(
            forget=request,
            training=Training(epochs=3),
            method=ContrastiveUnlearning(max_passes=1),
            retrained=0,
            workdir=str(tmp_path / "run"),
        )
    )
    report = report_on_parts(
        run, run.original(), run.unlearned(), run.workdir, audit=Audit.asked_for, method=run.experiment.method
    )
    found = {name: json.loads((run.workdir / name / "report.json").read_text()) for name in ("class", "samples")}
    assert (found["class"]["split"]["forget"], found["samples"]["split"]["forget"]) == (len(classes), len(others))
    assert found["class"]["split"]["forgotten_classes"] == [2, 7]
    assert found["samples"]["split"]["forgotten_classes"] == []
    assert "whole classes: 2 ('2'), 7 ('7')" in found["class"]["title"]
    worst = max((one["verdict"]["word"] for one in found.values()), key=ORDER.index)
    assert json.loads((run.workdir / "report.json").read_text())["verdict"]["word"] == report["verdict"]["word"] == worst
    kept = load_verdict(run.workdir / "checkpoints" / "unlearned", run.unlearned().digest)
    assert kept["word"] == worst


@pytest.mark.parametrize(
    ("words", "require", "expected"),
    [
        (("not_judged", "hidden"), None, 1),
        (("hidden", "not_judged"), None, 0),
        (("not_judged", "no_trace"), None, 0),
        (("hidden", "not_judged"), "hidden", 1),
        (("damaged", "not_judged"), "hidden", 0),
        ((None, None), None, 0),
    ],
)
def test_a_known_fault_is_worse_than_no_judgement_unless_a_requirement_is_missed(words, require, expected):
    reports = [{"verdict": None if word is None else {"word": word}} for word in words]
    assert max(range(2), key=lambda number: _badness(reports[number], require)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("request_", [ForgetRandom(count=20), ForgetClass(5)], ids=["samples", "class"])
def test_a_run_without_validation_ends_in_a_report(tmp_path, request_):
    run = prepare(
        Experiment(
            data=Data("digits", limit=400),
            forget=request_,
            validation=False,
            training=Training(epochs=3),
            method=ContrastiveUnlearning(max_passes=1),
            retain_tolerance=1.0,
            retrained=0,
            audit="quick",
            workdir=str(tmp_path / "run"),
        )
    )
    report_on_parts(run, run.original(), run.unlearned(), run.workdir, audit=Audit.asked_for, method=run.experiment.method)
    report = json.loads((run.workdir / "report.json").read_text())
    assert report["split"]["validation"] == 0
    assert [check["target"] is None for check in report["stop"]["checks"]] == [isinstance(request_, ForgetRandom)] * 2
    jsonschema.validate(report, json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text()))
    page = (run.workdir / "report.html").read_text()
    assert "retained samples that the model was trained on" in page
    assert "validation samples of the retained classes from" not in page
