"""The verdict as data for programs, and in the words shown at the end of a run and at the top of its report."""

import math
from collections.abc import Mapping
from typing import Any

from cujax.audit.findings import Findings
from cujax.audit.verdict import FEWEST_FOR_NO_TRACE, JudgedMetric, Verdict, Word, is_worse, required_samples
from cujax.audit.verdict_words import HEADINGS, family_lines

_NEXT = {
    "damaged": "lower the learning rate or the method's unlearning weight, or try another method: cujax compare",
    "not_forgotten": "make the method stronger (more passes, a larger weight), or tune its settings: cujax tune",
    "hidden": "the features still contain it: try method:retrain_short, or method:retrain for certainty",
    "over_forgotten": "make the method weaker (fewer passes, a smaller weight), or tune its settings: cujax tune",
    "distinguishable": "compare other methods on the same request: cujax compare",
    "no_trace": "examine it in more depth: cujax audit --level full attacks the method over 16 shadow models",
}
_NEXT_FOR_SAMPLES = {
    "damaged": "lower the learning rate or the method's unlearning weight, or try method:shrink_perturb",
    "hidden": "the features still contain it: try method:shrink_perturb, or method:retrain for certainty",
    "distinguishable": "try method:shrink_perturb, or compare methods on the same request: cujax compare",
}


def _after_retraining(longer: str) -> dict[str, str]:
    """The next steps after shortened retraining, which has neither passes nor a weight."""
    certain = f"{longer}, or use method:retrain for certainty"
    return {
        "damaged": longer,
        "not_forgotten": certain,
        "hidden": certain,
        "over_forgotten": certain,
        "distinguishable": f"{longer}, or compare other methods on the same request: cujax compare",
    }


_NEXT_FOR_METHOD = {
    "RetrainShort": _after_retraining("train for longer: raise --method.share"),
    "ShrinkPerturb": _after_retraining("lower --method.shrink or raise --method.share"),
    "Undo": _after_retraining("lower --method.shrink or raise --method.share"),
    "Retrain": dict.fromkeys(
        _NEXT.keys() - {"no_trace"},
        "this model is retrained itself: some retrained models differ from the others; run it with another --seed",
    ),
}

# Retained test accuracy that retrained models may lack before the recipe counts as another than that of the original.
_SAME_RECIPE = 0.02
# The same of the original, before it counts as trained on other inputs, or on classes in another order.
_SAME_DATA = 0.2


def exit_status(verdict: dict[str, Any] | None, require: Word | None) -> int:
    """0, or 3 if the verdict is not good enough.

    Args:
        verdict: The verdict of a report; None if the run was not audited.
        require: The minimum required verdict; None: the model must not be `not_forgotten`, `damaged` or unchanged.
    """
    if verdict is None:
        return 0
    if require is not None:
        return 3 if is_worse(verdict["word"], require) else 0
    return 3 if verdict["unchanged"] or verdict["word"] in ("not_forgotten", "damaged") else 0


def describe_verdict(findings: Findings, n_forget: int, method: str = "") -> dict[str, Any]:
    """The verdict as plain data, as specified in `docs/report.schema.json` under "verdict".

    Args:
        findings: The findings of the audit.
        n_forget: The number of samples in the request.
        method: The class name of the method that was used, if it is known; the next step depends on it.
    """
    verdict = findings.verdict
    headings = {metric.key: metric.heading for metric in findings.metrics}
    return {
        "word": verdict.word,
        "heading": HEADINGS[verdict.word],
        "faults": list(verdict.faults),
        "unchanged": verdict.unchanged,
        "task": verdict.task,
        "retrained": len(findings.models["retrained"]),
        "forget_samples": n_forget,
        "families": [line._asdict() for line in family_lines(verdict)],
        "reasons": list(verdict.reasons),
        "metrics": [_described(found, headings) for found in verdict.metrics],
        "missing": dict(verdict.missing),
        "missing_families": list(verdict.missing_families),
        "required_samples": _required_samples(verdict),
        "seconds_to_judge": findings.seconds_to_judge,
        "next_step": _next_step(verdict, findings, method),
    }


def _described(found: JudgedMetric, headings: Mapping[str, str]) -> dict[str, Any]:
    plain = {
        name: _finite(getattr(found, name))
        for name in ("unlearned", "original", "mean", "low", "high", "n", "t", "dof", "p_holm", "c", "c_bound")
    }
    return (
        {"key": found.metric.key, "heading": headings.get(found.metric.key, found.metric.key), "family": found.metric.family}
        | plain
        | {
            "different": bool(found.different),
            "side": found.side,
            "informative": bool(found.informative),
            "phi": _finite(found.phi),
            "phi_holm": _finite(found.phi_holm),
            "fault": found.fault,
            "note": found.note,
        }
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _required_samples(verdict: Verdict) -> int | None:
    """How many samples of this kind would show that an original still knows them; None if no number is known."""
    for found in verdict.metrics:
        if found.metric.family == "answers" and found.mean < 1:
            return required_samples(found.mean, verdict.n_retrained)
    return None


def _next_step(verdict: Verdict, findings: Findings, method: str) -> str:
    if verdict.word != "not_judged":
        of_samples = _NEXT_FOR_SAMPLES if verdict.task == "samples" else {}
        return (_NEXT | of_samples | _NEXT_FOR_METHOD.get(method, {}))[verdict.word]
    if len(findings.models["retrained"]) >= FEWEST_FOR_NO_TRACE:
        return "request more samples, or examine it in more depth: cujax audit --level full"
    seconds = findings.seconds_to_judge
    time = "" if seconds is None else f" (about {_duration(seconds)} of additional training)"
    return f"run the same command with --retrained {FEWEST_FOR_NO_TRACE}{time}"


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def verdict_lines(report: dict[str, Any]) -> list[str]:
    """The verdict of a report: the word, one line per family, the cost, how far to trust it, and the next step."""
    verdict = report["verdict"]
    if verdict is None:
        return ["No verdict: the run was not audited (--audit none)."]
    also = [HEADINGS[fault].lower() for fault in verdict["faults"] if fault != verdict["word"]]
    unchanged = "; the parameters are unchanged" if verdict["unchanged"] else ""
    what = f" on {report['part']}" * bool(report["part"])
    lines = [f"Verdict{what}: {verdict['heading']}" + (f" (also: {', '.join(also)})" if also else "") + unchanged]
    lines += [_line(family["family"], f"{family['word']}: {family['sentence']}") for family in verdict["families"]]
    lines.append(_line("Cost", _cost(report)))
    lines.append(_line("Trust", trust(verdict)))
    if verdict["word"] in ("not_judged", "no_trace"):
        lines.append(_line("Why", "; ".join(verdict["reasons"])))
    lines.append(_line("Next", verdict["next_step"]))
    return lines


def _line(name: str, text: str) -> str:
    return f"  {name:<18}{text}"


def _cost(report: dict[str, Any]) -> str:
    cost, retraining = report["cost"]["unlearned"], report["cost"]["retrained"]
    if cost["seconds"] is None:
        return "the checkpoint does not record it"
    took = f"{cost['steps']:.0f} steps, {cost['seconds']:.1f} s"
    if cost["flops"] and retraining["flops"]:
        return f"{took}; {cost['flops'] / retraining['flops']:.0%} of the operations of retraining one model"
    return took


def _heading(metric: dict[str, Any]) -> str:
    """The display name of a metric; verdicts stored before 0.2 have only keys."""
    return str(metric.get("heading", metric["key"].replace("_", " ")))


def trust(verdict: dict[str, Any]) -> str:
    """How many models and samples the verdict is based on, what would have been noticed, and what no audit can show.

    If retrained models are clearly less accurate than the original, they come from another recipe than it does, and the
    comparison with them says little.
    """
    counts = {"retrained model": verdict["retrained"], "forgotten sample": verdict["forget_samples"]}
    parts = [", ".join(f"{count} {thing}{'s' * (count != 1)}" for thing, count in counts.items())]
    noticed = [
        f"{metric['phi_holm']:.0%} of the original's {_heading(metric)}"
        for metric in verdict["metrics"]
        if metric["informative"] and metric["phi_holm"] is not None
    ]
    if noticed:
        parts.append(f"a trace of more than {', '.join(noticed)} would have been noticed")
    needed = verdict["required_samples"]
    if needed is not None and verdict["forget_samples"] < needed:
        parts.append(f"with fewer than {needed} samples, even the original can pass on its answers")
    for metric in verdict["metrics"]:
        if metric["key"] != "retain_test_accuracy" or metric["original"] is None:
            continue
        retrained, original = (f"{100 * metric[name]:.1f}" for name in ("mean", "original"))
        if metric["original"] - metric["mean"] > _SAME_RECIPE:
            parts.append(
                f"retrained models classify only {retrained} of 100 retained test samples correctly, the original "
                f"{original}: give the recipe that trained the original (--training.epochs and the others), or the "
                "comparison says little"
            )
        if metric["mean"] - metric["original"] > _SAME_DATA:
            parts.append(
                f"the original classifies only {original} of 100 retained test samples correctly, retrained models "
                f"{retrained}: are its classes in another order, or its inputs on another scale? See "
                "docs/bring_your_own.md"
            )
    return "; ".join(parts) + "; an audit can show that something is left, not that nothing is"
