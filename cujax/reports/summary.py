"""The findings in words and tables: for the terminal, for programs, and for pages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cujax.audit.findings import Findings, MeasuredMetric
from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.registry import answer_metrics
from cujax.audit.verdict_words import HEADINGS


def describe_findings(findings: Findings) -> dict[str, Any]:
    """An audit's findings as plain data, as specified in `docs/report.schema.json` under "audit"."""
    return {
        "level": findings.level,
        "retrained": len(findings.models["retrained"]),
        "shadows": findings.shadows,
        "metrics": [_described(found) for found in findings.metrics],
        "relearning": {
            name: [
                {"steps": list(evidence.relearning.steps), "accuracies": list(evidence.relearning.accuracies)}
                for evidence in models
                if evidence.relearning is not None
            ]
            for name, models in findings.models.items()
            if name != "masked"
        },
        "earlier_requests": [
            {"request": request, "metrics": [_described(found) for found in metrics]}
            for request, metrics in findings.earlier
        ],
    }


def _described(found: MeasuredMetric) -> dict[str, Any]:
    values, judged = [model.value for model in found.retrained], found.judged
    retrained = None
    if values:
        retrained = {
            "values": values,
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "low": min(values),
            "high": max(values),
        }
    return {
        "key": found.key,
        "family": found.family,
        "heading": found.heading,
        "question": found.question,
        "values": {name: _estimate(value) for name, value in found.values.items()},
        "retrained": retrained,
        "distance": found.distance,
        "judged": None
        if judged is None
        else {"different": bool(judged.different), "side": judged.side, "fault": judged.fault},
    }


def _estimate(value: Estimate | str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"value": None, "low": None, "high": None, "reason": value}
    try:
        low, high = value.interval() if value.interval else (None, None)
    except NotAvailable as reason:
        return {"value": value.value, "low": None, "high": None, "reason": f"no interval: {reason}"}
    return {"value": value.value, "low": low, "high": high, "reason": ""}


def comparison_in_words(metric: dict[str, Any]) -> str:
    """The unlearned model compared with retrained models, such as "+3.2 sd, different"; "–" if unknown."""
    if metric["distance"] is None:
        return "–"
    distance = f"{metric['distance']:+.1f} sd"
    judged = metric["judged"]
    if judged is None:
        return distance
    if judged["fault"] is not None:
        return f"{distance}, {HEADINGS[judged['fault']].lower()}"
    return f"{distance}, {'different' if judged['different'] else 'not different'}"


def audit_terminal_table(audit: dict[str, Any]) -> Table:
    """One line per metric that could be computed: original, unlearned and retrained models, and the distance from them."""
    table = Table(title=f"audit, level {audit['level']}")
    table.add_column("")
    for heading in ("original", "unlearned", f"retrained ({audit['retrained']})"):
        table.add_column(heading, justify="right")
    table.add_column("from retrained")
    family = None
    for metric in audit["metrics"]:
        values = [metric["values"][name]["value"] for name in ("original", "unlearned")]
        if values == [None, None]:
            continue
        if family not in (None, metric["family"]):
            table.add_section()
        family = metric["family"]
        retrained = metric["retrained"]
        spread = "–" if retrained is None else f"{retrained['mean']:.3f}"
        if retrained is not None and retrained["std"] is not None:
            spread += f" ±{retrained['std']:.3f}"
        shown = ("–" if value is None else f"{value:.3f}" for value in values)
        table.add_row(metric["heading"], *shown, spread, comparison_in_words(metric))
    return table


def not_computed(audit: dict[str, Any]) -> Sequence[str]:
    """What could not be computed or judged, each with its reason."""
    lines = []
    for metric in audit["metrics"]:
        missing: dict[str, list[str]] = {}
        for name, value in metric["values"].items():
            if value["reason"]:
                missing.setdefault(value["reason"], []).append(name)
        lines += [f"{metric['heading']}, {', '.join(names)}: {reason}" for reason, names in missing.items()]
    return list(dict.fromkeys(lines))


CAVEAT = (
    "An empirical audit is not a certificate of deletion: it can show that something was not forgotten, but not that "
    "everything was."
)


UNRECORDED = "the checkpoint does not record it"

# The models on which earlier requests are measured.
PREVIOUS = (("original", "before"), ("unlearned", "after"), ("retrained", "retrained"))


def summary(report: dict[str, Any]) -> str:
    """A summary of the run in a few sentences."""
    rows, stop, split = report["rows"], report["stop"], report["split"]
    class_task = bool(split["forgotten_classes"])
    key = "forget_test_accuracy" if class_task else "forget_train_accuracy"
    if rows["original"][key] is None:
        key = "forget_train_accuracy"
    names = [report["source"]["class_names"][label] for label in split["forgotten_classes"]]
    noun = "class" if len(names) == 1 else "classes"
    what = (
        f"{noun} {', '.join(names)} ({split['forget']} training images)" if names else f"{split['forget']} training images"
    )
    if stop["rule"] is None:
        happened = f"The request was to forget {what} of {report['source']['name']}. How it was done: {UNRECORDED}."
    else:
        cost, retraining = report["cost"]["unlearned"], report["cost"]["retrained"]
        compared = f" (retraining took {retraining['seconds']:.1f} s)" if retraining["seconds"] else ""
        happened = (
            f"The request was to forget {what} of {report['source']['name']}. Unlearning ended after {stop['step']} steps, "
            f"{cost['seconds']:.1f} s{compared}: {stop['reason']}."
        )
    on_retained = " on the retained classes" if class_task else ""
    lines = [
        happened,
        f"Accuracy on {'test samples of the forgotten ' + noun if key == 'forget_test_accuracy' else 'the forget set'}: "
        f"{figure_in_words(rows['original'], key)} before, {figure_in_words(rows['unlearned'], key)} after"
        + (f", {figure_in_words(rows['retrained'], key)} retrained." if report["retrained_models"] else "."),
        f"Test accuracy{on_retained}: {figure_in_words(rows['original'], 'retain_test_accuracy')} before, "
        f"{figure_in_words(rows['unlearned'], 'retain_test_accuracy')} after"
        + (
            f", {figure_in_words(rows['retrained'], 'retain_test_accuracy')} retrained."
            if report["retrained_models"]
            else "."
        ),
    ]
    lines += [
        f"Accuracy on the {earlier['n']} samples of the earlier request {earlier['request']}: "
        + ", ".join(f"{share_in_words(earlier[name])} {when}" for name, when in PREVIOUS if earlier[name] is not None)
        + "."
        for earlier in report["previous_requests"]
    ]
    return "\n".join(lines)


def columns(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Key, heading and question of the metrics that at least one model has."""
    return [
        (metric.key, metric.heading, metric.question)
        for metric in answer_metrics()
        if any(row[metric.key] is not None for row in report["rows"].values())
    ]


def share_in_words(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def figure_in_words(row: dict[str, Any], key: str) -> str:
    """A metric of a row, with its standard deviation where it is a mean over models."""
    if row[key] is None:
        return "–"
    spread = row.get(f"{key}_std")
    return f"{row[key]:.3f}" + (f" ±{spread:.3f}" if spread is not None else "")
