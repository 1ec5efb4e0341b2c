"""A grid of methods, requests and seeds: what is shared, what is kept, what fails alone, and the tables."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from cujax import commands
from cujax.cli import parse_setup
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetClasses, ForgetIds, ForgetRandom, ForgetWhere
from cujax.experiments.change import is_unchanged, parameter_change
from cujax.experiments.compare import Comparison, prepare_comparison
from cujax.experiments.judging import compare_models
from cujax.experiments.request_words import parse_request, request_in_words
from cujax.experiments.run import candidate_of
from cujax.methods import ContrastiveUnlearning, FineTune, MaskLogit, Retrain, Scrub, SelectiveSynapticDampening
from cujax.methods.registry import make_method
from cujax.model import Variables
from cujax.reports.comparison_figures import cost_figure, trade_off_figure
from cujax.reports.comparison_report import as_csv, as_html, as_latex, as_markdown, tabulate, write_comparison
from cujax.reports.control_curve import beside_curve, control_caption, control_curve, control_figure
from cujax.training.supervised import Trainer, Training

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return Comparison(
        data=Data("digits", limit=400),
        training=Training(epochs=1),
        retrained=2,
        requests=("class:5", "random:0.1"),
        methods=("selective_synaptic_dampening", "mask_logit", "fine_tune"),
        seeds=(0, 1),
        controls=(),
        workdir=str(tmp_path_factory.mktemp("comparison") / "run"),
    )


@pytest.fixture(scope="module")
def compared(comparison):
    """What the grid gave, the trainings it took, and the sentences it told."""
    trainings, told = [], []
    train = Trainer.train

    def counted(self, *arguments, description, **options):
        trainings.append(description)
        return train(self, *arguments, description=description, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", counted)
        found = prepare_comparison(comparison, notify=told.append).run()
    return found, trainings, told


def test_originals_are_shared_between_requests_and_retrained_models_between_methods(compared):
    _, trainings, _ = compared
    assert trainings.count("training original") == 2  # one a seed
    assert sum("retrained" in training for training in trainings) == 2 * 2 * 2  # of each request and seed
    assert len(trainings) == 10


def test_every_cell_is_there_and_a_method_that_does_not_fit_is_left_out_with_the_reason(compared):
    found, _, told = compared
    assert list(found["tasks"]["class:5"]["cells"]) == ["selective_synaptic_dampening", "mask_logit", "fine_tune"]
    assert list(found["tasks"]["random:0.1"]["cells"]) == ["selective_synaptic_dampening", "fine_tune"]
    assert "hides whole classes" in found["tasks"]["random:0.1"]["left_out"]["mask_logit"]
    assert any("left out: random:0.1, mask_logit" in sentence for sentence in told)
    assert found["failures"] == []
    for task in found["tasks"].values():
        for cells in task["cells"].values():
            assert list(cells) == ["0", "1"]
            assert all(0 <= cell["row"]["mean_gap"] <= 1 for cell in cells.values())
            assert all(cell["course"][0]["step"] == 0 and len(cell["course"]) > 1 for cell in cells.values())
    assert "Pass by pass" in as_html(tabulate(found))


def test_what_is_done_is_not_computed_again(compared, comparison, monkeypatch):
    found, _, _ = compared

    def forbidden(*arguments, **options):
        raise AssertionError("computed again")

    for method in (FineTune, SelectiveSynapticDampening, Trainer):
        monkeypatch.setattr(method, "train" if method is Trainer else "__call__", forbidden)
    monkeypatch.setattr("cujax.experiments.run.Run.answers", forbidden)
    assert prepare_comparison(comparison).run() == found


def test_other_settings_are_another_cell_beside_the_first(compared, comparison):
    found, _, _ = compared
    one = dataclasses.replace(
        comparison, seeds=(0,), requests=("class:5",), methods=("fine_tune",), retain_tolerance=0.5, stop_early=False
    )
    models = set(Path(comparison.workdir).glob("*/*/*/checkpoints/re*")) | set(Path(comparison.workdir).glob("original/*"))
    prepare_comparison(one).run()
    assert models == set(Path(comparison.workdir).glob("*/*/*/checkpoints/re*")) | set(
        Path(comparison.workdir).glob("original/*")
    )
    folders = sorted((Path(comparison.workdir) / "class-5" / "fine_tune").glob("seed_0-*"))
    assert len(folders) == 2
    assert prepare_comparison(comparison).run() == found


def test_a_cell_that_fails_is_told_and_the_others_go_on(compared, comparison, monkeypatch):
    def broken(self, *arguments, **options):
        raise RuntimeError("no such layer")

    monkeypatch.setattr(SelectiveSynapticDampening, "__call__", broken)
    told = []
    other = dataclasses.replace(
        comparison,
        retain_tolerance=0.4,
        requests=("class:5",),
        seeds=(0,),
        methods=("selective_synaptic_dampening", "fine_tune"),
    )
    run = prepare_comparison(other, notify=told.append)
    found = tabulate(run.run())
    assert run.failures == ["class:5, selective_synaptic_dampening, seed 0: RuntimeError: no such layer"]
    cells = found["tasks"]["class:5"]["cells"]
    assert cells["selective_synaptic_dampening"]["0"] == {"failed": "RuntimeError: no such layer"}
    assert "row" in cells["fine_tune"]["0"]
    for text in (as_markdown(found), as_html(found), as_csv(found)):
        assert "no such layer" in text
    assert any(sentence.startswith("FAILED class:5, selective") for sentence in told)


def run_script(*arguments):
    return commands.run("compare", arguments)


def test_the_script_writes_all_tables_and_its_status_tells_of_failures(tmp_path, monkeypatch, capsys):
    quick = "--data.limit", "300", "--training.epochs", "2", "--retrained", "1", "--controls", "0.5"
    quick += "--workdir", str(tmp_path / "run")
    assert run_script(*quick, "--methods", "mask_logit") == 0
    assert "mask_logit" in capsys.readouterr().out
    written = {path.suffix for path in (tmp_path / "run").glob("comparison.*")}
    assert written == {".json", ".csv", ".md", ".tex", ".html"}
    monkeypatch.setattr(SelectiveSynapticDampening, "__call__", lambda *arguments, **options: 1 / 0)
    assert run_script(*quick, "--methods", "mask_logit", "selective_synaptic_dampening") == 1
    assert (
        "1 of the runs failed: class:5, selective_synaptic_dampening, seed 0: ZeroDivisionError" in capsys.readouterr().err
    )
    assert "mask_logit" in (tmp_path / "run" / "comparison.md").read_text()


def test_the_command_line_takes_from_a_configuration_what_fits(capsys):
    comparison = parse_setup(
        Comparison, ["--config", "digits_sample", "--seeds", "0", "1"], configs=ROOT / "configs", description=""
    )
    assert comparison.requests == ("random:0.1",)
    assert comparison.data.label_noise == 0.2
    assert comparison.workdir == "runs/digits_sample-comparison"
    assert comparison.seeds == (0, 1)
    with pytest.raises(SystemExit):
        parse_setup(Comparison, ["--help"], configs=ROOT / "configs", description="What it does")
    shown = capsys.readouterr().out
    assert "What it does" in shown
    assert "--settings" in shown
    assert "--method." not in shown


def entry(gap, forget=0.0, retain=0.9):
    row = {"forget_train_accuracy": forget, "forget_test_accuracy": forget, "retain_train_accuracy": 1.0}
    row |= {"retain_test_accuracy": retain, "mia_loss_auc": 0.5, "js_to_retrained": 0.1, "mean_gap": gap}
    return row


def cost(seconds, flops=2e9):
    return {"seconds": seconds, "steps": 10, "samples": 640, "flops": flops}


FREE = {"seconds": 0.01, "steps": 0, "samples": 0, "flops": 0.0}


def cell(gap, seconds=1.0, change=0.1, verdict="hidden", **accuracies):
    stop = {"rule": "stop_rule", "step": 10, "reason": "it is"}
    return {"row": entry(gap, **accuracies), "cost": cost(seconds), "stop": stop, "parameter_change": change} | {
        "verdict": {"word": verdict, "faults": [verdict], "unchanged": change == 0}
    }


@pytest.fixture
def made_up():
    reference = {
        "original": entry(0.3, forget=1.0),
        "original_cost": cost(9.0),
        "retrained": [entry(0.01), entry(0.03)],
        "retrained_costs": [cost(8.0, 6e9), cost(12.0, 10e9)],
    }
    cells = {
        "good": {"0": cell(0.02, 2.0), "1": cell(0.04, 4.0, verdict="distinguishable")},
        "idle": {"0": cell(0.3, change=0.0, verdict="not_forgotten", forget=1.0)}
        | {"1": cell(0.3, change=0.0, verdict="not_forgotten", forget=1.0)},
        "harmful": {"0": cell(0.2, verdict="damaged", retain=0.5), "1": {"failed": "ValueError: no"}},
        "free": {"0": cell(0.025) | {"cost": FREE}, "1": cell(0.025) | {"cost": FREE}},
    }
    task = {
        "request": "ForgetClass(label=5)",
        "classes": ["five_%"],
        "settings": {},
        "tuned": None,
        "left_out": {},
        "references": {"0": reference, "1": reference},
        "cells": cells,
        "split": {},
    }
    return {
        "source": {"name": "<made up>", "version": "1"},
        "setup": {},
        "seeds": [0, 1],
        "retrained": 2,
        "versions": {},
        "device": "cpu",
        "tasks": {"class:5": task},
        "failures": [],
    }


def test_tables_are_means_and_deviations_over_seeds(made_up):
    table = tabulate(made_up)["tables"]["class:5"]
    assert list(table) == ["original", "retrained", "free", "good", "idle", "harmful"], "by verdict, harm, and cost"
    good = table["good"]
    assert good["mean"]["mean_gap"] == pytest.approx(0.03)
    assert good["std"]["mean_gap"] == pytest.approx(np.std([0.02, 0.04], ddof=1))
    assert good["verdicts"] == {"hidden": 1, "distinguishable": 1}
    assert good["mean"]["speed_up"] == pytest.approx((10 / 2 + 10 / 4) / 2)
    assert good["mean"]["flops_ratio"] == pytest.approx(8e9 / 2e9)
    assert table["retrained"]["n"] == 4
    assert table["retrained"]["mean"]["mean_gap"] == pytest.approx(0.02)
    assert table["retrained"]["mean"]["gflops"] == pytest.approx(8.0)


def test_remarks_tell_of_no_change_of_harm_and_of_failures(made_up):
    table = tabulate(made_up)["tables"]["class:5"]
    assert table["good"]["remarks"] == []
    assert table["idle"]["remarks"] == [
        "parameters unchanged in 2 of 2 seeds",
        "forgets nothing: accuracy on the forget set is the original's",
    ]
    assert table["harmful"]["remarks"] == [
        "harms retained data: test accuracy fell by 0.400",
        "seed 1 failed: ValueError: no",
    ]
    assert table["harmful"]["std"]["mean_gap"] is None


def test_what_takes_no_step_has_no_speed_up(made_up):
    free = tabulate(made_up)["tables"]["class:5"]["free"]
    assert free["mean"]["speed_up"] is None
    assert free["mean"]["gflops"] == 0


def test_the_same_figures_are_in_every_format(made_up, tmp_path):
    found = tabulate(made_up)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["method"] for row in rows] == list(found["tables"]["class:5"])
    assert float(rows[3]["mean_gap"]) == pytest.approx(0.03)
    assert [row["verdict"] for row in rows[2:]] == ["hidden", "hidden 1, distinguishable 1", "not forgotten", "damaged"]
    assert re.search(r"^\| good +\| ", as_markdown(found), re.MULTILINE)
    assert "0.0300 ± 0.0141" in as_markdown(found)
    page = as_html(found)
    assert "0.0300 ± 0.0141" in page
    assert "&lt;made up&gt;" in page
    assert "<made up>" not in page
    assert r"0.0300 $\pm$ 0.0141" in as_latex(found)
    assert page.count("data:image/svg+xml;base64,") == 2
    paths = write_comparison(tmp_path, found)
    assert json.loads(paths[0].read_text())["tables"] == found["tables"]


def test_the_budget_of_tuning_is_printed(made_up):
    made_up["tasks"]["class:5"]["tuned"] = {
        "trials": 7,
        "sampler": "random",
        "seed": 0,
        "rule": "The rule.",
        "methods": {
            "good": {"trials": [{"settings": {"rate": n}} for n in range(7)], "admissible": True},
            "idle": {"trials": [{"settings": {"rate": n}} for n in range(7)], "admissible": False},
        },
    }
    found = tabulate(made_up)
    assert "the best of 7 trials per method" in as_markdown(found)
    assert "The best three" not in as_markdown(found)
    made_up["tasks"]["class:5"]["tuned"]["seeds"] = [0, 4]
    assert "The best three were tried on seeds 0, 4, and the worst of these decided." in as_markdown(tabulate(made_up))
    assert found["tables"]["class:5"]["good"]["mean"]["trials"] == 7
    assert "no trial was admissible" in found["tables"]["class:5"]["idle"]["remarks"]


def test_how_far_parameters_moved_is_relative_to_where_they_were():
    before = {"a": np.full((3,), 2.0, np.float32), "b": np.zeros((2, 2), np.float32)}
    after = {"a": np.full((3,), 2.0, np.float32), "b": np.full((2, 2), 0.5, np.float32)}
    assert parameter_change(Variables(before, {}), Variables(after, {})) == pytest.approx(1 / np.sqrt(12))
    assert parameter_change(Variables(before, {}), Variables(before, {})) == 0
    assert is_unchanged(Variables(before, {}), Variables(before, {}))
    assert not is_unchanged(Variables(before, {}), Variables(after, {}))


def settings_file(folder, **changes):
    settings = {"request": "class:5", "forget_digest": "0" * 64, "trials": 1, "sampler": "random", "methods": {}}
    path = folder / f"settings-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(settings | changes))
    return str(path)


def test_settings_for_other_samples_or_requests_are_refused(comparison, tmp_path):
    with pytest.raises(ValueError, match="were tuned for other samples"):
        prepare_comparison(dataclasses.replace(comparison, settings=(settings_file(tmp_path),)))
    with pytest.raises(ValueError, match="settings are given for class:7, but the requests are class:5"):
        prepare_comparison(dataclasses.replace(comparison, settings=(settings_file(tmp_path, request="class:7"),)))
    with pytest.raises(ValueError, match="two files of settings are for class:5"):
        prepare_comparison(dataclasses.replace(comparison, settings=(settings_file(tmp_path), settings_file(tmp_path))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"speed": 3}, "method fine_tune has no setting speed; it has batch_size"), ({"learning_rate": -1}, "learning_rate")],
)
def test_settings_that_a_method_does_not_have_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_method(FineTune, "fine_tune", settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retrained": 0}, "--retrained 3"),
        ({"seeds": (1, 1)}, "seeds must differ"),
        ({"requests": ()}, "--requests class:5"),
    ],
)
def test_a_comparison_without_sense_is_refused(comparison, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare_comparison(dataclasses.replace(comparison, **changes))


@pytest.mark.parametrize(
    "request_",
    [
        ForgetClass(3),
        ForgetClasses((3, 5)),
        ForgetRandom(count=100),
        ForgetRandom(fraction=0.1),
        ForgetRandom(fraction=0.25, seed=3),
        ForgetIds("lists/mine.txt"),
    ],
)
def test_a_request_is_read_back_from_its_word(request_):
    assert parse_request(request_in_words(request_)) == request_


@pytest.mark.parametrize("word", ["", "class", "random:2.0", "random:", "ids:", "everything:1"])
def test_other_words_are_no_requests(word):
    with pytest.raises(ValueError, match="cannot be understood"):
        parse_request(word)


def test_a_predicate_has_no_word():
    with pytest.raises(ValueError, match="ids:PATH"):
        request_in_words(ForgetWhere(lambda name, label: True))


@pytest.fixture
def with_controls(made_up):
    """Retraining cut short at a quarter and a half of retraining's 8 GFLOP, with JS .4 and .2; retrained .1 ± .02."""
    reference = made_up["tasks"]["class:5"]["references"]["0"]
    for row, js in zip(reference["retrained"], (0.1 - 0.02 / 2**0.5, 0.1 + 0.02 / 2**0.5), strict=True):
        row["js_to_retrained"] = js

    def at(gflops, js):
        made = cell(0.1, seconds=1.0) | {"cost": cost(1.0, gflops * 1e9)}
        made["row"]["js_to_retrained"] = js
        return {"0": made, "1": made}

    task = made_up["tasks"]["class:5"]
    task["controls"] = ["short_25", "short_50"]
    task["cells"] = {
        "short_50": at(4, 0.2), "short_25": at(2, 0.4), "near": at(2, 0.3), "as_near": at(4, 0.21), "far": at(4, 0.25),
        "between": at(2 * 2**0.5, 0.3), "cheap": at(0.1, 0.39), "free": {"0": cell(0.1) | {"cost": FREE}},
    }  # fmt: skip
    return made_up


def test_methods_are_placed_beside_retraining_cut_short(with_controls):
    found = tabulate(with_controls)
    table = found["tables"]["class:5"]
    curve = control_curve(table, ["short_25", "short_50"])
    assert curve.names == ("short_25", "short_50")
    np.testing.assert_allclose(curve.shares, [0.25, 0.5])
    assert curve.spread == pytest.approx(np.std([0.1 - 0.02 / 2**0.5, 0.1 + 0.02 / 2**0.5] * 2, ddof=1))
    assert curve.at(0.25 * 2**0.5) == pytest.approx(0.3), "halfway over the logarithm"
    assert beside_curve(table, curve) == {
        "near": "below", "as_near": "within", "far": "above", "between": "within", "cheap": "within"
    }  # fmt: skip
    assert "nearer to retrained models than retraining cut short to the same operations" in table["near"]["remarks"]
    assert not any("cut short" in remark for remark in table["short_25"]["remarks"])
    assert "1 of 5 methods: near;" in control_caption(table, curve)
    page = as_html(found)
    assert "The curve is what an approximate method has to beat" in page
    assert "near: nearer to retrained models than retraining cut short to the same operations." in as_markdown(found)


def test_the_legend_of_many_methods_lies_within_the_picture(with_controls):
    cells = with_controls["tasks"]["class:5"]["cells"]
    cells |= {f"method_{number}": cells["far"] for number in range(40)}
    found = tabulate(with_controls)
    table = found["tables"]["class:5"]
    curve = control_curve(table, ["short_25", "short_50"])
    figures = trade_off_figure(found, "class:5", "forget_test_accuracy"), cost_figure(table), control_figure(table, curve)
    for figure in figures:
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert legend.get_window_extent().height <= figure.bbox.height


@pytest.mark.parametrize("controls", [[], ["short_25"]])
def test_without_a_curve_nothing_is_said_of_it(with_controls, controls):
    with_controls["tasks"]["class:5"]["controls"] = controls
    found = tabulate(with_controls)
    assert not any("cut short to" in remark for row in found["tables"]["class:5"].values() for remark in row["remarks"])
    assert "has to beat" not in as_html(found)


def test_every_comparison_has_the_control(tmp_path):
    comparison = Comparison(workdir=str(tmp_path / "c"), requests=("class:5",), methods=("fine_tune",))
    (task,) = prepare_comparison(comparison).tasks
    shares = {name: method.share for name, method in task.methods.items() if name != "fine_tune"}
    assert shares == {f"retrain_short_{percent}": percent / 100 for percent in (10, 20, 40, 60)}


def test_the_whole_verdict_is_that_of_an_audit_and_the_figures_it_reads_are_in_the_tables(compared, comparison):
    found, _, _ = compared
    whole = dataclasses.replace(
        comparison, audit="standard", requests=("class:5",), seeds=(0,), methods=("mask_logit", "fine_tune")
    )
    run = prepare_comparison(whole)
    looked = tabulate(run.run())
    cells = looked["tasks"]["class:5"]["cells"]
    for name, method in (("mask_logit", MaskLogit()), ("fine_tune", FineTune())):
        own = run.cells.prepare(run.cells.cell(ForgetClass(5), method, 0), "class-5", name)
        references = run.cells.prepare(run.cells.cell(ForgetClass(5), Retrain(), 0), "class-5", "retrained")
        audit = compare_models(
            own.case,
            candidate_of(own.original()),
            candidate_of(own.unlearned()),
            list(map(candidate_of, references.retrained())),
            closely=False,
        )
        cell = cells[name]["0"]
        assert cell["verdict"]["word"] == audit.verdict.word
        assert cell["verdict"]["faults"] == list(audit.verdict.faults)
        values = {
            metric.key: metric.values["unlearned"].value
            for metric in audit.metrics
            if metric.judged or "probe" in metric.key
        }
        assert cell["row"]["probe_z"] == values["probe_z"]
        assert cell["row"]["probe_below_z"] == values["probe_hidden"]
        assert found["tasks"]["class:5"]["cells"][name]["0"]["row"].items() <= cell["row"].items()
    assert cells["mask_logit"]["0"]["row"]["probe_z"] == looked["tasks"]["class:5"]["references"]["0"]["original"]["probe_z"]
    assert len([row["relearning_steps"] for row in looked["tasks"]["class:5"]["references"]["0"]["retrained"]]) == 2
    assert "probe (embedding)" in as_markdown(looked)
    assert "verdict on answers" not in as_markdown(looked)
    assert "verdict on answers" in as_markdown(tabulate(found))
    assert "The answers of" in as_html(tabulate(found))
    assert "The answers of" not in as_html(looked)
    assert "probe (embedding)" not in as_markdown(tabulate(found))


def test_a_name_can_say_where_its_settings_come_from(comparison):
    words = ("scrub", "scrub@published", "scrub@reproduction", "contrastive@published", "retrain@published")
    asked = dataclasses.replace(comparison, requests=("class:5",), methods=words)
    (task,) = prepare_comparison(asked).tasks
    assert task.methods == {
        "scrub": Scrub(),
        "scrub@published": Scrub.official("class"),
        "scrub@reproduction": Scrub(**Scrub.reproduction["class"]),
        "contrastive@published": ContrastiveUnlearning.official("class"),
    }
    for wrong, message in (
        ("scrub@tuned", "scrub@tuned: @ must be followed by one of published, reproduction"),
        ("fisher_forgetting@reproduction", "fisher_forgetting has no reproduction for class:5; leave @reproduction out"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_comparison(dataclasses.replace(asked, methods=(wrong,)))
