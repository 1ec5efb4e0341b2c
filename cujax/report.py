"""What a run found: a table for the terminal, JSON for programs, and one HTML page with pictures for people."""

import base64
import html
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.markup
from etils.epath import Path
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from cujax.audit.accuracy import accuracy
from cujax.audit.evidence import Answers
from cujax.audit.measures import ANSWER_MEASURES
from cujax.audit.rows import audit_rows
from cujax.checkpoints import Checkpoint, describe_lineage, installed_versions
from cujax.data.requests import ids_digest
from cujax.experiment import describe, describe_request
from cujax.figures import confidence_figure, destination_figure, embeddings_figure, stopping_figure
from cujax.inference import predict
from cujax.lineage import Deletion, deletions
from cujax.run import Run
from cujax.sharding import is_first_host
from cujax.workdir import write_whole

CAVEAT = (
    "An empirical audit is no certificate of deletion: it can show that something was not forgotten, "
    "not that everything was."
)

_STOPPING = "Unlearning, pass by pass"
UNRECORDED = "the checkpoint does not record it"

# The models that earlier requests are looked at in.
_PREVIOUS = (("original", "before"), ("unlearned", "after"), ("retrained", "retrained"))


def report_on(run: Run, original: Checkpoint, retrained: list[Checkpoint], unlearned: Checkpoint, directory: Path) -> None:
    """Audits the models; the first host writes `report.json` and `report.html` into a directory, and prints the table."""
    made = make_report(run, original, retrained, unlearned)
    if not is_first_host():
        return
    _, page = write_report(directory, made)
    console = Console()
    console.print(terminal_table(made["report"]))
    console.print(summary(made["report"]), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Checkpoints and metrics: {run.workdir}. Pictures: {page}", highlight=False, markup=False, soft_wrap=True)


def make_report(run: Run, original: Checkpoint, retrained: list[Checkpoint], unlearned: Checkpoint) -> dict[str, Any]:
    """Audits the models and collects everything `report.json` holds, and the figures of the page as PNG.

    Returns:
        `{"report": plain data, "figures": {title: (explanation, PNG bytes)}}`.
    """
    requests = deletions(run.given_original) if run.given_original else ()
    with run.progress("auditing", 7 + len(retrained) + len(requests)) as advance:

        def answers(checkpoint: Checkpoint) -> Answers:
            result = run.answers(checkpoint)
            advance()
            return result

        def previous(request: Deletion) -> dict[str, Any]:
            """How the samples of an earlier request fare; of retrained models the mean."""
            part = run.split.previously_forgotten
            rows = part.indices[np.isin(part.ids, request.ids)]

            def mean_accuracy(checkpoints: Sequence[Checkpoint]) -> float | None:
                found = [accuracy(predict(run.model, model.variables, run.train_images, rows)) for model in checkpoints]
                return sum(found) / len(found) if found else None

            advance()
            return {
                "request": request.request,
                "n": len(rows),
                "original": mean_accuracy([original]),
                "unlearned": mean_accuracy([unlearned]),
                "retrained": mean_accuracy(retrained),
            }

        of_original, of_unlearned = answers(original), answers(unlearned)
        of_retrained = [answers(checkpoint) for checkpoint in retrained]
        split, source = run.split, run.source
        noisy = bool(source.redrawn_ids)
        rows = audit_rows(split, original=of_original, retrained=of_retrained, unlearned=of_unlearned, clean_test_only=noisy)
        advance()
        history = {"stop_rule": None, "stop_reason": UNRECORDED, "step": None, "checks": ()} | unlearned.metadata.record
        report = {
            "rows": rows,
            "cost": _costs(original, retrained, unlearned, rows),
            "stop": {
                "rule": history["stop_rule"],
                "step": history["step"],
                "reason": history["stop_reason"],
                "checks": list(history["checks"]),
            },
            "split": {
                "forget": len(split.forget),
                "retain": len(split.retain),
                "validation": len(split.validation),
                "test": len(split.test),
                "previously_forgotten": len(split.previously_forgotten),
                "forgotten_classes": list(split.forgotten_classes),
                "digest": split.digest,
            },
            "request": describe_request(run.experiment.forget),
            "source": {
                "name": source.name,
                "version": source.version,
                "class_names": list(source.class_names),
            },
            "label_noise": {"redrawn": len(source.redrawn_ids), "digest": ids_digest(source.redrawn_ids)} if noisy else None,
            "previous_requests": [previous(request) for request in requests],
            "lineage": describe_lineage(unlearned).splitlines(),
            "retrained_models": len(retrained),
            "config": describe(run.experiment),
            "versions": installed_versions(),
            "seed": run.experiment.seed,
            "caveat": CAVEAT,
        }
        models = {"original": of_original, "unlearned": of_unlearned}
        several: dict[str, Sequence[Answers]] = {"original": [of_original], "unlearned": [of_unlearned]}
        if of_retrained:
            models["retrained"], several["retrained"] = of_retrained[0], of_retrained
        if split.is_class_task:
            several["masked"] = [of_original.masked(split.forgotten_classes)]
        figures = {}
        for title, explanation, draw in (
            (
                "Embeddings",
                "Where the samples to forget (crosses) lie among test samples of the classes that stay (grey).",
                lambda: embeddings_figure(models, split, source.class_names),
            ),
            (
                "Where the forgotten samples go",
                "Which class each model answers with for samples of what was forgotten.",
                lambda: destination_figure(several, split, source.class_names),
            ),
            (
                _STOPPING,
                f"What the stop rule saw on validation data. It ended because {history['stop_reason']}.",
                lambda: stopping_figure(history["checks"], history["step"], history["stop_rule"], split.is_class_task),
            ),
            (
                "Confidence",
                "Probability of the true label. Forgotten samples should look like test samples"
                + (", or, for a whole class, have none." if split.is_class_task else "."),
                lambda: confidence_figure(models, split),
            ),
        ):
            if history["checks"] or title != _STOPPING:
                figures[title] = (explanation, _png(draw()))
            advance()
    return {"report": json.loads(json.dumps(report)), "figures": figures}


def _costs(original: Checkpoint, retrained: list[Checkpoint], unlearned: Checkpoint, rows: dict[str, Any]) -> dict[str, Any]:
    """Cost by row; of the retrained models the mean of one."""
    keys = ("seconds", "steps", "samples", "flops")
    costs: dict[str, Any] = {}
    for name, checkpoints in (("original", [original]), ("retrained", retrained), ("unlearned", [unlearned])):
        known = [checkpoint.metadata.record["cost"] for checkpoint in checkpoints if "cost" in checkpoint.metadata.record]
        if known and len(known) == len(checkpoints):
            columns = {key: [cost[key] for cost in known] for key in keys}
            costs[name] = {key: None if None in column else sum(column) / len(column) for key, column in columns.items()}
        else:
            reason = UNRECORDED if checkpoints else "no retrained model: --retrained is 0"
            costs[name] = {**dict.fromkeys(keys), "reason": reason}
    if "masked" in rows:
        costs["masked"] = dict.fromkeys(keys, 0)
    return costs


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
        verb = "Forgot" if stop["rule"] == "forgotten" else "Did NOT reach the stop rule for"
        happened = (
            f"{verb} {what} of {report['source']['name']} in {stop['step']} steps, {cost['seconds']:.1f} s{compared}: "
            f"{stop['reason']}."
        )
    lines = [
        happened,
        f"Accuracy on {'test samples of the forgotten ' + noun if key == 'forget_test_accuracy' else 'the forget set'}: "
        f"{_figure(rows['original'], key)} before, {_figure(rows['unlearned'], key)} after"
        + (f", {_figure(rows['retrained'], key)} retrained." if report["retrained_models"] else "."),
        f"Test accuracy on what stays: {_figure(rows['original'], 'retain_test_accuracy')} before, "
        f"{_figure(rows['unlearned'], 'retain_test_accuracy')} after"
        + (f", {_figure(rows['retrained'], 'retain_test_accuracy')} retrained." if report["retrained_models"] else "."),
    ]
    lines += [
        f"Accuracy on the {earlier['n']} samples of the earlier request {earlier['request']}: "
        + ", ".join(f"{_share(earlier[name])} {when}" for name, when in _PREVIOUS if earlier[name] is not None)
        + "."
        for earlier in report["previous_requests"]
    ]
    return "\n".join(lines)


def terminal_table(report: dict[str, Any]) -> Table:
    """A column a model, a line a metric; mean ± standard deviation where there are several models."""
    rows, costs = report["rows"], report["cost"]
    table = Table(title=rich.markup.escape(f"{report['source']['name']}: {report['request']}"))
    table.add_column("")
    for name in rows:
        models = f" ({report['retrained_models']})" if name == "retrained" else ""
        table.add_column(f"{name}{models}", justify="right")
    for key, heading, _ in _columns(report):
        table.add_row(heading, *(_figure(row, key) for row in rows.values()))
    for key, digits in (("steps", 0), ("seconds", 1)):
        table.add_row(key, *("–" if costs[name][key] is None else f"{costs[name][key]:.{digits}f}" for name in rows))
    return table


def _columns(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Key, heading and question of the metrics that at least one model has."""
    return [
        (measure.key, measure.heading, measure.question)
        for measure in ANSWER_MEASURES
        if any(row[measure.key] is not None for row in report["rows"].values())
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _figure(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return "–"
    spread = row.get(f"{key}_std")
    return f"{row[key]:.3f}" + (f" ±{spread:.3f}" if spread is not None else "")


def write_report(directory: Path, made: dict[str, Any]) -> tuple[Path, Path]:
    """Writes `report.json` and `report.html`, each whole or not at all, and returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    return (
        write_whole(directory / "report.json", json.dumps(made["report"], indent=2, allow_nan=False) + "\n"),
        write_whole(directory / "report.html", html_page(made["report"], made["figures"])),
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def picture(title: str, explanation: str, figure: Figure) -> str:
    """A figure as part of a page, with a heading and a sentence."""
    return _picture(title, explanation, _png(figure))


def _picture(title: str, explanation: str, png: bytes) -> str:
    return (
        f'<h2>{html.escape(title)}</h2><p>{html.escape(explanation)}</p><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } tr.unlearned { background: #fff3ea; font-weight: 600; }
thead th { vertical-align: bottom; cursor: help; } img { max-width: 100%; }
.summary { font-size: 1.05rem; border-left: 4px solid #D55E00; padding-left: 1rem; }
.caveat, .note { color: #555; font-size: .9rem; } pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; }
.scroll { overflow-x: auto; } @media print { body { margin: 0; } h2 { break-after: avoid; } img { break-inside: avoid; } }
"""


def html_page(report: dict[str, Any], figures: dict[str, tuple[str, bytes]]) -> str:
    """The report as one self-contained page: no network, no scripts."""
    escape = html.escape
    columns = _columns(report)
    head = "".join(f'<th title="{escape(question)}">{escape(heading)}</th>' for _, heading, question in columns)
    body = ""
    for name, row in report["rows"].items():
        cells = "".join(
            f'<td title="{escape(row["reasons"].get(key, ""))}">{escape(_figure(row, key))}</td>' for key, _, _ in columns
        )
        seconds = report["cost"][name]["seconds"]
        cells += f"<td>{'–' if seconds is None else f'{seconds:.1f}'}</td>"
        body += f'<tr class="{escape(name)}"><td>{escape(name)}</td>{cells}</tr>'
    questions = "".join(f"<li><b>{escape(heading)}</b>: {escape(question)}</li>" for _, heading, question in columns)
    absent = "".join(
        f"<li>{escape(name)}, {escape(key)}: {escape(reason)}</li>"
        for name, row in report["rows"].items()
        for key, reason in row["reasons"].items()
    )
    pictures = "".join(_picture(title, *figure) for title, figure in figures.items())
    split = report["split"]
    parts = ", ".join(f"{name} {split[name]}" for name in ("forget", "retain", "validation", "test"))
    details = json.dumps({key: report[key] for key in ("config", "versions", "split", "cost", "seed")}, indent=2)
    several = report["retrained_models"] > 1
    earlier = "".join(
        f"<tr><td>{escape(request['request'])}</td><td>{request['n']}</td>"
        + "".join(f"<td>{_share(request[name])}</td>" for name, _ in _PREVIOUS)
        + "</tr>"
        for request in report["previous_requests"]
    )
    heads = "".join(f"<th>{name}</th>" for name, _ in _PREVIOUS)
    earlier_table = (
        "<h2>Earlier requests</h2><p>Accuracy on the training samples that earlier requests had forgotten.</p>"
        f"<table><thead><tr><th>request</th><th>samples</th>{heads}</tr></thead><tbody>{earlier}</tbody></table>"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Unlearning report: {escape(report["source"]["name"])}</title><style>{STYLE}</style></head><body>
<h1>Unlearning report: {escape(report["source"]["name"])}, {escape(report["request"])}</h1>
<p class="summary">{"<br>".join(map(escape, summary(report).splitlines()))}</p>
<p class="caveat">{escape(report["caveat"])}</p>
<div class="scroll"><table><thead><tr><th></th>{head}<th>seconds</th></tr></thead><tbody>{body}</tbody></table></div>
<p class="note">All figures are fractions. The aim is not the best figure but the retrained model's
({report["retrained_models"]} of them{", mean ± standard deviation" if several else ""}). Samples: {escape(parts)}.</p>
{earlier_table * bool(earlier)}
{pictures}
<h2>What the columns ask</h2><ul>{questions}</ul>
{f"<h2>What could not be computed, and why</h2><ul>{absent}</ul>" if absent else ""}
<h2>Lineage</h2><pre>{escape(chr(10).join(report["lineage"]))}</pre>
<h2>Details</h2><details><summary>Configuration, versions, cost</summary><pre>{escape(details)}</pre></details>
</body></html>
"""
