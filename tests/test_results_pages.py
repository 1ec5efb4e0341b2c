"""The tables of docs/results/README.md say what the stored reports say, cell by cell."""

import json
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"
AUDITED = ("fashion_mnist_class", "fashion_mnist_sample")
COMPARED = {
    "digits, class 5": ("digits_class", "class:5"),
    "digits, random 10 %, a fifth of the labels wrong": ("digits_sample", "random:0.1"),
    "Fashion-MNIST (10,000), class 5": ("fashion_mnist", "class:5"),
    "Fashion-MNIST (10,000), random 10 %": ("fashion_mnist", "random:0.1"),
}
VARIANTS = {", defaults": "_default_seed_0", ", tuned by accuracy": "", ", tuned by features": "_features_seed_0"}
TITLES = {"relearning": "relearning ratio"}
SIDES = {"above": " ▲", "below": " ▼"}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def table_after(text: str) -> dict[str, dict[str, str]]:
    """Cells of the first table after `text`, by row and column."""
    table = (RESULTS / "README.md").read_text("utf-8").partition(text)[2].partition("\n|")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0].strip("*"): dict(zip(lines[0][1:], row[1:], strict=True)) for row in lines[2:]}


def three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def measures(path: Path) -> dict[str, dict[str, Any]]:
    return {TITLES.get(measure["heading"], measure["heading"]): measure for measure in read(path)["audit"]["measures"]}


@pytest.mark.parametrize("audit", AUDITED)
def test_audit_tables_equal_the_stored_audits(audit):
    folder = RESULTS / "audits" / audit
    rows = table_after(f"[audits/{audit}](audits/{audit})")
    found = measures(folder / "contrastive.json")
    for heading, cell in rows.pop("original").items():
        assert cell == three(found[heading]["figures"]["original"]["value"]), heading
    for heading, cell in rows.pop("retrained, lowest to highest").items():
        values = found[heading]["retrained"]["values"]
        assert cell == f"{three(min(values))} to {three(max(values))}", heading
    names = set()
    for row, cells in rows.items():
        variant = next((end for end in VARIANTS if row.endswith(end)), "")
        names.add(row.removesuffix(variant) + VARIANTS.get(variant, ""))
        found = measures(folder / f"{row.removesuffix(variant)}{VARIANTS.get(variant, '')}.json")
        for heading, cell in cells.items():
            measure = found[heading]
            side = SIDES.get(measure["verdict"]["word"], "")
            assert cell == three(measure["figures"]["unlearned"]["value"]) + side, (row, heading)
    assert names == {path.stem for path in folder.glob("*.json") if not path.stem.endswith(("_seed_1", "_seed_2"))}


def test_the_comparison_table_equals_the_stored_comparisons():
    rows = table_after("## Comparisons")
    for column, (folder, request) in COMPARED.items():
        summaries = read(RESULTS / folder / "comparison.json")["tables"][request]
        for row, cells in rows.items():
            summary = summaries.get(row.partition(" ")[0])
            mean = summary["mean"]["mean_gap"] if summary else None
            assert cells[column] == ("–" if mean is None else f"{mean:.4f} ± {summary['std']['mean_gap']:.4f}"), (
                row,
                column,
            )
            if (folder, request) == ("fashion_mnist", "class:5") and summary:
                assert cells["GFLOP, Fashion-MNIST class"] == f"{summary['mean']['gflops']:.0f}", row
        assert set(summaries) <= {row.partition(" ")[0] for row in rows}
