"""The report of a run: a table for the terminal, JSON for programs, and one HTML page with figures for people."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import rich.markup
from etils.epath import Path
from rich.console import Console
from rich.table import Table

from cujax.audit.evidence import Answers
from cujax.audit.findings import Findings
from cujax.audit.rows import audit_rows
from cujax.data.requests import Part, ids_digest
from cujax.experiments.identity import describe
from cujax.experiments.request_words import describe_request, request_title
from cujax.experiments.run import Run
from cujax.reports.audit_figures import audit_pictures
from cujax.reports.figures import (
    confidence_caption,
    confidence_figure,
    destination_caption,
    destination_figure,
    embeddings_caption,
    embeddings_figure,
    stopping_caption,
    stopping_figure,
)
from cujax.reports.html import html_page, svg
from cujax.reports.summary import (
    CAVEAT,
    UNRECORDED,
    audit_terminal_table,
    columns,
    describe_findings,
    figure_in_words,
    summary,
)
from cujax.reports.verdict import describe_verdict, verdict_lines
from cujax.sharding import is_first_host
from cujax.storage.checkpoints import Checkpoint, digest_problem, installed_versions
from cujax.storage.lineage import Deletion, describe_lineage
from cujax.storage.records import write_whole
from cujax.storage.verdicts import save_verdict
from cujax.training.predict import accuracy

# Schema of report.json; increased when keys change.
SCHEMA_VERSION = 2
_STOPPING = "Unlearning, pass by pass"


def report_on(
    run: Run,
    original: Checkpoint,
    retrained: list[Checkpoint],
    unlearned: Checkpoint,
    directory: Path,
    findings: Findings | None = None,
    unlearned_path: Path | None = None,
) -> dict[str, Any]:
    """Reports on the models; the first host writes `report.json` and `report.html` into a directory, and prints the table.

    Args:
        run: The run of the models.
        original: The model before unlearning.
        retrained: Models trained without the forget set.
        unlearned: The model after unlearning.
        directory: Where to write.
        findings: The findings of an audit of the same models.
        unlearned_path: Path of the unlearned model's checkpoint, in which its verdict is stored; by default the run's.

    Returns:
        The content of `report.json`.
    """
    run.store.check_there()
    path = unlearned_path or run.unlearned_path
    made = make_report(run, original, retrained, unlearned, findings, path)
    report = made["report"]
    if not is_first_host():
        return report
    if report["verdict"] is not None and path.is_dir():
        save_verdict(path, unlearned.digest, report["verdict"])
    _, page = write_report(directory, made)
    console = Console()
    console.print(terminal_table(report) if report["audit"] is None else audit_terminal_table(report["audit"]))
    for name, found in report["checkpoints"].items():
        if found["problem"]:
            line = f"WARNING: the report does not describe the {name} checkpoint at {found['path']}: {found['problem']}."
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    where = f"Checkpoints and metrics: {run.workdir}. Page with pictures: {page}"
    for line in (summary(report), where, *verdict_lines(report)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return report


def make_report(
    run: Run,
    original: Checkpoint,
    retrained: list[Checkpoint],
    unlearned: Checkpoint,
    findings: Findings | None = None,
    unlearned_path: Path | None = None,
) -> dict[str, Any]:
    """Collects the content of `report.json`, and the figures of the page as SVG; takes the arguments of `report_on`.

    Returns:
        `{"report": plain data, "figures": {title: (caption, SVG bytes)}}`.
    """
    unlearned_path = unlearned_path or run.unlearned_path
    requests = run.earlier_requests()
    with run.progress("auditing", 7 + len(retrained) + len(requests)) as advance:

        def answers(name: str, checkpoints: Sequence[Checkpoint]) -> list[Answers]:
            """The answers of the models of a row, from the audit if it has inspected them."""
            result = []
            for number, checkpoint in enumerate(checkpoints):
                result.append(findings.models[name][number].answers if findings else run.answers(checkpoint))
                advance()
            return result

        def previous(request: Deletion, part: Part) -> dict[str, Any]:
            """The accuracy on the samples of an earlier request; for retrained models, the mean."""

            def mean_accuracy(checkpoints: Sequence[Checkpoint]) -> float | None:
                found = [accuracy(run.predictions(checkpoint, part)) for checkpoint in checkpoints]
                return sum(found) / len(found) if found else None

            advance()
            return {
                "request": request.request,
                "n": len(part),
                "original": mean_accuracy([original]),
                "unlearned": mean_accuracy([unlearned]),
                "retrained": mean_accuracy(retrained),
            }

        (of_original,), (of_unlearned,) = answers("original", [original]), answers("unlearned", [unlearned])
        of_retrained = answers("retrained", retrained)
        split, source = run.split, run.source
        noisy = bool(source.redrawn_ids)
        rows = audit_rows(split, original=of_original, retrained=of_retrained, unlearned=of_unlearned, clean_test_only=noisy)
        advance()
        history = {"stop_rule": None, "stop_reason": UNRECORDED, "step": None, "checks": ()} | unlearned.metadata.record
        report = {
            "schema_version": SCHEMA_VERSION,
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
            "title": request_title(run.experiment.forget, source.class_names) + f" ({run.part})" * bool(run.part),
            "part": run.part,
            "source": {
                "name": source.name,
                "version": source.version,
                "class_names": list(source.class_names),
            },
            "label_noise": {"redrawn": len(source.redrawn_ids), "digest": ids_digest(source.redrawn_ids)} if noisy else None,
            "previous_requests": [previous(*request) for request in requests],
            "lineage": describe_lineage(unlearned).splitlines(),
            "retrained_models": len(retrained),
            "config": describe(run.experiment),
            "versions": installed_versions(),
            "seed": run.experiment.seed,
            "audit": None if findings is None else describe_findings(findings),
            "verdict": None
            if findings is None
            else describe_verdict(findings, len(split.forget), unlearned.metadata.method),
            "requested_by": run.experiment.requested_by,
            "ticket": run.experiment.ticket,
            "checkpoints": {
                name: {"path": str(path), "digest": checkpoint.digest, "problem": digest_problem(path, checkpoint.digest)}
                for name, path, checkpoint in (
                    ("original", run.original_path, original),
                    ("unlearned", unlearned_path, unlearned),
                )
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "caveat": CAVEAT,
        }
        models = {"original": of_original, "unlearned": of_unlearned}
        several: dict[str, Sequence[Answers]] = {"original": [of_original], "unlearned": [of_unlearned]}
        if of_retrained:
            models["retrained"], several["retrained"] = of_retrained[0], of_retrained
        if split.is_class_task:
            several["masked"] = [of_original.masked(split.forgotten_classes)]
        figures = {}
        for title, caption, draw in (
            (
                "Embeddings",
                lambda: embeddings_caption(models, split),
                lambda: embeddings_figure(models, split, source.class_names),
            ),
            (
                "Where the forgotten samples go",
                lambda: destination_caption(several, split, source.class_names),
                lambda: destination_figure(several, split, source.class_names),
            ),
            (
                _STOPPING,
                lambda: stopping_caption(
                    history["checks"], history["step"], history["stop_reason"], held_out=len(split.validation) > 0
                ),
                lambda: stopping_figure(
                    history["checks"],
                    history["step"],
                    history["stop_rule"],
                    split.is_class_task,
                    held_out=len(split.validation) > 0,
                ),
            ),
            (
                "Confidence",
                lambda: confidence_caption(models, split),
                lambda: confidence_figure(models, split),
            ),
        ):
            if history["checks"] or title != _STOPPING:
                figures[title] = (caption(), svg(draw()))
            advance()
        if findings is not None:
            drawn = audit_pictures(findings.metrics, findings.models, findings.likelihood, split)
            figures = {title: (caption, svg(draw())) for title, caption, draw in drawn} | figures
    return {"report": json.loads(json.dumps(report)), "figures": figures}


def _costs(original: Checkpoint, retrained: list[Checkpoint], unlearned: Checkpoint, rows: dict[str, Any]) -> dict[str, Any]:
    """Cost by row; for the retrained models, the mean cost of one."""
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


def terminal_table(report: dict[str, Any]) -> Table:
    """One column per model, one line per metric; mean ± standard deviation if there are several models."""
    rows, costs = report["rows"], report["cost"]
    table = Table(title=rich.markup.escape(f"{report['source']['name']}: {report['title']}"))
    table.add_column("")
    for name in rows:
        models = f" ({report['retrained_models']})" if name == "retrained" else ""
        table.add_column(f"{name}{models}", justify="right")
    for key, heading, _ in columns(report):
        table.add_row(heading, *(figure_in_words(row, key) for row in rows.values()))
    for key, digits in (("steps", 0), ("seconds", 1)):
        table.add_row(key, *("–" if costs[name][key] is None else f"{costs[name][key]:.{digits}f}" for name in rows))
    return table


def write_report(directory: Path, made: dict[str, Any]) -> tuple[Path, Path]:
    """Writes `report.json` and `report.html`, each completely or not at all, and returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    return (
        write_whole(directory / "report.json", json.dumps(made["report"], indent=2, allow_nan=False) + "\n"),
        write_whole(directory / "report.html", html_page(made["report"], made["figures"])),
    )
