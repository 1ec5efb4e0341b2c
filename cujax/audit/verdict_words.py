"""A verdict in plain words: one line per family, for people who do not read statistics."""

from collections.abc import Sequence
from typing import NamedTuple

from cujax.audit.key_metrics import Family, Task
from cujax.audit.verdict import JudgedMetric, Verdict, Word

HEADINGS: dict[Word, str] = {
    "damaged": "Damaged",
    "not_forgotten": "Not forgotten",
    "hidden": "Hidden",
    "over_forgotten": "Over-forgotten",
    "distinguishable": "Distinguishable",
    "no_trace": "No trace found",
    "not_judged": "Cannot be judged",
}

IN_TABLES: dict[Word, str] = {word: heading.lower() for word, heading in HEADINGS.items()}

# If only answers were examined, the absence of a fault applies only to them.
ON_ANSWERS: dict[Word, str] = {
    **IN_TABLES,
    "no_trace": "no trace in the answers",
    "not_judged": "no fault in the answers",
}

# By what the verdicts of a comparison are based on.
TABLE_WORDS: dict[str, dict[Word, str]] = {"answers": ON_ANSWERS, "standard": IN_TABLES}

FAMILIES: dict[Family, str] = {
    "answers": "Answers",
    "attack": "Attacker",
    "features": "Features",
    "return": "Comes back",
    "noise": "Noisy copies",
    "likeness": "Likeness",
    "retained": "Retained accuracy",
}


class FamilyLine(NamedTuple):
    """The result of one family of metrics.

    Attributes:
        family: Its display name.
        word: What was found, in a word or two.
        sentence: The figure that shows it most clearly, and that of retrained models.
    """

    family: str
    word: str
    sentence: str


def family_lines(verdict: Verdict) -> list[FamilyLine]:
    """One line for each family of key metrics of the verdict's task, in a fixed order.

    The figure shown is the fault with the most standard deviations or, without a fault, the most informative figure. The
    word is "NO" if what was learned is still there or retained accuracy is lost, "too far" if the figure differs from
    retrained models in the direction away from the original, "differs" if it is only different, "gone", "no" (it is not
    relearned faster), "alike" or "kept" if nothing was found, and "cannot say" if no metric was judged or none could have
    shown anything.
    """
    if verdict.seen_alone:
        return [
            FamilyLine(FAMILIES[family], "NO" if fault else "no fault visible", words)
            for family, (fault, words) in verdict.seen_alone.items()
        ]
    judged: dict[Family, list[JudgedMetric]] = {family: [] for family in FAMILIES}
    for found in verdict.metrics:
        judged[found.metric.family].append(found)
    if verdict.task == "class":
        del judged["noise"]
    return [_line(family, metrics, verdict) for family, metrics in judged.items()]


def _line(family: Family, metrics: Sequence[JudgedMetric], verdict: Verdict) -> FamilyLine:
    name = FAMILIES[family]
    if not metrics:
        reasons = list(dict.fromkeys(verdict.missing.values()))
        too_few = f"{verdict.n_retrained} retrained models are too few"
        why = too_few if any(reason.startswith(too_few) for reason in reasons) else "none of its metrics could be computed"
        return FamilyLine(name, "cannot say", why)
    shown = max(metrics, key=lambda found: (found.fault is not None, _clearness(found)))
    if family == "retained" and shown.fault is None:
        shown = metrics[0]
    if shown.fault == "over_forgotten":
        word = "too far"
    elif shown.fault == "distinguishable":
        word = "differs"
    elif shown.fault is not None:
        word = "NO"
    elif family == "retained":
        word = "kept"
    elif family == "likeness":
        word = "alike"
    elif not shown.informative:
        word = "cannot say"
    else:
        word = "no" if family == "return" else "gone"
    sentence = _sentence(shown, verdict.task)
    if word == "gone":
        sentence = f"as in {_names(verdict.task)[1].replace('a model', 'models')}: {sentence}"
    elif word == "cannot say":
        sentence += "; the original itself is too close to this value to show a difference"
    return FamilyLine(name, word, sentence + (f"; {shown.note}" if shown.note else ""))


def _clearness(found: JudgedMetric) -> float:
    if found.fault is not None or found.phi is None:
        return abs(found.t)
    return -found.phi


def _sentence(found: JudgedMetric, task: Task) -> str:
    key, value, mean = found.metric.key, found.unlearned, found.mean
    it, never = _names(task)
    share, usual = _of_100(value), _of_100(mean).removesuffix(" of 100")
    if found.metric.family == "retained":
        what = "test samples" if key == "test_accuracy" else "test samples of the retained classes"
        return f"{100 * value:.1f} of 100 {what} are classified correctly ({never}: {100 * mean:.1f})"
    if found.metric.kind == "steps":
        return f"relearned in {value:.0f} step{'s' * (round(value) != 1)} ({never}: {mean:.0f})"
    if found.metric.kind == "ratio":
        return f"relearned in {value:.2f} of the steps that {never} needs"
    if found.metric.kind == "divergence":
        return f"the answers are {value:.3f} nats from those of retrained models (between retrained models: {mean:.3f})"
    if key == "agreement":
        return f"{share} answers agree with those of a retrained model (between retrained models: {usual})"
    if key == "class_inference_auc":
        return f"answers on {it} distinguish the model from one that never learned it: AUC {value:.2f} ({never}: {mean:.2f})"
    if found.metric.kind == "area":
        by = "confidence" if "confidence" in key else "loss"
        return f"the {by} distinguishes {it} from unseen samples with an AUC of {value:.2f} ({never}: {mean:.2f})"
    if key == "residual_knowledge":
        return f"{share} are recognised under noise more often than by a retrained model ({never}: {usual})"
    if found.metric.family == "features":
        return f"{share} can still be read {_WHERE.get(key, 'one layer below the embedding')} ({never}: {usual})"
    return f"{share} are still recognised ({never}: {usual})"


def _names(task: Task) -> tuple[str, str]:
    return ("it", "a model that never saw it") if task == "class" else ("them", "a model that never saw them")


_WHERE = {"probe_z": "from the embedding", "nearest_class_mean": "by the nearest class mean"}


def _of_100(share: float) -> str:
    if 0 < share < 0.005:
        return "less than 1 of 100"
    if 0.995 <= share < 1:
        return "more than 99 of 100"
    return f"{100 * share:.0f} of 100"
