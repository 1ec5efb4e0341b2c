"""What was found, in words and tables: for the terminal, for programs, and for pages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cujax.audit.findings import Findings, JudgedMetric
from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.registry import answer_metrics

_SIGNS = {"within": "✓", "above": "▲", "below": "▼", "not judged": "–"}
_FEW = 10


def describe_findings(findings: Findings) -> dict[str, Any]:
    """An audit's findings as plain data, as `docs/report.schema.json` has them under "audit"."""
    outside, judged = findings.false_alarms
    return {
        "level": findings.level,
        "retrained": len(findings.models["retrained"]),
        "shadows": findings.shadows,
        "measures": [_described(found) for found in findings.judged],
        "false_alarms": {"outside": outside, "judged": judged},
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
            {"request": request, "measures": [_described(found) for found in judged]}
            for request, judged in findings.earlier.items()
        ],
    }


def _described(found: JudgedMetric) -> dict[str, Any]:
    values = [reference.value for reference in found.retrained]
    retrained = None
    if values:
        retrained = {
            "values": values,
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }
    verdict = found.verdict
    return {
        "key": found.key,
        "family": found.family,
        "heading": found.heading,
        "question": found.question,
        "figures": {name: _figure(figure) for name, figure in found.figures.items()},
        "retrained": retrained,
        "verdict": {
            "word": verdict.word,
            "outside_by": verdict.outside_by,
            "low": verdict.low,
            "high": verdict.high,
            "reason": verdict.reason,
        },
    }


def _figure(figure: Estimate | str) -> dict[str, Any]:
    if isinstance(figure, str):
        return {"value": None, "low": None, "high": None, "reason": figure}
    try:
        low, high = figure.interval() if figure.interval else (None, None)
    except NotAvailable as reason:
        return {"value": figure.value, "low": None, "high": None, "reason": f"no interval: {reason}"}
    return {"value": figure.value, "low": low, "high": high, "reason": ""}


def verdict_in_words(metric: dict[str, Any]) -> str:
    """Such as "✓ within" or "▲ above by 0.120"."""
    word = metric["verdict"]["word"]
    by = f" by {metric['verdict']['outside_by']:.3f}" if word in ("above", "below") else ""
    return f"{_SIGNS[word]} {word}{by}"


def audit_summary(audit: dict[str, Any], n_forget: int) -> list[str]:
    """What an audit found, in a few sentences."""
    judged = [metric for metric in audit["measures"] if metric["verdict"]["word"] != "not judged"]
    if not judged:
        are = "is" if audit["retrained"] == 1 else "are"
        lines = [
            f"No figure is judged: a range takes five retrained models, and there {are} {audit['retrained']}; "
            "scripts/audit.py --level standard trains five."
        ]
    else:
        outside = [metric for metric in judged if metric["verdict"]["word"] != "within"]
        lines = [
            f"{len(judged) - len(outside)} of {len(judged)} figures lie within the range of {audit['retrained']} retrained "
            "models, widened by their confidence intervals."
        ]
        if outside:
            by_family: dict[str, list[str]] = {}
            for metric in outside:
                by_family.setdefault(metric["family"], []).append(f"{metric['heading']} {metric['verdict']['word']}")
            words = "; ".join(f"{family} ({', '.join(found)})" for family, found in by_family.items())
            lines.append(f"Outside, and so distinguishable from retraining: {words}.")
        alarms = audit["false_alarms"]
        if alarms["judged"]:
            lines.append(
                f"Retrained models themselves, each compared with the others, lie outside in {alarms['outside']} of "
                f"{alarms['judged']} figures ({alarms['outside'] / alarms['judged']:.0%})."
            )
    if n_forget < _FEW:
        lines.append(f"Only {n_forget} samples were forgotten: intervals are wide, and many differences cannot be detected.")
    return lines


def audit_terminal_table(audit: dict[str, Any]) -> Table:
    """A line a metric that could be computed: original, unlearned, retrained models and the verdict."""
    table = Table(title=f"audit, level {audit['level']}")
    table.add_column("")
    for heading in ("original", "unlearned", f"retrained ({audit['retrained']})"):
        table.add_column(heading, justify="right")
    table.add_column("compared with retrained")
    family = None
    for metric in audit["measures"]:
        figures = [metric["figures"][name]["value"] for name in ("original", "unlearned")]
        if figures == [None, None]:
            continue
        if family not in (None, metric["family"]):
            table.add_section()
        family = metric["family"]
        retrained = metric["retrained"]
        spread = "–" if retrained is None else f"{retrained['mean']:.3f}"
        if retrained is not None and retrained["std"] is not None:
            spread += f" ±{retrained['std']:.3f}"
        values = ("–" if value is None else f"{value:.3f}" for value in figures)
        table.add_row(metric["heading"], *values, spread, verdict_in_words(metric))
    return table


def not_computed(audit: dict[str, Any]) -> Sequence[str]:
    """What could not be computed or judged, each with its reason."""
    lines = []
    for metric in audit["measures"]:
        missing: dict[str, list[str]] = {}
        for name, figure in metric["figures"].items():
            if figure["reason"]:
                missing.setdefault(figure["reason"], []).append(name)
        lines += [f"{metric['heading']}, {', '.join(names)}: {reason}" for reason, names in missing.items()]
        reason = metric["verdict"]["reason"]
        if reason and reason not in missing:
            lines.append(f"{metric['heading']}, not judged: {reason}")
    return list(dict.fromkeys(lines))


CAVEAT = (
    "An empirical audit is no certificate of deletion: it can show that something was not forgotten, "
    "not that everything was."
)


UNRECORDED = "the checkpoint does not record it"

# The models that earlier requests are looked at in.
PREVIOUS = (("original", "before"), ("unlearned", "after"), ("retrained", "retrained"))


def summary(report: dict[str, Any]) -> str:
    """What happened, in a few sentences."""
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
        happened = f"{what} of {report['source']['name']} were to be forgotten; how, {UNRECORDED}."
    else:
        cost, retraining = report["cost"]["unlearned"], report["cost"]["retrained"]
        compared = f" (retraining took {retraining['seconds']:.1f} s)" if retraining["seconds"] else ""
        verb = "Forgot" if stop["rule"] == "stop_rule" else "Did NOT reach the stop rule for"
        happened = (
            f"{verb} {what} of {report['source']['name']} in {stop['step']} steps, {cost['seconds']:.1f} s{compared}: "
            f"{stop['reason']}."
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
    if report["audit"] is not None:
        lines += audit_summary(report["audit"], split["forget"])
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
