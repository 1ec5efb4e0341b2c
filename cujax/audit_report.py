"""What an audit found, as data for programs and as the part of a page that people read first."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cujax.audit.intervals import Estimate, NotAvailable
from cujax.auditing import Findings, Judged

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


def _described(found: Judged) -> dict[str, Any]:
    values = [oracle.value for oracle in found.retrained]
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


def verdict_in_words(measure: dict[str, Any]) -> str:
    """Such as "✓ within" or "▲ above by 0.120"."""
    word = measure["verdict"]["word"]
    by = f" by {measure['verdict']['outside_by']:.3f}" if word in ("above", "below") else ""
    return f"{_SIGNS[word]} {word}{by}"


def audit_summary(audit: dict[str, Any], n_forget: int) -> list[str]:
    """What an audit found, in a few sentences."""
    judged = [measure for measure in audit["measures"] if measure["verdict"]["word"] != "not judged"]
    if not judged:
        are = "is" if audit["retrained"] == 1 else "are"
        lines = [
            f"No figure is judged: a range takes five retrained models, and there {are} {audit['retrained']}; "
            "scripts/audit.py --level standard trains five."
        ]
    else:
        outside = [measure for measure in judged if measure["verdict"]["word"] != "within"]
        lines = [
            f"{len(judged) - len(outside)} of {len(judged)} figures lie within the range of {audit['retrained']} retrained "
            "models, widened by their confidence intervals."
        ]
        if outside:
            by_family: dict[str, list[str]] = {}
            for measure in outside:
                by_family.setdefault(measure["family"], []).append(f"{measure['heading']} {measure['verdict']['word']}")
            words = "; ".join(f"{family} ({', '.join(found)})" for family, found in by_family.items())
            lines.append(f"Outside, and so distinguishable from retraining: {words}.")
        alarms = audit["false_alarms"]
        if alarms["judged"]:
            lines.append(
                f"Retrained models themselves, each held against the others, lie outside in {alarms['outside']} of "
                f"{alarms['judged']} figures ({alarms['outside'] / alarms['judged']:.0%})."
            )
    if n_forget < _FEW:
        lines.append(f"Only {n_forget} samples were forgotten: intervals are wide, and much cannot be told at all.")
    return lines


def audit_table(audit: dict[str, Any]) -> str:
    """Every metric, of the request and of earlier ones, as HTML."""
    tables = _table(audit, audit["measures"])
    for earlier in audit["earlier_requests"]:
        tables += f"<h3>Earlier request {html.escape(earlier['request'])}, again</h3>{_table(audit, earlier['measures'])}"
    return tables + (
        '<p class="note">Small figures are 95 % intervals: Wilson\'s for shares, a bootstrap over samples (or over models, '
        "where there are several) otherwise. Of retrained models: mean ± standard deviation, and the range.</p>"
    )


def _table(audit: dict[str, Any], measures: Sequence[dict[str, Any]]) -> str:
    """A family after another: what each metric asks, its figures and the verdict."""
    names = [name for name in ("original", "unlearned", "masked") if any(name in measure["figures"] for measure in measures)]
    heads = "".join(f"<th>{name}</th>" for name in names)
    body, family = "", None
    for measure in measures:
        if all(measure["figures"].get(name, {}).get("value") is None for name in names):
            continue
        if measure["family"] != family:
            family = measure["family"]
            body += f'<tr class="family"><td colspan="{len(names) + 3}">{html.escape(family)}</td></tr>'
        cells = "".join(_cell(measure["figures"].get(name)) for name in names)
        body += (
            f'<tr class="{measure["verdict"]["word"].replace(" ", "-")}"><td><b>{html.escape(measure["heading"])}</b><br>'
            f"<small>{html.escape(measure['question'])}</small></td>{cells}<td>{_oracles(measure['retrained'])}</td>"
            f'<td title="{html.escape(measure["verdict"]["reason"])}">{verdict_in_words(measure)}</td></tr>'
        )
    return (
        f'<div class="scroll"><table class="audit"><thead><tr><th>metric</th>{heads}'
        f"<th>retrained ({audit['retrained']})</th><th>unlearned, to their range</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def audit_terminal_table(audit: dict[str, Any]) -> Table:
    """A line a metric that could be computed: original, unlearned, retrained models and the verdict."""
    table = Table(title=f"audit, level {audit['level']}")
    table.add_column("")
    for heading in ("original", "unlearned", f"retrained ({audit['retrained']})"):
        table.add_column(heading, justify="right")
    table.add_column("to their range")
    family = None
    for measure in audit["measures"]:
        figures = [measure["figures"][name]["value"] for name in ("original", "unlearned")]
        if figures == [None, None]:
            continue
        if family not in (None, measure["family"]):
            table.add_section()
        family = measure["family"]
        retrained = measure["retrained"]
        spread = "–" if retrained is None else f"{retrained['mean']:.3f}"
        if retrained is not None and retrained["std"] is not None:
            spread += f" ±{retrained['std']:.3f}"
        values = ("–" if value is None else f"{value:.3f}" for value in figures)
        table.add_row(measure["heading"], *values, spread, verdict_in_words(measure))
    return table


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        reason = "" if figure is None else figure["reason"]
        return f'<td title="{html.escape(reason)}">–</td>'
    interval = "" if figure["low"] is None else f"<br><small>{figure['low']:.3f} to {figure['high']:.3f}</small>"
    return f"<td>{figure['value']:.3f}{interval}</td>"


def _oracles(retrained: dict[str, Any] | None) -> str:
    if retrained is None:
        return "–"
    spread = "" if retrained["std"] is None else f" ± {retrained['std']:.3f}"
    low, high = min(retrained["values"]), max(retrained["values"])
    return f"{retrained['mean']:.3f}{spread}" + f"<br><small>{low:.3f} to {high:.3f}</small>" * (low < high)


def not_computed(audit: dict[str, Any]) -> Sequence[str]:
    """What could not be computed or judged, each with its reason."""
    lines = []
    for measure in audit["measures"]:
        missing: dict[str, list[str]] = {}
        for name, figure in measure["figures"].items():
            if figure["reason"]:
                missing.setdefault(figure["reason"], []).append(name)
        lines += [f"{measure['heading']}, {', '.join(names)}: {reason}" for reason, names in missing.items()]
        reason = measure["verdict"]["reason"]
        if reason and reason not in missing:
            lines.append(f"{measure['heading']}, not judged: {reason}")
    return list(dict.fromkeys(lines))
