"""The rows of a run's report: what its models answer, in figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.intervals import NotAvailable
from cujax.audit.measures import ANSWER_MEASURES, Case
from cujax.data.requests import Split

KEYS = tuple(measure.key for measure in ANSWER_MEASURES)

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
        split: What was forgotten.
        original: The model before.
        retrained: Models trained without the forget set; their rows are means, with `<key>_std`.
        unlearned: The model after.
        clean_test_only: As in `cujax.audit.measures.Case`.
    """
    case = _case(split, original, retrained, clean_test_only)
    models = {"original": [case.original], "retrained": case.retrained, "unlearned": [Evidence(unlearned)]}
    if split.is_class_task:
        models["masked"] = [Evidence(original.masked(split.forgotten_classes))]
    return {name: _row(case, evidence) for name, evidence in models.items()}


def audit_row(
    split: Split, answers: Answers, *, original: Answers, retrained: Sequence[Answers], clean_test_only: bool
) -> Row:
    """Every metric of one model, which may be the original or one of the retrained; as in `audit_rows`."""
    case = _case(split, original, retrained, clean_test_only)
    known = next((oracle for oracle in case.retrained if oracle.answers is answers), None)
    return _row(case, [known or Evidence(answers)])


def _case(split: Split, original: Answers, retrained: Sequence[Answers], clean_test_only: bool) -> Case:
    return Case(split, Evidence(original), [Evidence(answers) for answers in retrained], clean_test_only)


def _row(case: Case, models: Sequence[Evidence]) -> Row:
    row: Row = {}
    reasons: dict[str, str] = {}
    for measure in ANSWER_MEASURES:
        key = measure.key
        row[key] = None
        if not models:
            reasons[key] = "no retrained model: --retrained is 0"
            continue
        try:
            values = [measure.compute(case, model).value for model in models]
        except NotAvailable as reason:
            reasons[key] = str(reason)
            continue
        row[key] = float(np.mean(values))
        if len(models) > 1:
            row[f"{key}_std"] = float(np.std(values, ddof=1))
            row[f"{key}_min"], row[f"{key}_max"] = min(values), max(values)
    row["reasons"] = reasons
    return row
