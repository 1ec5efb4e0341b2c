"""Methods at settings with which they do what their papers say: the tables, the stored figures, and a few of them run."""

import dataclasses
import json
from pathlib import Path

import pytest

from cujax.data.requests import ForgetRandom
from cujax.experiments.reproductions import Repetition, Reproduction, prepare_repetition, reached, read_reproductions
from cujax.methods import METHODS
from cujax.methods.traits import reproduction_settings
from cujax.reports.reproduction_page import entries, markdown
from cujax.training.supervised import Training

ROOT = Path(__file__).parents[2]
TASKS = sorted((ROOT / "configs" / "reproductions").glob("*.py"))
DIGITS = ROOT / "configs" / "reproductions" / "digits_class.py"
PAGE, FIGURES = ROOT / "docs" / "results" / "reproductions.md", ROOT / "docs" / "results" / "reproductions"
STORED = list(entries(FIGURES))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_table_loads_and_its_settings_are_settings_of_the_methods(path):
    experiment, by_method = read_reproductions(path)
    assert experiment.workdir == f"runs/reproductions/{path.stem}"
    assert not experiment.stop_early
    for name, reproduction in by_method.items():
        settings = reproduction.settings
        if settings is None:
            settings = reproduction_settings(METHODS[name], task_of(experiment))
        made = dataclasses.asdict(reproduction.method(name, task_of(experiment)))
        assert made | dict(settings) == made
        assert bool(reproduction.published) == bool(reproduction.source)


def task_of(experiment):
    return "samples" if isinstance(experiment.forget, ForgetRandom) else "class"


def test_a_method_without_settings_for_the_task_is_named():
    with pytest.raises(ValueError, match="fisher_forgetting has no settings for a task of samples"):
        Reproduction().method("fisher_forgetting", "samples")


def test_a_file_without_a_table_is_refused():
    with pytest.raises(ValueError, match="must define CONFIG"):
        read_reproductions(ROOT / "configs" / "digits_class.py")


def test_a_method_that_is_not_in_the_table_is_named():
    experiment, by_method = read_reproductions(DIGITS)
    asked = dataclasses.replace(Repetition.of(experiment), by_method=by_method, methods=("nothing",))
    with pytest.raises(ValueError, match="no reproduction of nothing; there are "):
        prepare_repetition(asked)


def test_the_stored_settings_are_those_of_the_tables():
    tables = {path.stem: read_reproductions(path) for path in TASKS}
    for task, name, entry in STORED:
        experiment, by_method = tables[task]
        method = by_method[name].method(name, task_of(experiment))
        assert entry["settings"] == json.loads(json.dumps(dataclasses.asdict(method))), (task, name)


def test_the_page_has_the_table_of_the_files():
    text = PAGE.read_text("utf-8")
    assert text.split("<!-- table:begin -->")[1].split("<!-- table:end -->")[0].strip() == markdown(FIGURES)


def cells_of_the_page():
    """Task, method, and the cells of each row."""
    task = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            task = line[3:]
        if line.startswith("| `"):
            method, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            yield task, method.strip("`"), cells


def test_a_row_says_yes_where_every_seed_meets_the_aim():
    """Read from the printed figures and the files, not by the function that wrote them."""
    stored = {(task, name): entry for task, name, entry in STORED}
    rows = list(cells_of_the_page())
    assert len(rows) == len(stored)
    for task, name, (word, _, forget, lost, steps, *_) in rows:
        seeds = list(stored[task, name]["seeds"].values())
        for row, gone, points, count in zip(seeds, forget.split(", "), lost.split(", "), steps.split(", "), strict=True):
            own, retrained = row["unlearned"], row["retrained"]
            assert gone == f"{own['forget_test_accuracy']:.3f}"
            assert points == f"{100 * (own['retain_test_accuracy'] - retrained['retain_test_accuracy']):+.1f}"
            assert count == str(row["steps"])
        meets = [
            row["unlearned"]["forget_test_accuracy"] <= 0.01
            and row["retrained"]["retain_test_accuracy"] - row["unlearned"]["retain_test_accuracy"] <= 0.02
            for row in seeds
        ]
        assert word == ("yes" if all(meets) else "no"), (task, name)


def entry_of(forget=0.0, retain=0.9, retrained=0.9):
    return {
        "request": "class:5",
        "seeds": {
            "0": {
                "unlearned": {"forget_test_accuracy": forget, "retain_test_accuracy": retain},
                "retrained": {"retain_test_accuracy": retrained},
            }
        },
    }


def test_the_aim():
    assert reached(entry_of())
    assert reached(entry_of(forget=0.01, retain=0.885))
    assert not reached(entry_of(forget=0.02))
    assert not reached(entry_of(retain=0.87))
    assert not reached(entry_of() | {"seeds": {}})
    failed = entry_of()
    failed["seeds"]["1"] = {"failed": "no such layer"}
    assert not reached(failed)
    samples = {"forget_train_accuracy": 0.9, "retain_test_accuracy": 0.9}
    row = {"unlearned": samples | {"forget_train_accuracy": 0.93}, "retrained": samples}
    assert not reached({"request": "random:0.1", "seeds": {"0": row}})
    assert reached({"request": "random:0.1", "seeds": {"0": row | {"unlearned": samples}}})


@pytest.mark.slow
def test_a_few_reach_the_aim_on_digits(tmp_path):
    experiment, by_method = read_reproductions(DIGITS)
    methods = ("exact_unlearn_last_k", "neg_grad_plus", "random_labels")
    asked = dataclasses.replace(
        Repetition.of(dataclasses.replace(experiment, training=Training(epochs=15), workdir=str(tmp_path / "digits"))),
        by_method=by_method,
        methods=methods,
        seeds=(0,),
    )
    found = dict(prepare_repetition(asked).figures())
    assert set(found) == set(methods)
    for name, entry in found.items():
        assert reached(entry), (name, entry["seeds"])
        row = entry["seeds"]["0"]
        assert row["original"]["forget_test_accuracy"] > 0.8
        assert row["retrained_models"] == 1
