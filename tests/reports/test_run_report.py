"""The report: what it holds, that it stands alone, and its pictures."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
from etils.epath import Path
from matplotlib.figure import Figure
from rich.console import Console

from cujax.data.requests import ForgetClass, ForgetRandom
from cujax.experiments.config import Experiment
from cujax.experiments.identity import describe
from cujax.experiments.run import prepare
from cujax.methods import ContrastiveUnlearning
from cujax.reports.html import html_page
from cujax.reports.run_report import make_report, report_on, terminal_table, write_report
from cujax.reports.summary import summary
from cujax.training.supervised import Training

NETWORK = """
from cujax import from_linen
from cujax.networks.cnn import CNN

def tiny(num_classes):
    return from_linen(CNN(num_classes, features=(4, 8), hidden_dim=16, embedding_dim=8))

def wide(num_classes):
    return tiny(num_classes + 2)
"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    network = tmp_path_factory.mktemp("network") / "network.py"
    network.write_text(NETWORK)
    return Experiment(
        network=f"{network}:tiny",
        seed=3,
        training=Training(epochs=4, learning_rate=0.02),
        method=ContrastiveUnlearning(max_passes=2),
        retrained=2,
        workdir=str(tmp_path_factory.mktemp("report") / "class"),
    )


@pytest.fixture(scope="module")
def class_run(quick):
    run = prepare(quick)
    checkpoints = run.original(), run.retrained(), run.unlearned()
    assert "test_images" not in vars(run), "test images were read before the audit"
    return run, make_report(run, *checkpoints)


@pytest.fixture(scope="module")
def sample_run(quick):
    run = prepare(dataclasses.replace(quick, forget=ForgetRandom(count=60), retrained=0, workdir=f"{quick.workdir}-samples"))
    return run, make_report(run, run.original(), run.retrained(), run.unlearned())


ROW_KEYS = {
    "forget_train_accuracy", "forget_test_accuracy", "retain_train_accuracy", "retain_test_accuracy", "test_accuracy",
    "mia_loss_auc", "mia_confidence", "js_to_retrained", "reasons",
}  # fmt: skip


def test_the_fixed_keys_are_there(class_run, sample_run):
    for run, made in (class_run, sample_run):
        report = made["report"]
        assert list(report["cost"]) == list(report["rows"])
        for name, row in report["rows"].items():
            assert set(row) >= ROW_KEYS
            assert {"seconds", "steps", "samples", "flops"} <= set(report["cost"][name])
        split, parts = report["split"], ("forget", "retain", "validation", "previously_forgotten")
        for part in (*parts, "test"):
            assert split[part] == len(getattr(run.split, part))
        assert sum(split[part] for part in parts) == len(run.source.train)
        assert split["digest"] == run.split.digest
        assert report["seed"] == 3
        assert report["config"] == json.loads(json.dumps(describe(run.experiment)))
        assert {"cujax", "jax", "flax", "optax", "numpy"} <= set(report["versions"])
        assert report["retrained_models"] == run.experiment.retrained
    assert list(class_run[1]["report"]["rows"]) == ["original", "retrained", "unlearned", "masked"]
    assert list(sample_run[1]["report"]["rows"]) == ["original", "retrained", "unlearned"]


def test_how_it_stopped_is_what_the_checkpoint_records(class_run, sample_run):
    for run, made in (class_run, sample_run):
        stop, record = made["report"]["stop"], run.unlearned().metadata.record
        assert stop["rule"] in ("stop_rule", "max_passes", "retain_tolerance", "not_finite")
        assert (stop["rule"], stop["step"], stop["reason"]) == (record["stop_rule"], record["step"], record["stop_reason"])
        assert stop["checks"] == json.loads(json.dumps(record["checks"]))
        assert stop["checks"][0]["step"] == 0


def test_accuracies_are_those_of_the_models(class_run):
    run, made = class_run
    for name, checkpoints in (
        ("original", [run.original()]),
        ("retrained", run.retrained()),
        ("unlearned", [run.unlearned()]),
    ):
        values = []
        for checkpoint in checkpoints:
            test = run.answers(checkpoint).test
            values.append(np.mean(test.logits.argmax(1)[test.labels != 5] == test.labels[test.labels != 5]))
        row = made["report"]["rows"][name]
        assert row["retain_test_accuracy"] == pytest.approx(np.mean(values))
        if name == "retrained":
            assert row["retain_test_accuracy_std"] == pytest.approx(np.std(values, ddof=1))


def test_costs_are_those_of_the_checkpoints(class_run, sample_run):
    run, made = class_run
    cost = made["report"]["cost"]
    steps = -(-len(run.split.retain) // 64) * 4
    assert cost["retrained"]["steps"] == steps
    passes = len(made["report"]["stop"]["checks"]) - 1
    assert passes >= 1
    assert cost["unlearned"]["steps"] == passes * 3 * 4
    assert cost["unlearned"]["samples"] == passes * 3 * 4 * 128
    records = [checkpoint.metadata.record["cost"] for checkpoint in run.retrained()]
    for key in ("seconds", "flops"):
        assert cost["retrained"][key] == pytest.approx((records[0][key] + records[1][key]) / 2)
    assert cost["original"] == run.original().metadata.record["cost"]
    assert cost["masked"] == {"seconds": 0, "steps": 0, "samples": 0, "flops": 0}
    assert sample_run[1]["report"]["cost"]["retrained"]["reason"] == "no retrained model: --retrained is 0"


def test_a_checkpoint_that_does_not_say_how_it_was_unlearned_is_reported_all_the_same(class_run, monkeypatch):
    monkeypatch.setattr("cujax.reports.run_report.embeddings_figure", lambda *arguments: Figure())  # the slow one
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

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(data.read_text(), parse_constant=refuse) == made["report"]
    text = page.read_text()
    assert not re.search(r"<script|<link|https?://", text)
    sources = re.findall(r'src="([^"]{0,40})', text)
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "not a certificate of deletion" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


class Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "br", "div", "table", "thead", "tbody", "tr", "th",
    "td", "img", "ul", "li", "b", "pre", "details", "summary", "figure", "figcaption", "a", "dl", "dt", "dd",
    "section", "small", "h3",
}  # fmt: skip


def assert_harmless(page):
    """Only elements and attributes that load and run nothing."""
    for tag, attributes in Elements(page).found:
        assert tag in ELEMENTS
        assert set(attributes) <= {"lang", "charset", "name", "content", "class", "title", "alt", "src", "id", "href"}
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
    assert not re.search(r"@import|url\(|https?:", page[: page.index("</style>")])


def test_the_page_loads_and_runs_nothing(class_run, sample_run):
    for _, made in (class_run, sample_run):
        page = html_page(made["report"], made["figures"])
        assert_harmless(page)
        assert sum(tag == "img" for tag, _ in Elements(page).found) == len(made["figures"]) == 4


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)"])
def test_names_from_elsewhere_cannot_write_html(class_run, evil):
    _, made = class_run
    report = json.loads(json.dumps(made["report"]))
    report["source"]["name"] = report["request"] = report["title"] = report["stop"]["reason"] = report["lineage"][0] = evil
    report["source"]["class_names"] = [evil] * 10
    report["config"]["workdir"] = report["config"][evil] = report["versions"][evil] = evil
    report["rows"]["masked"]["reasons"]["mia_loss_auc"] = evil
    page = html_page(report, {evil: (evil, b"")})
    assert_harmless(page)
    assert "<script" not in page
    # Title, heading (twice), summary (class name, source and reason), reason (in the table and the list), picture, ...
    assert html.unescape(page).count(evil) >= 12


@pytest.mark.parametrize("which", ["class_run", "sample_run"])
def test_the_table_fits_a_terminal(which, request):
    _, made = request.getfixturevalue(which)
    console = Console(width=80, record=True)
    console.print(terminal_table(made["report"]))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for name, row in made["report"]["rows"].items():
        assert name in text
        for key in ("retain_test_accuracy", "test_accuracy"):
            assert (f"{row[key]:.3f}" in text) if row[key] is not None else ("–" in text)
    lines = [line for line in text.splitlines() if "test (all)" in line]
    shown = [float(number) for number in re.findall(r"(?<!±)\d\.\d{3}", lines[0])]
    values = [row["test_accuracy"] for row in made["report"]["rows"].values() if row["test_accuracy"] is not None]
    np.testing.assert_allclose(shown, values, atol=6e-4)


def test_the_terminal_shows_names_with_brackets_as_they_are(class_run, tmp_path, capsys, monkeypatch):
    run, made = class_run
    made = json.loads(json.dumps({"report": made["report"]})) | {"figures": {}}
    made["report"]["source"]["name"] = made["report"]["source"]["class_names"][5] = "[b]5[/i]"
    made["report"]["title"] = "forget the training samples listed in [seed=1].txt"
    monkeypatch.setattr("cujax.reports.run_report.make_report", lambda *arguments: made)
    report_on(run, run.original(), run.retrained(), run.unlearned(), tmp_path / "[seed=1]")
    shown = capsys.readouterr().out
    assert "forget the training samples listed in [seed=1].txt" in " ".join(shown.split())
    assert "class [b]5[/i] (131 training images) of [b]5[/i]" in shown
    assert str(tmp_path / "[seed=1]" / "report.html") in shown


def test_the_summary_says_what_happened(class_run, sample_run):
    text = summary(class_run[1]["report"])
    rows = class_run[1]["report"]["rows"]
    assert "class 5 (131 training images)" in text
    assert f"{rows['original']['forget_test_accuracy']:.3f} before" in text
    assert f"{rows['unlearned']['retain_test_accuracy']:.3f} after" in text
    assert class_run[1]["report"]["stop"]["reason"] in text
    text = summary(sample_run[1]["report"])
    rows = sample_run[1]["report"]["rows"]
    assert "60 training images of digits" in text
    assert f"the forget set: {rows['original']['forget_train_accuracy']:.3f} before, " in text
    assert f"{rows['unlearned']['forget_train_accuracy']:.3f} after." in text
    assert "retrain" not in text


def test_every_figure_of_the_summary_is_in_its_place():
    def row(forget, retain, **more):
        return {"forget_test_accuracy": forget, "forget_train_accuracy": 0.5, "retain_test_accuracy": retain, **more}

    report = {
        "rows": {
            "original": row(0.987, 0.911),
            "retrained": row(0.012, 0.933, forget_test_accuracy_std=0.004, retain_test_accuracy_std=0.006),
            "unlearned": row(0.021, 0.922),
        },
        "stop": {"rule": "stop_rule", "step": 17, "reason": "because"},
        "split": {"forgotten_classes": [1, 2], "forget": 345},
        "source": {"name": "pets", "class_names": ["ant", "bee", "cat"]},
        "cost": {"unlearned": {"seconds": 1.26}, "retrained": {"seconds": 45.61}},
        "retrained_models": 2,
        "previous_requests": [{"request": "first", "n": 7, "original": 0.125, "unlearned": 0.25, "retrained": None}],
        "audit": None,
    }
    assert summary(report).splitlines() == [
        "The request was to forget classes bee, cat (345 training images) of pets. Unlearning ended after 17 steps, 1.3 s "
        "(retraining took 45.6 s): because.",
        "Accuracy on test samples of the forgotten classes: 0.987 before, 0.021 after, 0.012 ±0.004 retrained.",
        "Test accuracy on the retained classes: 0.911 before, 0.922 after, 0.933 ±0.006 retrained.",
        "Accuracy on the 7 samples of the earlier request first: 0.125 before, 0.250 after.",
    ]
    assert "orgot " not in summary(report), "the end of a run claims nothing"


@pytest.mark.parametrize("forget", [ForgetClass(5), ForgetRandom(count=60)], ids=["class", "samples"])
def test_a_head_with_more_logits_than_classes_goes_through_to_the_report(quick, forget, tmp_path):
    """Of random logits two in twelve answer with no class: the learning rates leave the network as it was drawn."""
    wide = dataclasses.replace(
        quick,
        network=quick.network.replace(":tiny", ":wide"),
        training=Training(epochs=1, learning_rate=1e-9),
        method=ContrastiveUnlearning(max_passes=1, learning_rate=1e-9),
        forget=forget,
        retrained=1,
        workdir=str(tmp_path / "wide"),
    )
    run = prepare(wide)
    made = make_report(run, run.original(), run.retrained(), run.unlearned())
    assert run.model.num_classes == 12
    answers = run.answers(run.unlearned())
    assert (answers.forget.logits.argmax(1) >= 10).any()
    kept = ~np.isin(answers.test.labels, run.split.absent_classes)
    right = answers.test.logits.argmax(1) == answers.test.labels
    assert made["report"]["rows"]["unlearned"]["retain_test_accuracy"] == pytest.approx(right[kept].mean())


def test_a_report_that_is_not_of_the_checkpoint_at_its_path_says_so(class_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cujax.reports.run_report.embeddings_figure", lambda *arguments: Figure())  # the slow one
    run, made = class_run
    assert {name: found["problem"] for name, found in made["report"]["checkpoints"].items()} == {
        "original": "",
        "unlearned": "",
    }
    other = run.workdir / "checkpoints" / "retrained_0"
    report = report_on(run, run.original(), run.retrained(), run.unlearned(), Path(tmp_path), unlearned_path=Path(other))
    problem = f"there is another checkpoint there now: its digest is {run.retrained()[0].digest}"
    assert report["checkpoints"]["unlearned"]["problem"] == problem
    assert problem in (tmp_path / "report.html").read_text("utf-8")
    assert (
        f"WARNING: the report does not describe the unlearned checkpoint at {other}: {problem}." in capsys.readouterr().out
    )


def test_the_filed_page_says_the_request_in_words(class_run):
    page = html_page(class_run[1]["report"], class_run[1]["figures"])
    assert "forget class 5 (&#39;5&#39;)" in page
    assert "ForgetClass(" not in page.partition('class="filing"')[2].partition("</table>")[0]
