"""The table of the papers' protocol, against NumPy."""

import dataclasses

import numpy as np
import pytest

from cujax.data.images import Data
from cujax.experiments.compare import Comparison, prepare_comparison
from cujax.reports.comparison_report import as_html, as_markdown, tabulate
from cujax.reports.gap4 import FIGURES, gap4


def row(*values):
    return dict(zip((key for key, _ in FIGURES), values, strict=True))


def comparison(source="digits", word="random:0.1"):
    return {
        "source": {"name": source},
        "setup": {"network": "small_cnn", "training": {"epochs": 3}},
        "tasks": {
            word: {
                "references": {
                    "0": {
                        "original": row(1.0, 1.0, 0.9, 0.1),
                        "retrained": [row(1.0, 0.8, 0.9, 0.2), row(1.0, 0.9, 0.8, 0.3)],
                    },
                    "1": {"failed": "no"},
                },
                "cells": {
                    "far": {"0": {"row": row(0.5, 0.5, 0.5, 0.5)}, "1": {"failed": "no"}},
                    "near": {"0": {"row": row(0.99, 0.86, 0.85, 0.24)}},
                    "unknown": {"0": {"row": row(0.99, 0.86, 0.85, None)}},
                    "none": {"0": {"failed": "no"}},
                },
            }
        },
    }


def test_gaps_are_mean_distances_from_the_mean_of_the_retrained_models_and_the_nearest_comes_first():
    table = gap4(comparison(), "random:0.1")
    by_name = {name: cells for name, *cells in table.rows}
    assert list(by_name) == ["original", "retrained", "near", "far", "unknown"]
    assert by_name["near"] == ["99.00", "14.00", "85.00", "24.00", f"{np.mean([1, 1, 0, 1]):.2f}"]
    assert by_name["far"][-1] == f"{np.mean([50, 35, 35, 25]):.2f}"
    assert by_name["original"][-1] == f"{np.mean([0, 15, 5, 15]):.2f}"
    assert by_name["retrained"][-1] == "7.50 ± 0.00"  # each from the other
    assert by_name["retrained"][1] == f"15.00 ± {np.std([20, 10], ddof=1):.2f}"
    assert by_name["unknown"][-2:] == ["–", "–"]
    assert "agreement and JS" in table.caption


@pytest.mark.parametrize(
    ("source", "word", "expected"),
    [("cifar10", "random:0.1", 10), ("cifar10", "random:0.2", 0), ("digits", "random:0.1", 0)],
)
def test_published_gaps_stand_beside_the_task_they_are_of_and_are_marked(source, word, expected):
    table = gap4(comparison(source, word), word)
    published = [cells for cells in table.rows if "published" in cells[0]]
    assert len(published) == expected
    assert all(cells[1:5] == ["–"] * 4 and float(cells[5]) > 0 for cells in published)
    assert ("Do not compare" in table.caption) == bool(expected)


def test_a_comparison_shows_it_and_refuses_it_for_classes(tmp_path):
    asked = Comparison(
        data=Data("digits", limit=300),
        training=dataclasses.replace(Comparison().training, epochs=1),
        retrained=2,
        requests=("random:0.1",),
        methods=("fine_tune",),
        controls=(),
        protocol="gap4",
        workdir=str(tmp_path / "run"),
    )
    with pytest.raises(ValueError, match="protocol gap4 is for samples, but class:5"):
        prepare_comparison(dataclasses.replace(asked, requests=("random:0.1", "class:5")))
    found = tabulate(prepare_comparison(asked).run())
    line = next(line for line in as_markdown(found).splitlines() if line.startswith("| fine_tune") and line.count("|") == 7)
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    task = found["tasks"]["random:0.1"]
    own = task["cells"]["fine_tune"]["0"]["row"]
    assert cells[0] == f"{100 * own['retain_train_accuracy']:.2f}"
    gaps = [
        100 * abs(own[key] - np.mean([reference[key] for reference in task["references"]["0"]["retrained"]]))
        for key, _ in FIGURES
    ]
    assert cells[-1] == f"{np.mean(gaps):.2f}"
    assert "The protocol of the papers" in as_html(found)
