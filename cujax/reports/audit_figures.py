"""The figures of an audit, each with a function that states in numbers what it shows; markers make them readable in grey."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cujax.audit.evidence import Answers, Evidence
from cujax.audit.findings import MeasuredMetric
from cujax.audit.intervals import Estimate
from cujax.audit.likelihood import LikelihoodAttack, log_odds
from cujax.data.requests import Split
from cujax.reports.figures import COLORS

_MARKERS = {"original": "o-", "unlearned": "s-", "retrained": "^--", "masked": "x:"}
_EDGES = {name: "black" if name == "masked" else color for name, color in COLORS.items()}


def depth_figure(metrics: Sequence[MeasuredMetric], prefix: str, suffix: str, ylabel: str) -> Figure:
    """A metric by depth, with one line per model; the shaded region is the range of the retrained models.

    Args:
        metrics: All metrics; those whose key consists of the prefix, a depth and the suffix are drawn.
        prefix: A prefix such as "probe_".
        suffix: A suffix such as "_to_original".
        ylabel: The name of the metric.
    """
    shown = _by_depth(metrics, prefix, suffix)
    depths = [found.key.removeprefix(prefix).removesuffix(suffix) for found in shown]
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    at = np.arange(len(depths))
    for name in ("original", "unlearned", "masked"):
        values = [_value(found.values.get(name, "")) for found in shown]
        if not np.isnan(values).all():
            axis.plot(at, values, _MARKERS[name], color=_EDGES[name], label=name)
    if all(found.retrained for found in shown):
        references = np.array([[reference.value for reference in found.retrained] for found in shown])
        axis.plot(at, references.mean(axis=1), _MARKERS["retrained"], color=COLORS["retrained"], label="retrained (mean)")
        axis.fill_between(
            at, references.min(axis=1), references.max(axis=1), color=COLORS["retrained"], alpha=0.25, hatch="//"
        )
    axis.set_xticks(at, depths, parse_math=False)
    axis.set(ylabel=ylabel, ylim=(-0.03, 1.03), xlabel="depth (input on the left)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def _by_depth(metrics: Sequence[MeasuredMetric], prefix: str, suffix: str) -> list[MeasuredMetric]:
    return [
        found
        for found in metrics
        if found.key.startswith(prefix) and found.key.endswith(suffix) and (suffix or not found.key.endswith("_to_original"))
    ]


def depth_caption(metrics: Sequence[MeasuredMetric], prefix: str, suffix: str, ylabel: str) -> str:
    """At how many depths the unlearned model is outside the retrained models' range, and where it differs most."""
    shown = [
        (found, _value(found.values.get("unlearned", "")), np.array([reference.value for reference in found.retrained]))
        for found in _by_depth(metrics, prefix, suffix)
    ]
    shown = [(found, value, retrained) for found, value, retrained in shown if len(retrained) and not np.isnan(value)]
    if not shown:
        return f"{ylabel[0].upper()}{ylabel[1:]} by depth. There are no retrained models to compare it with."
    outside = sum(not retrained.min() <= value <= retrained.max() for _, value, retrained in shown)
    farthest, value, retrained = max(shown, key=lambda entry: abs(entry[1] - entry[2].mean()))
    depth = farthest.key.removeprefix(prefix).removesuffix(suffix)
    what = ylabel[0].upper() + ylabel[1:]
    return (
        f"{what} of the unlearned model is outside the retrained models' range (shaded) at {outside} of {len(shown)} "
        f"depths. The difference is largest at {depth}: {value:.3f}, compared with {retrained.mean():.3f} for retrained "
        "models."
    )


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
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="steps of fine-tuning on the forget set", ylabel="accuracy on the forget set", ylim=(-0.03, 1.03))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def relearning_caption(models: Mapping[str, Sequence[Evidence]]) -> str:
    """After how many steps each model has relearned the forget set."""
    parts = []
    for name in ("original", "unlearned", "retrained"):
        courses = [evidence.relearning for evidence in models[name] if evidence.relearning is not None]
        steps = [course.steps_to_regain for course in courses]
        if steps:
            span = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
            never = sum(not course.has_regained for course in courses)
            parts.append(f"{name} {span}" + f" ({never} of {len(courses)} not within these)" * bool(never))
    return (
        "Number of fine-tuning steps on the forget set until a model regains its accuracy on it (dotted line): "
        f"{', '.join(parts) or 'not measured'}. A model that only hides what it has learned needs fewer steps than a "
        "retrained model."
    )


def log_odds_figure(models: Mapping[str, Sequence[Evidence]], split: Split) -> Figure:
    """Histograms of the log-odds of the label for forget, retain and test samples; of retrained models, only the first."""
    shown = {name: evidence[0].answers for name, evidence in models.items() if evidence and name != "masked"}
    figure = Figure(figsize=(4 * len(shown), 3.2), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
    parts = {name: _log_odds_of_parts(answers, split) for name, answers in shown.items()}
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


def _log_odds_of_parts(answers: Answers, split: Split) -> dict[str, np.ndarray]:
    test = answers.test.take(~np.isin(answers.test.labels, split.absent_classes))
    return {part: log_odds(rows) for part, rows in (("forget", answers.forget), ("retain", answers.retain), ("test", test))}


def log_odds_caption(models: Mapping[str, Sequence[Evidence]], split: Split) -> str:
    """The median log-odds of the label of forget samples, by model."""
    medians = ", ".join(
        f"{name} {np.median(_log_odds_of_parts(evidence[0].answers, split)['forget']):.2f}"
        for name, evidence in models.items()
        if evidence and name != "masked"
    )
    return (
        "Log-odds of the label. On forget samples, the distribution should be that of the retrained model. Median on the "
        f"forget set: {medians}."
    )


def roc_figure(attacks: Mapping[str, LikelihoodAttack]) -> Figure:
    """ROC curves of the likelihood-ratio attack on logarithmic axes, which show the region of few false positives."""
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


def roc_caption(attacks: Mapping[str, LikelihoodAttack]) -> str:
    """The area under each curve."""
    areas = ", ".join(f"{name} {attack.areas().mean():.3f}" for name, attack in attacks.items())
    return (
        "An attack tries to distinguish samples that a shadow model unlearned from samples that it never saw. Area under "
        f"the curve (0.5 if the attack learns nothing): {areas}."
    )


Picture = tuple[str, str, Callable[[], Figure]]


def audit_pictures(
    metrics: Sequence[MeasuredMetric],
    models: Mapping[str, Sequence[Evidence]],
    likelihood: Mapping[str, LikelihoodAttack],
    split: Split,
) -> list[Picture]:
    """Title, caption and drawing of each figure that the findings contain."""
    pictures: list[Picture] = [
        (
            "What can be read from the features",
            depth_caption(metrics, "probe_", "", "probe accuracy"),
            lambda: depth_figure(metrics, "probe_", "", "probe accuracy"),
        ),
        (
            "Relearning",
            relearning_caption(models),
            lambda: relearning_figure(models),
        ),
        (
            "Log-odds",
            log_odds_caption(models, split),
            lambda: log_odds_figure(models, split),
        ),
        (
            "Similarity to the original by depth",
            depth_caption(metrics, "cka_", "_to_original", "linear CKA"),
            lambda: depth_figure(metrics, "cka_", "_to_original", "linear CKA"),
        ),
    ]
    if likelihood and not any(attack.is_one_sided for attack in likelihood.values()):
        pictures.append(
            (
                "Likelihood-ratio attack",
                roc_caption(likelihood),
                lambda: roc_figure(likelihood),
            )
        )
    return pictures
