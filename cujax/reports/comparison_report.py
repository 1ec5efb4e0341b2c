"""The results of a comparison: one table per request, as JSON, CSV, Markdown, LaTeX and an HTML page with figures."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils.epath import Path
from rich.markup import escape
from rich.table import Table
from tabulate import tabulate as text_table

from cujax.audit.verdict import ORDER
from cujax.audit.verdict_words import TABLE_WORDS
from cujax.experiments.request_words import class_labels, parse_request, request_title
from cujax.reports.comparison_figures import basis, cost_caption, cost_figure, trade_off_caption, trade_off_figure
from cujax.reports.control_curve import control_caption, control_curve, control_figure, control_remarks
from cujax.reports.gap4 import gap4
from cujax.reports.glossary import glossary
from cujax.reports.html import Figures, render, svg
from cujax.reports.summary import CAVEAT
from cujax.reports.trade_off import courses, remark_on_end, trade_off_curves, trade_off_curves_caption
from cujax.storage.workdir import write_whole

# Key, heading, digits; fractions unless the heading says otherwise.
COLUMNS = (
    ("forget_train_accuracy", "forget (train)", 3),
    ("forget_test_accuracy", "forget (test)", 3),
    ("retain_train_accuracy", "retain (train)", 3),
    ("retain_test_accuracy", "retain (test)", 3),
    ("mia_loss_auc", "MIA loss AUC", 3),
    ("js_to_retrained", "JS to retrained", 3),
    ("agreement", "agreement", 3),
    ("log_odds_to_retrained", "log odds to retrained", 2),
    ("mean_gap", "mean gap", 4),
    ("probe_z", "probe (embedding)", 3),
    ("probe_below_z", "probe (below it)", 3),
    ("nearest_class_mean", "nearest mean", 3),
    ("relearning_steps", "steps to relearn", 0),
    ("parameter_change", "parameters moved", 3),
    ("steps", "steps", 0),
    ("samples", "samples", 0),
    ("seconds", "seconds", 1),
    ("gflops", "GFLOP", 0),
    ("speed_up", "speed-up (time)", 1),
    ("flops_ratio", "speed-up (FLOP)", 1),
    ("trials", "trials", 0),
)

# Below this, forgetting has not begun: accuracy on the forget set is that of the original.
_NO_CHANGE = 0.005
_HARM = 0.05


def tabulate(found: dict[str, Any]) -> dict[str, Any]:
    """The comparison with its tables: for each request, rows of means, standard deviations and remarks.

    A mean is over seeds; for `original` likewise, for `retrained` over all retrained models of all seeds. A method's gap is
    to the mean of the retrained models of its seed, that of a retrained model to the mean of the others. `verdicts` counts
    the verdicts on the answers over seeds. Methods are ranked by the worst of theirs, then by retained test accuracy, then
    by operations.
    """
    tables = {}
    for word, task in found["tasks"].items():
        references = {seed: entry for seed, entry in task["references"].items() if "failed" not in entry}
        rows = {}
        if references:
            originals = [entry["original"] | _cost(entry["original_cost"]) for entry in references.values()]
            retrained = [
                row | _cost(cost)
                for entry in references.values()
                for row, cost in zip(entry["retrained"], entry["retrained_costs"], strict=True)
            ]
            rows["original"] = _summary(originals)
            rows["retrained"] = _summary(retrained)
        for name, cells in task["cells"].items():
            done = {seed: cell for seed, cell in cells.items() if "failed" not in cell}
            row = _summary([_measured(cell, references[seed]) for seed, cell in done.items()])
            tuned = (task["tuned"] or {"methods": {}})["methods"].get(name)
            row["mean"]["trials"] = len({json.dumps(trial["settings"]) for trial in tuned["trials"]}) if tuned else 0
            row["verdicts"] = dict(Counter(cell["verdict"]["word"] for cell in done.values() if "verdict" in cell))
            row["remarks"] = _remarks(done, references, tuned)
            row["remarks"] += [f"seed {seed} failed: {cell['failed']}" for seed, cell in cells.items() if "failed" in cell]
            rows[name] = row
        for name, by_seed in courses(task).items():
            remark = remark_on_end(by_seed, found["setup"]["retain_tolerance"], class_task=bool(task["classes"]))
            rows[name]["remarks"] += [] if remark is None else [remark]
        curve = control_curve(rows, task.get("controls", ()))
        for name, remark in ({} if curve is None else control_remarks(rows, curve)).items():
            rows[name]["remarks"].append(remark)
        tables[word] = dict(sorted(rows.items(), key=_rank))
    return found | {"tables": tables, "caveat": CAVEAT}


def _rank(item: tuple[str, dict[str, Any]]) -> tuple[float, ...]:
    """References first; then by verdict, harm and cost. Verdicts of 0.1, which had none, count as the worst."""
    name, row = item
    worst = max((ORDER.index(word) for word in row.get("verdicts", {})), default=len(ORDER))
    kept, cost = (row["mean"].get(key) for key in ("retain_test_accuracy", "gflops"))
    return (
        {"original": 0, "retrained": 1}.get(name, 2),
        worst,
        math.inf if kept is None else -kept,
        math.inf if cost is None else cost,
    )


def _cost(cost: dict[str, Any] | None) -> dict[str, Any]:
    if cost is None:
        return dict.fromkeys(("seconds", "steps", "samples", "gflops"))
    flops = cost["flops"]
    return {name: cost[name] for name in ("seconds", "steps", "samples")} | {
        "gflops": None if flops is None else flops / 1e9
    }


def _measured(cell: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """All figures of a cell, and how many times cheaper than retraining it was; without a step there is no ratio."""

    def times(key: str) -> float | None:
        costs = [cost[key] for cost in reference["retrained_costs"]]
        own = cell["cost"][key]
        return float(np.mean(costs)) / own if own and cell["cost"]["steps"] and None not in costs else None

    return (
        cell["row"]
        | _cost(cell["cost"])
        | {
            "parameter_change": cell["parameter_change"],
            "speed_up": times("seconds"),
            "flops_ratio": times("flops"),
        }
    )


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of each column; None where a row lacks it."""
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for key, _, _ in COLUMNS:
        values = [row.get(key) for row in rows]
        known = bool(values) and None not in values
        mean[key] = float(np.mean(values)) if known else None  # type: ignore[arg-type]
        std[key] = float(np.std(values, ddof=1)) if known and len(values) > 1 else None  # type: ignore[arg-type]
    return {"n": len(rows), "mean": mean, "std": std, "remarks": []}


def _is_unchanged(cell: dict[str, Any]) -> bool:
    """As its verdict has it; a cell of 0.1 has none, only how far the parameters moved."""
    return bool(cell["verdict"]["unchanged"] if "verdict" in cell else cell["parameter_change"] == 0)


def _remarks(done: dict[str, Any], references: dict[str, Any], tuned: dict[str, Any] | None) -> list[str]:
    """What a reader must know before comparing: no change, harm, an inadmissible setting."""
    remarks = []
    pairs = [(cell, references[seed]["original"]) for seed, cell in done.items()]
    if tuned is not None and not tuned["admissible"]:
        remarks.append("no trial was admissible")
    kept = sum(_is_unchanged(cell) for cell, _ in pairs)
    if kept:
        remarks.append(f"parameters unchanged in {kept} of {len(pairs)} seeds")
    change = max(
        (abs(cell["row"]["forget_train_accuracy"] - row["forget_train_accuracy"]) for cell, row in pairs), default=1
    )
    if change < _NO_CHANGE:
        remarks.append("forgets nothing: accuracy on the forget set is the original's")
    harm = np.mean([row["retain_test_accuracy"] - cell["row"]["retain_test_accuracy"] for cell, row in pairs] or [0])
    if harm > _HARM:
        remarks.append(f"harms retained data: test accuracy fell by {harm:.3f}")
    return remarks


def _figure(row: dict[str, Any], key: str, digits: int) -> str:
    mean, std = row["mean"][key], row["std"][key]
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _shown(table: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [column for column in COLUMNS if any(row["mean"][column[0]] is not None for row in table.values())]


def _verdict_heading(found: dict[str, Any]) -> str:
    return "verdict on answers" if basis(found) == "answers" else "verdict"


def _verdicts(row: dict[str, Any], found: dict[str, Any]) -> str:
    """Such as "hidden" or, where seeds differ, "hidden 2, distinguishable 1"."""
    counts = sorted(row.get("verdicts", {}).items(), key=lambda entry: -ORDER.index(entry[0]))
    names = TABLE_WORDS[basis(found)]
    return ", ".join(names[word] + f" {count}" * (len(counts) > 1) for word, count in counts) or "–"


def _heading(word: str, task: dict[str, Any]) -> str:
    """The request as a title, with the names of the forgotten classes."""
    request = parse_request(word)
    return request_title(request, dict(zip(class_labels(request), task["classes"], strict=False)))


def _lines(table: dict[str, Any], columns: Sequence[tuple[str, str, int]]) -> list[list[str]]:
    """Of each method, its name and its figures as text."""
    return [[name, *(_figure(row, key, digits) for key, _, digits in columns)] for name, row in table.items()]


def _with_verdicts(table: dict[str, Any], columns: Sequence[tuple[str, str, int]], found: dict[str, Any]) -> list[list[str]]:
    """The lines, each with its verdict at the end."""
    return [[*line, _verdicts(row, found)] for line, row in zip(_lines(table, columns), table.values(), strict=True)]


def budget(task: dict[str, Any]) -> str:
    """How the settings were found, in a sentence."""
    tuned = task["tuned"]
    if tuned is None:
        named = ", or those named after @" if any("@" in name for name in task["cells"]) else ""
        return f"Settings: each method's defaults{named}; nothing was tuned."
    seeds = ", ".join(map(str, tuned.get("seeds", ())))
    worst = f" The best three were tried on seeds {seeds}, and the worst of these decided." * bool(seeds)
    return (
        f"Settings: the best of {tuned['trials']} trials per method ({tuned['sampler']} search from the published settings, "
        f"seed {tuned['seed']}), chosen on validation data. {tuned['rule']}{worst}"
    )


def as_csv(found: dict[str, Any]) -> str:
    """All tables as one CSV: one line per request and method, with means and standard deviations in separate columns."""
    rows = [
        {"request": word, "method": name, "n": row["n"]}
        | {f"{key}{end}": row[which][key] for key, _, _ in COLUMNS for which, end in (("mean", ""), ("std", "_std"))}
        | {"verdict": _verdicts(row, found), "remarks": "; ".join(row["remarks"])}
        for word, table in found["tables"].items()
        for name, row in table.items()
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_markdown(found: dict[str, Any]) -> str:
    """The tables for a page."""
    parts = [f"# Comparison on {found['source']['name']}\n\n{_preamble(found)}\n"]
    for word, table in found["tables"].items():
        task, columns = found["tasks"][word], _shown(table)
        parts.append(f"## {_heading(word, task)}\n\n{budget(task)}\n")
        lines = _with_verdicts(table, columns, found)
        parts.append(_text_table(lines, ["", *(heading for _, heading, _ in columns), _verdict_heading(found)], "pipe"))
        parts.append("".join(f"- {note}\n" for note in _notes(table, task)))
        if found["setup"].get("protocol"):
            published = gap4(found, word)
            parts.append(f"{_text_table(published.rows, published.columns, 'pipe')}\n{published.caption}\n")
    return "\n".join(filter(None, parts))


def _text_table(lines: list[list[str]], headings: list[str], style: str) -> str:
    """Names to the left, figures to the right, exactly as they are written."""
    return (
        text_table(lines, headings, style, disable_numparse=True, colalign=("left", *("right",) * (len(headings) - 1)))
        + "\n"
    )


def _notes(table: dict[str, Any], task: dict[str, Any]) -> list[str]:
    """What a reader must know of single methods, a sentence each."""
    remarks = [f"{name}: {remark}." for name, row in table.items() for remark in row["remarks"]]
    return remarks + [f"{name} is left out: {why}" for name, why in task["left_out"].items()]


_ALONE = (
    "The verdict is based on the answers alone. Features and relearning, which reveal most of what is hidden, are examined "
    "with --audit standard."
)
_WHOLE = (
    "The verdict is based on answers, features and relearning. A probe is a linear classifier that is trained on the "
    "features of other samples; its figure is the share of forgotten samples that it classifies correctly."
)


def _preamble(found: dict[str, Any]) -> str:
    n = found["retrained"]
    return (
        f"Mean ± standard deviation over {len(found['seeds'])} seeds; the retrained row is over the {n} retrained models of "
        "each seed. The aim is not the best figure, but that of the retrained models. Mean gap: mean absolute difference "
        "of forget, retain and test accuracy to the retrained models' mean (for a retrained model, to the mean of the "
        f"others). {_ALONE if basis(found) == 'answers' else _WHOLE} Methods are ranked by verdict, then by retained test "
        f"accuracy, then by operations. Seconds are without compilation, on {found['device']}. {CAVEAT}"
    )


def as_latex(found: dict[str, Any]) -> str:
    """The tables for a paper (package booktabs), with the columns that fit a page."""
    keys = (
        "forget_train_accuracy",
        "forget_test_accuracy",
        "retain_test_accuracy",
        "mia_loss_auc",
        "mean_gap",
        "flops_ratio",
    )
    parts = []
    for word, table in found["tables"].items():
        columns = [column for column in _shown(table) if column[0] in keys]
        lines = _text_table(_lines(table, columns), ["", *(heading for _, heading, _ in columns)], "latex_booktabs")
        parts.append(f"% {found['source']['name']}, {word}\n" + lines.replace("±", r"$\pm$").replace("–", "--"))
    return "\n".join(parts)


def terminal_table(word: str, found: dict[str, Any]) -> Table:
    """The most important figures, one line per method."""
    table = found["tables"][word]
    keys = ("forget_train_accuracy", "forget_test_accuracy", "retain_test_accuracy", "mia_loss_auc", "mean_gap", "seconds")
    columns = [column for column in _shown(table) if column[0] in keys]
    shown = Table(title=f"{escape(found['source']['name'])}: {escape(_heading(word, found['tasks'][word]))}")
    shown.add_column("", no_wrap=True, min_width=max(map(len, table)))
    for _, heading, _ in columns:
        shown.add_column(heading, justify="right")
    shown.add_column(_verdict_heading(found), justify="right")
    for line in _with_verdicts(table, columns, found):
        shown.add_row(*line)
    return shown


def as_html(found: dict[str, Any]) -> str:
    """One self-contained page with tables and figures; it needs neither scripts nor a network."""
    requests = []
    for word, table in found["tables"].items():
        task, columns = found["tasks"][word], _shown(table)
        requests.append(
            {
                "heading": f"{found['source']['name']}: {_heading(word, task)}",
                "budget": budget(task),
                "columns": [*((key, heading) for key, heading, _ in columns), ("verdict", _verdict_heading(found))],
                "rows": _with_verdicts(table, columns, found),
                "notes": _notes(table, task),
                "protocol": gap4(found, word) if found["setup"].get("protocol") else None,
                "figures": _figures(found, word),
                "settings": json.dumps(task["settings"], indent=2),
            }
        )
    return render(
        "comparison.html",
        found=found,
        preamble=_preamble(found),
        requests=requests,
        glossary=glossary(["original", "retrained", "forget_set", "retain_set", *(key for key, _, _ in COLUMNS), "verdict"]),
        details=json.dumps({key: found[key] for key in ("setup", "versions", "seeds", "device")}, indent=2),
    )


def _figures(found: dict[str, Any], word: str) -> Figures:
    """The pictures of one request; there are none without retrained models."""
    table = found["tables"][word]
    if "retrained" not in table:
        return {}
    of_test = found["tasks"][word]["classes"] and table["original"]["mean"]["forget_test_accuracy"] is not None
    key = "forget_test_accuracy" if of_test else "forget_train_accuracy"
    figures: Figures = {
        "Forgetting and retained accuracy": (
            trade_off_caption(found, word, key),
            svg(trade_off_figure(found, word, key)),
        ),
        "Cost and gap": (cost_caption(table), svg(cost_figure(table))),
    }
    by_method = courses(found["tasks"][word])
    if by_method:
        tolerance = found["setup"]["retain_tolerance"]
        figures["Pass by pass: forgetting and the loss of retained accuracy"] = (
            trade_off_curves_caption(by_method, tolerance),
            svg(trade_off_curves(by_method, tolerance)),
        )
    curve = control_curve(table, found["tasks"][word].get("controls", ()))
    if curve is not None:
        figures["Distance and cost, compared with shortened retraining"] = (
            control_caption(table, curve),
            svg(control_figure(table, curve)),
        )
    return figures


def write_comparison(directory: Path, found: dict[str, Any]) -> list[Path]:
    """Writes `comparison.json`, `.csv`, `.md`, `.tex` and `.html`, each whole or not at all, and returns their paths."""
    texts = {
        "json": json.dumps(found, indent=2, allow_nan=False) + "\n",
        "csv": as_csv(found),
        "md": as_markdown(found),
        "tex": as_latex(found),
        "html": as_html(found),
    }
    return [write_whole(directory / f"comparison.{ending}", text) for ending, text in texts.items()]
