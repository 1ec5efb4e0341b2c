"""Reports on a run, one for each kind of target that its request names: whole classes, and samples of retained classes.

A forgotten class must not hide samples that the model still recognises, or vice versa, so each part is judged with its own
metrics.
"""

from collections.abc import Callable
from typing import Any

from etils.epath import Path

from cujax.audit.verdict import ORDER, Word, is_worse
from cujax.experiments.audit import Audit
from cujax.experiments.run import Run
from cujax.methods.base import Method
from cujax.reports.run_report import report_on
from cujax.sharding import is_first_host
from cujax.storage.checkpoints import Checkpoint
from cujax.storage.records import write_whole
from cujax.storage.verdicts import save_verdict


def report_on_parts(
    run: Run,
    original: Checkpoint,
    unlearned: Checkpoint,
    directory: Path,
    *,
    audit: Callable[[Run], Audit | None],
    method: Method | None,
    unlearned_path: Path | None = None,
) -> dict[str, Any]:
    """Audits each part of a run and reports on it: in the directory or, if there are two parts, in its subfolders.

    If there are two parts, the report in the directory and the verdict in the checkpoint are those of the worse part.

    Args:
        run: The run.
        original: The model before unlearning.
        unlearned: The model after unlearning.
        directory: Where to write.
        audit: Returns the audit of a part; None for none.
        method: The method that made the unlearned model; None if unknown.
        unlearned_path: Path of the unlearned model's checkpoint; by default the run's.

    Returns:
        The content of `report.json` in the directory.
    """
    parts = run.parts()
    reports = []
    for part in parts:
        work = audit(part)
        findings = None if work is None else work.findings(original, unlearned, method)
        retrained = run.retrained() if work is None else work.retrained()
        folder = directory if len(parts) == 1 else directory / part.split.task
        report = report_on(part, original, retrained, unlearned, folder, findings, unlearned_path)
        reports.append((folder, report))
    folder, report = max(reports, key=lambda made: _badness(made[1], run.experiment.require))
    if len(parts) > 1 and is_first_host():
        for name in ("report.json", "report.html"):
            write_whole(directory / name, (folder / name).read_text("utf-8"))
        if report["verdict"] is not None:
            save_verdict(unlearned_path or run.unlearned_path, unlearned.digest, report["verdict"])
    return report


def _badness(report: dict[str, Any], require: Word | None) -> tuple[bool, int]:
    """Orders the parts: whether the verdict falls short of what is required, then the order of verdicts."""
    if report["verdict"] is None:
        return False, 0
    word = report["verdict"]["word"]
    return require is not None and is_worse(word, require), ORDER.index(word)
