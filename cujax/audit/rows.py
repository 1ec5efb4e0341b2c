"""The rows of a run's report: the metrics of its models' answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.intervals import NotAvailable
from cujax.audit.metric import MetricContext
from cujax.audit.registry import answer_metrics
from cujax.data.requests import Split

Row = dict[str, Any]


def audit_rows(
    split: Split,
    *,
    original: Answers,
    retrained: Sequence[Answers],
    unlearned: Answers,
    clean_test_only: bool,
) -> dict[str, Row]:
    """Every metric of every row; a fraction, or None with the reason under `reasons`.

    Args:
        split: The split of the request.
        original: The model before unlearning.
        retrained: Models trained without the forget set; their rows are means, with `<key>_std`.
        unlearned: The model after unlearning.
        clean_test_only: As in `cujax.audit.metric.MetricContext`.
    """
    context = _context(split, original, retrained, clean_test_only)
    models = {"original": [context.original], "retrained": context.retrained, "unlearned": [Evidence(unlearned)]}
    if split.is_class_task:
        models["masked"] = [Evidence(original.masked(split.forgotten_classes))]
    return {name: _row(context, evidence) for name, evidence in models.items()}


def audit_row(
    split: Split, answers: Answers, *, original: Answers, retrained: Sequence[Answers], clean_test_only: bool
) -> Row:
    """Every metric of one model, which may be the original or one of the retrained; as in `audit_rows`."""
    context = _context(split, original, retrained, clean_test_only)
    known = next((reference for reference in context.retrained if reference.answers is answers), None)
    return _row(context, [known or Evidence(answers)])


def _context(split: Split, original: Answers, retrained: Sequence[Answers], clean_test_only: bool) -> MetricContext:
    return MetricContext(split, Evidence(original), [Evidence(answers) for answers in retrained], clean_test_only)


def _row(context: MetricContext, models: Sequence[Evidence]) -> Row:
    row: Row = {}
    reasons: dict[str, str] = {}
    for metric in answer_metrics():
        key = metric.key
        row[key] = None
        if not models:
            reasons[key] = "no retrained model: --retrained is 0"
            continue
        try:
            values = [metric.compute(context, model).value for model in models]
        except NotAvailable as reason:
            reasons[key] = str(reason)
            continue
        row[key] = float(np.mean(values))
        if len(models) > 1:
            row[f"{key}_std"] = float(np.std(values, ddof=1))
            row[f"{key}_min"], row[f"{key}_max"] = min(values), max(values)
    row["reasons"] = reasons
    return row
