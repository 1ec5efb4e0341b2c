"""The pictures of an audit; colours are told apart by the colour-blind, and lines by their markers in grey."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cujax.audit.evidence import Evidence
from cujax.audit.findings import JudgedMetric
from cujax.audit.intervals import Estimate
from cujax.audit.likelihood import LikelihoodAttack, log_odds
from cujax.data.requests import Split
from cujax.reports.figures import COLORS

_MARKERS = {"original": "o-", "unlearned": "s-", "retrained": "^--", "masked": "x:"}
_EDGES = {name: "black" if name == "masked" else color for name, color in COLORS.items()}


def depth_figure(judged: Sequence[JudgedMetric], prefix: str, suffix: str, ylabel: str) -> Figure:
    """A metric by depth, a line a model; the shaded region is where retrained models lie.

    Args:
        judged: All metrics; those whose key is the prefix, a depth and the suffix are drawn.
        prefix: Such as "probe_".
        suffix: Such as "_to_original".
        ylabel: What the metric is.
    """
    shown = [
        found
        for found in judged
        if found.key.startswith(prefix) and found.key.endswith(suffix) and (suffix or not found.key.endswith("_to_original"))
    ]
    depths = [found.key.removeprefix(prefix).removesuffix(suffix) for found in shown]
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    at = np.arange(len(depths))
    for name in ("original", "unlearned", "masked"):
        values = [_value(found.figures.get(name, "")) for found in shown]
        if not np.isnan(values).all():
            axis.plot(at, values, _MARKERS[name], color=_EDGES[name], label=name)
    if all(found.retrained for found in shown):
        references = np.array([[reference.value for reference in found.retrained] for found in shown])
        axis.plot(at, references.mean(axis=1), _MARKERS["retrained"], color=COLORS["retrained"], label="retrained (mean)")
        axis.fill_between(
            at, references.min(axis=1), references.max(axis=1), color=COLORS["retrained"], alpha=0.25, hatch="//"
        )
    axis.set_xticks(at, depths, parse_math=False)
    axis.set(ylabel=ylabel, ylim=(-0.03, 1.03), xlabel="depth, the input to the left")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def _value(figure: Estimate | str) -> float:
    return figure.value if isinstance(figure, Estimate) else float("nan")


def relearning_figure(models: Mapping[str, Sequence[Evidence]]) -> Figure:
    """Accuracy on the forget set over steps of fine-tuning on it; every retrained model has a line."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    target = None
    for name in ("retrained", "original", "unlearned"):
        for number, evidence in enumerate(models[name]):
            course = evidence.relearning
            if course is not None:
                target = course.target
                label = name if number == 0 else None
                (line,) = axis.plot(course.steps, course.accuracies, _MARKERS[name], color=COLORS[name], label=label)
                line.set(markersize=4, alpha=0.5 if name == "retrained" else 1.0)
    if target is not None:
        axis.axhline(target, color="#555555", linestyle=":", linewidth=1, label="learned again")
    axis.set(xlabel="steps of fine-tuning on the forget set", ylabel="accuracy on the forget set", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def log_odds_figure(models: Mapping[str, Sequence[Evidence]], split: Split) -> Figure:
    """Histograms of the log-odds of the label, of forget, retain and test samples; of retrained models the first."""
    shown = {name: evidence[0].answers for name, evidence in models.items() if evidence and name != "masked"}
    figure = Figure(figsize=(4 * len(shown), 3.2), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
    parts = {
        name: {
            "forget": log_odds(answers.forget),
            "retain": log_odds(answers.retain),
            "test": log_odds(answers.test.take(~np.isin(answers.test.labels, split.absent_classes))),
        }
        for name, answers in shown.items()
    }
    everything = np.concatenate([values for by_part in parts.values() for values in by_part.values()])
    low, high = np.percentile(everything[np.isfinite(everything)], [0.2, 99.8])
    bins = np.linspace(low, max(high, low + 1e-6), 41)
    for axis, (name, by_part) in zip(axes, parts.items(), strict=True):
        for part, values in by_part.items():
            axis.hist(
                np.clip(values, low, high),
                bins,
                weights=np.full(len(values), 1 / len(values)),
                histtype="stepfilled" if part == "forget" else "step",
                color=COLORS[part],
                alpha=0.5 if part == "forget" else 1.0,
                hatch="//" if part == "forget" else None,
                linestyle="--" if part == "test" else "-",
                linewidth=1.5,
                label=part,
            )
        axis.set(title=name, xlabel="log-odds of the label")
    axes[0].set_ylabel("share of samples")
    axes[0].legend(fontsize="small")
    return figure


def roc_figure(attacks: Mapping[str, LikelihoodAttack]) -> Figure:
    """ROC curves of the likelihood-ratio attack on logarithmic axes, where few false accusations are made."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axis: Axes = figure.subplots()
    least = min(1 / (~attack.is_member).sum() for attack in attacks.values())
    line = np.geomspace(least, 1, 50)
    axis.plot(line, line, color="#555555", linewidth=1, linestyle=":", label="chance")
    for name, attack in attacks.items():
        false_positives, true_positives = attack.curve()
        low = attack.true_positives_at_low_false_positives()
        style = _MARKERS[name][1:]
        label = f"{name}: AUC {attack.areas().mean():.2f}, TPR {low:.3f} at 1 %"
        axis.plot(
            np.maximum(false_positives, least), np.maximum(true_positives, least), style, color=COLORS[name], label=label
        )
    axis.axvline(0.01, color="#999999", linewidth=1)
    axis.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.1))
    axis.set(xlabel="false positive rate", ylabel="true positive rate")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", loc="lower right")
    return figure


Picture = tuple[str, str, Callable[[], Figure]]


def audit_pictures(
    judged: Sequence[JudgedMetric],
    models: Mapping[str, Sequence[Evidence]],
    likelihood: Mapping[str, LikelihoodAttack],
    split: Split,
) -> list[Picture]:
    """Title, explanation and drawing of each picture that the findings have."""
    pictures: list[Picture] = [
        (
            "What can be read from the features",
            "Accuracy of linear probes on what was forgotten, by depth. Below retrained models' is as telling as above.",
            lambda: depth_figure(judged, "probe_", "", "probe accuracy"),
        ),
        (
            "Relearning",
            "How soon the forget set is learned again; what was only hidden comes back before a retrained model learns it.",
            lambda: relearning_figure(models),
        ),
        (
            "Log-odds",
            "Of the label: forgotten samples should lie as they do for the retrained model.",
            lambda: log_odds_figure(models, split),
        ),
        (
            "Likeness to the original by depth",
            "Linear CKA to the original's features: how far a model has moved from it, and how far a retrained one is.",
            lambda: depth_figure(judged, "cka_", "_to_original", "linear CKA"),
        ),
    ]
    if likelihood:
        pictures.append(
            (
                "Likelihood-ratio attack",
                "Samples that a shadow model unlearned against samples that it never saw; on the diagonal nothing is told.",
                lambda: roc_figure(likelihood),
            )
        )
    return pictures
