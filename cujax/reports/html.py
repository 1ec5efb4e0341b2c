"""Renders pages that need neither network nor scripts, from `templates/`, with embedded figures."""

import base64
import io
import itertools
import json
import operator
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from cujax.reports.glossary import glossary
from cujax.reports.summary import (
    PREVIOUS,
    columns,
    comparison_in_words,
    figure_in_words,
    not_computed,
    share_in_words,
    summary,
)
from cujax.reports.verdict import trust, verdict_lines

# By title, the caption and the SVG file.
Figures = dict[str, tuple[str, bytes]]


def svg(figure: Figure) -> bytes:
    """A figure as an SVG file, with the same bytes whenever the same figure is drawn."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "cujax", "svg.fonttype": "path", "path.simplify": True}):
        figure.savefig(buffer, format="svg", dpi=130, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _data_uri(image: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(image).decode()}"


def _computed(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics with a value for at least one model other than the retrained ones."""
    names = ("original", "unlearned", "masked")
    return [metric for metric in metrics if any(metric["values"].get(name, {}).get("value") is not None for name in names)]


def _groups(items: Sequence[dict[str, Any]], key: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Groups neighbours with a common key, in their order; jinja2's own `groupby` sorts."""
    for value, group in itertools.groupby(items, operator.itemgetter(key)):
        yield value, list(group)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "data_uri": _data_uri,
        "computed": _computed,
        "groupby_in_order": _groups,
        "figure_in_words": figure_in_words,
        "share_in_words": share_in_words,
        "comparison_in_words": comparison_in_words,
    }
    return environment


def render(template: str, **content: Any) -> str:
    """Renders a page from a template; all values are escaped, and a missing name is an error."""
    return _environment().get_template(template).render(content)


def html_page(report: dict[str, Any], figures: Figures) -> str:
    """The report as one self-contained page: no network, no scripts."""
    shown = columns(report)
    absent = [
        f"{name}, {key}: {reason}" for name, row in report["rows"].items() for key, reason in row["reasons"].items()
    ] + ([] if report["audit"] is None else list(not_computed(report["audit"])))
    terms = ["forget_set", "retain_set", *report["rows"], *(key for key, _, _ in shown), "seconds"]
    if report["verdict"] is not None:
        terms += ["range", report["verdict"]["word"], *report["verdict"]["faults"]]
    return render(
        "report.html",
        report=report,
        figures=figures,
        verdict=verdict_lines(report),
        trust=None if report["verdict"] is None else trust(report["verdict"]),
        summary=summary(report).splitlines(),
        columns=shown,
        previous=PREVIOUS,
        absent=absent,
        glossary=glossary(terms, shown),
        details=json.dumps({key: report[key] for key in ("config", "versions", "split", "cost", "seed")}, indent=2),
    )
