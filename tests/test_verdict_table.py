"""The table of docs/auditing.md says what the stored verdicts say."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cujax.audit.verdict_words import HEADINGS

DOCS = Path(__file__).parents[1] / "docs"
# Of each file the head of its table on the page, and its column there.
METHODS, FURTHER = "| | a class (label 5)", "| | Fashion-MNIST, class 5"
COLUMNS = {
    "digits_class": (METHODS, 1),
    "digits_sample": (METHODS, 2),
    "fashion_mnist_class_small": (FURTHER, 1),
    "fashion_mnist_sample_small": (FURTHER, 2),
    "digits_class_without_retrained": (FURTHER, 3),
}


def cells(head: str, column: int) -> dict[str, Counter[str]]:
    """Counts of headings that the page gives for each model."""
    page = (DOCS / "auditing.md").read_text("utf-8")
    table = page.partition(head)[2].partition("\n")[2].partition("\n\n")[0]
    counts = {}
    for line in table.splitlines()[1:]:
        parts = [part.strip() for part in line.strip("|").split("|")]
        if parts[column]:
            pairs = (cell.rpartition(" ") for cell in parts[column].split(", "))
            counts[parts[0].strip("`")] = Counter({heading: int(count) for heading, _, count in pairs})
    return counts


@pytest.mark.parametrize("config", COLUMNS)
def test_verdict_table_equals_the_stored_verdicts(config):
    stored: dict[str, Counter[str]] = {}
    for verdict in json.loads((DOCS / "results" / "verdicts" / f"{config}.json").read_text("utf-8")):
        name = "further retrained models" if verdict["name"] == "retrained" else verdict["name"]
        stored.setdefault(name, Counter())[HEADINGS[verdict["word"]]] += 1
    assert cells(*COLUMNS[config]) == stored


def test_no_further_retrained_model_has_a_fault_and_every_method_has_one():
    page = " ".join((DOCS / "auditing.md").read_text("utf-8").split())
    found = [
        verdict
        for config in COLUMNS
        if "without" not in config
        for verdict in json.loads((DOCS / "results" / "verdicts" / f"{config}.json").read_text("utf-8"))
    ]
    further = [verdict for verdict in found if verdict["name"] == "retrained"]
    assert all(verdict["retrained"] == 8 and not verdict["faults"] for verdict in further)
    assert f"{len(further)} of {len(further)} further retrained models" in page
    # Wilson's lower bound where all of n are without a fault is n / (n + z²).
    assert f"{len(further) / (len(further) + 1.96**2):.0%}".removesuffix("%") + " to 100 %" in page
    assert all(verdict["faults"] for verdict in found if verdict["name"] != "retrained")
