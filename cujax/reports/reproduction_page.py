"""The table of reproductions as Markdown, from the files of their figures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cujax.experiments.reproductions import reached

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def entries(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Task, method and figures of each file in a folder, task by task."""
    found = []
    for path in folder.glob("*.json"):
        found += [(task, path.stem, entry) for task, entry in json.loads(path.read_text("utf-8")).items()]
    yield from sorted(found, key=lambda one: one[:2])


def markdown(folder: Path) -> str:
    """One table per task: the settings, the results of each seed, and the figures of the papers."""
    tables: dict[str, list[str]] = {}
    for task, method, entry in entries(folder):
        tables.setdefault(task, []).append(_line(method, entry))
    tried = {method for _, method, _ in entries(folder)}
    met = {method for _, method, entry in entries(folder) if reached(entry)}
    parts = [f"{len(met)} of {len(tried)} methods meet the aim on at least one task."]
    return "\n\n".join(
        parts + [f"## {task}\n\n{_heading(folder, task)}\n" + "\n".join(lines) for task, lines in tables.items()]
    )


def _heading(folder: Path, task: str) -> str:
    entry = max((entry for found, _, entry in entries(folder) if found == task), key=lambda entry: len(entry["seeds"]))
    column = "class, test" if _of_class(entry) else "samples, difference to retrained"
    columns = ["method", "reached", "settings that differ from the defaults", column, "retained test, points to retrained",
               "steps", "theirs", "notes"]  # fmt: skip
    rows = list(entry["seeds"].values())
    retrained = ", ".join(f"{row['retrained']['retain_test_accuracy']:.3f}" for row in rows if "failed" not in row)
    limit = entry["data"]["limit"]
    images = f", {limit:,} images" if limit else ""
    return (
        f"{entry['data']['name']}{images}, `{entry['network']}`, {entry['request']}, seeds {', '.join(entry['seeds'])}. "
        f"Retained test accuracy of the retrained models: {retrained}.\n\n"
        f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    )


def _of_class(entry: dict[str, Any]) -> bool:
    return bool(entry["request"].startswith("class"))


def _line(method: str, entry: dict[str, Any]) -> str:
    rows = [row for row in entry["seeds"].values() if "failed" not in row]
    theirs = entry["theirs"]
    cells = [
        f"`{method}`",
        "yes" if reached(entry) else "no",
        ", ".join(f"{name} {value}" for name, value in entry["changed"].items()) or "the defaults",
        ", ".join(_forgotten(row, entry) for row in rows),
        ", ".join(f"{100 * _lost(row):+.1f}" for row in rows),
        ", ".join(str(row["steps"]) for row in rows),
        f"{theirs['figures']} ({theirs['source']})" if theirs["figures"] else "–",
        " ".join(note for note in (entry["departs"], entry["tried"]) if note) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def _forgotten(row: dict[str, Any], entry: dict[str, Any]) -> str:
    own = row["unlearned"]
    if _of_class(entry):
        return f"{own['forget_test_accuracy']:.3f}"
    return f"{own['forget_train_accuracy'] - row['retrained']['forget_train_accuracy']:+.3f}"


def _lost(row: dict[str, Any]) -> float:
    return float(row["unlearned"]["retain_test_accuracy"] - row["retrained"]["retain_test_accuracy"])


def write_page(page: Path, folder: Path) -> None:
    """Inserts the table between the markers of a page."""
    before, rest = page.read_text("utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{markdown(folder)}\n{END}{rest.split(END)[1]}", "utf-8")
