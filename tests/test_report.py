"""The report: what it holds, that it stands alone, and its pictures."""

import dataclasses
import json
import re

import numpy as np
import pytest
from rich.console import Console

from cujax.data.requests import ForgetRandom
from cujax.experiment import Experiment, prepare
from cujax.figures import confidence_figure, destination_figure, embeddings_figure, stopping_figure
from cujax.methods import ContrastiveUnlearning
from cujax.report import html_page, make_report, summary, terminal_table, write_report
from cujax.training import Training


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return Experiment(
        training=Training(epochs=2),
        method=ContrastiveUnlearning(max_passes=2),
        retrained=2,
        workdir=str(tmp_path_factory.mktemp("report") / "class"),
    )


@pytest.fixture(scope="module")
def class_run(quick):
    run = prepare(quick)
    return run, make_report(run, run.original(), run.retrained(), run.unlearned())


@pytest.fixture(scope="module")
def sample_run(quick):
    run = prepare(dataclasses.replace(quick, forget=ForgetRandom(count=60), retrained=0, workdir=f"{quick.workdir}-samples"))
    return run, make_report(run, run.original(), run.retrained(), run.unlearned())


def test_the_fixed_keys_are_there(class_run, sample_run):
    for run, made in (class_run, sample_run):
        report = made["report"]
        for row in report["rows"].values():
            assert {"forget_train_accuracy", "forget_test_accuracy", "retain_train_accuracy", "retain_test_accuracy"} <= set(
                row
            )
            assert {"test_accuracy", "mia_loss_auc", "mia_confidence", "js_to_retrained", "reasons"} <= set(row)
        for name in report["rows"]:
            assert {"seconds", "steps", "samples", "flops"} <= set(report["cost"][name])
        assert {"rule", "step"} <= set(report["stop"])
        assert report["split"]["digest"] == run.split.digest
        assert report["split"]["forget"] == len(run.split.forget)
        assert report["seed"] == 0
        assert {"config", "versions"} <= set(report)
    assert "masked" in class_run[1]["report"]["rows"]
    assert "masked" not in sample_run[1]["report"]["rows"]


def test_costs_are_those_of_the_checkpoints(class_run, sample_run):
    run, made = class_run
    cost = made["report"]["cost"]
    steps = -(-len(run.split.retain) // 64) * 2
    assert cost["retrained"]["steps"] == steps
    assert cost["unlearned"]["steps"] == 2 * 3 * 4
    assert cost["unlearned"]["samples"] == 2 * 3 * 4 * 128
    assert cost["masked"] == {"seconds": 0, "steps": 0, "samples": 0, "flops": 0}
    assert sample_run[1]["report"]["cost"]["retrained"]["reason"] == "no retrained model: --retrained is 0"


def test_a_checkpoint_that_does_not_say_how_it_was_unlearned_is_reported_all_the_same(class_run):
    run, _ = class_run
    unlearned = run.unlearned()
    silent = dataclasses.replace(unlearned, metadata=dataclasses.replace(unlearned.metadata, record={}))
    made = make_report(run, run.original(), run.retrained(), silent)
    assert made["report"]["stop"]["rule"] is None
    assert made["report"]["cost"]["unlearned"]["steps"] is None
    assert len(made["figures"]) == 3
    assert "does not record it" in summary(made["report"])
    assert "does not record it" in html_page(made["report"], made["figures"])


def test_what_is_written_is_valid_and_stands_alone(class_run, tmp_path):
    _, made = class_run
    data, page = write_report(tmp_path, made)
    assert json.loads(data.read_text()) == made["report"]
    text = page.read_text()
    assert not re.search(r"<script|<link|https?://", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "no certificate of deletion" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_names_from_elsewhere_cannot_write_html(class_run):
    _, made = class_run
    evil = "<script>alert(1)</script>"
    report = json.loads(json.dumps(made["report"]))
    report["source"]["name"] = report["request"] = report["stop"]["reason"] = report["lineage"][0] = evil
    report["source"]["class_names"] = [evil] * 10
    report["config"]["workdir"] = evil
    page = html_page(report, {evil: (evil, b"")})
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("which", ["class_run", "sample_run"])
def test_the_table_fits_a_terminal(which, request):
    _, made = request.getfixturevalue(which)
    console = Console(width=80, record=True)
    console.print(terminal_table(made["report"]))
    text = console.export_text()
    assert "…" not in text
    assert f"{made['report']['rows']['unlearned']['retain_test_accuracy']:.3f}" in text


def test_the_summary_says_what_happened(class_run, sample_run):
    text = summary(class_run[1]["report"])
    rows = class_run[1]["report"]["rows"]
    assert "class 5 (131 training images)" in text
    assert f"{rows['original']['forget_test_accuracy']:.3f} before" in text
    assert f"{rows['unlearned']['retain_test_accuracy']:.3f} after" in text
    assert ("Did NOT" in text) == (class_run[1]["report"]["stop"]["rule"] != "forgotten")
    assert "60 training images" in summary(sample_run[1]["report"])


@pytest.mark.parametrize("which", ["class_run", "sample_run"])
def test_pictures_are_drawn_of_what_they_say(which, request):
    run, _ = request.getfixturevalue(which)
    models = {"original": run.answers(run.original().variables), "unlearned": run.answers(run.unlearned().variables)}
    names = run.source.class_names
    embeddings = embeddings_figure(models, run.split, names)
    assert [axis.get_title() for axis in embeddings.axes] == [
        "original (PCA)", "unlearned (PCA)", "original (t-SNE)", "unlearned (t-SNE)",
    ]  # fmt: skip
    for axis in embeddings.axes:
        points = [collection.get_offsets() for collection in axis.collections]
        assert len(points[1]) == min(250, len(run.split.forget))
        assert np.isfinite(np.concatenate(points)).all()
    checks = run.unlearned().metadata.record["checks"]
    stopping = stopping_figure(checks, 12, "max_passes", run.split.is_class_task).axes[0]
    np.testing.assert_allclose(stopping.lines[0].get_ydata(), [check["forget_accuracy"] for check in checks])
    np.testing.assert_allclose(stopping.lines[0].get_xdata(), [check["step"] for check in checks])
    assert [axis.get_title() for axis in confidence_figure(models, run.split).axes] == ["original", "unlearned"]
    destinations = destination_figure({name: [one] for name, one in models.items()}, run.split, names)
    if run.split.is_class_task:
        heights = [bar.get_height() for bar in destinations.axes[0].patches[:10]]
        answers = models["original"].test
        expected = np.bincount(answers.logits[answers.labels == 5].argmax(1), minlength=10) / (answers.labels == 5).sum()
        np.testing.assert_allclose(heights, expected)
    else:
        matrix = np.asarray(destinations.axes[0].images[0].get_array())
        np.testing.assert_allclose(matrix.sum(1), 1.0)
