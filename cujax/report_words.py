"""The words and figures of a report, which the terminal and the page share."""

from typing import Any

from cujax.audit.measures import ANSWER_MEASURES
from cujax.audit_report import audit_summary

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
        verb = "Forgot" if stop["rule"] == "forgotten" else "Did NOT reach the stop rule for"
        happened = (
            f"{verb} {what} of {report['source']['name']} in {stop['step']} steps, {cost['seconds']:.1f} s{compared}: "
            f"{stop['reason']}."
        )
    lines = [
        happened,
        f"Accuracy on {'test samples of the forgotten ' + noun if key == 'forget_test_accuracy' else 'the forget set'}: "
        f"{figure_in_words(rows['original'], key)} before, {figure_in_words(rows['unlearned'], key)} after"
        + (f", {figure_in_words(rows['retrained'], key)} retrained." if report["retrained_models"] else "."),
        f"Test accuracy on what stays: {figure_in_words(rows['original'], 'retain_test_accuracy')} before, "
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
        (measure.key, measure.heading, measure.question)
        for measure in ANSWER_MEASURES
        if any(row[measure.key] is not None for row in report["rows"].values())
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
