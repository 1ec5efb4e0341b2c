"""The figures of a report: one function draws each figure, and another states in numbers what it shows.

Nothing relies on colour alone: markers, hatches and line styles also differ, so that a page can be printed in grey.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from cujax.audit.evidence import Answers
from cujax.audit.membership import confidences
from cujax.data.requests import Split
from cujax.training.predict import Predictions

# Okabe and Ito's palette.
COLORS = {
    "forget": "#D55E00",
    "retain": "#0072B2",
    "test": "#009E73",
    "original": "#999999",
    "unlearned": "#D55E00",
    "retrained": "#0072B2",
    "masked": "#F0E442",
}
_HATCHES = {"original": "", "unlearned": "///", "retrained": "...", "masked": "xx"}
_LINES = {"forget": "-", "retain": "-", "test": "--"}
_MAX_FORGET, _MAX_KEPT = 250, 500
_MANY_CLASSES, _SHOWN_CLASSES = 20, 12


def embeddings_figure(models: dict[str, Answers], split: Split, class_names: Sequence[str]) -> Figure:
    """Embeddings of forget samples among test samples of the retained classes: PCA above, t-SNE below.

    Args:
        models: Models by name, in the order of the columns.
        split: The split of the request.
        class_names: Name of each class.
    """
    figure = Figure(figsize=(4 * len(models), 8), layout="constrained")
    axes = figure.subplots(2, len(models), squeeze=False)
    for column, (name, answers) in enumerate(models.items()):
        forget = _some(answers.forget, _MAX_FORGET)
        stays = ~np.isin(answers.test.labels, split.absent_classes)
        kept = _some(answers.test.take(stays), _MAX_KEPT)
        embeddings = np.concatenate([forget.embeddings, kept.embeddings])
        spread = np.ptp(embeddings, axis=0).any()  # a collapsed model has none, and nothing to project
        perplexity = min(30.0, (len(embeddings) - 1) / 3)
        for row, (title, projection) in enumerate(
            (("PCA", PCA(2)), ("t-SNE", TSNE(2, init="pca", random_state=0, perplexity=perplexity, max_iter=500)))
        ):
            with threadpool_limits(1):  # t-SNE's threads spin while other work holds the cores: 10 times slower
                points = projection.fit_transform(embeddings) if spread else embeddings[:, :2]
            _scatter(axes[row, column], points, forget.labels, kept.labels, class_names)
            axes[row, column].set_title(f"{name} ({title})")
    axes[0, 0].legend(loc="best", fontsize="small")
    return figure


def _scatter(
    axis: Axes, points: np.ndarray, forget_labels: np.ndarray, kept_labels: np.ndarray, names: Sequence[str]
) -> None:
    forget, kept = points[: len(forget_labels)], points[len(forget_labels) :]
    axis.scatter(kept[:, 0], kept[:, 1], s=8, c="#BBBBBB", linewidths=0, label="retained (test)", rasterized=True)
    look: dict[str, Any] = {"c": COLORS["forget"], "marker": "x", "linewidths": 0.9}
    axis.scatter(forget[:, 0], forget[:, 1], s=16, label="forget", rasterized=True, **look)
    labels = np.unique(kept_labels)
    for label in labels if len(labels) <= _MANY_CLASSES else ():  # more names would cover each other
        axis.annotate(
            names[label],
            np.median(kept[kept_labels == label], axis=0),
            ha="center",
            va="center",
            fontsize=8,
            parse_math=False,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )
    axis.set_xticks([])
    axis.set_yticks([])


def embeddings_caption(models: dict[str, Answers], split: Split) -> str:
    """How close the forget samples are to each other, compared with test samples of retained classes."""
    parts = []
    for name, answers in models.items():
        forget = _some(answers.forget, _MAX_FORGET).embeddings
        kept = answers.test.take(~np.isin(answers.test.labels, split.absent_classes)).embeddings
        if len(kept):
            spreads = [float(np.linalg.norm(rows - rows.mean(axis=0), axis=1).mean()) for rows in (forget, kept)]
            parts.append(f"{name} {spreads[0] / spreads[1]:.2f}" if spreads[1] else f"{name} not defined")
    return (
        "Embeddings of forget samples (crosses) among test samples of the retained classes (grey dots). Mean distance of "
        f"forget samples from their centre, relative to that of the test samples: {', '.join(parts) or 'not defined'}."
    )


def stopping_figure(
    checks: Sequence[dict[str, Any]], step: int, rule: str, is_class_task: bool, *, held_out: bool = True
) -> Figure:
    """The input of the stop rule: accuracies over optimiser steps, and the step whose parameters were kept."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    steps = [check["step"] for check in checks]
    target = "threshold" if is_class_task else "held-out samples (the target)"
    for key, label, color, style in (
        ("forget_accuracy", "forgotten data", COLORS["forget"], "o-"),
        ("target", target, "black", ":"),
        ("retain_accuracy", "retained (validation)" if held_out else "retained (trained on)", COLORS["retain"], "s-"),
    ):
        if checks[0][key] is not None:
            axis.plot(steps, [check[key] for check in checks], style, color=color, label=label, markersize=4)
    axis.axvline(step, color="#999999", linewidth=1)
    axis.annotate(f" {rule}: step {step}", (step, 0.5), rotation=90, va="center", ha="right", color="#555555")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="optimiser steps", ylabel="accuracy", ylim=(-0.03, 1.03))
    axis.legend(loc="lower left", fontsize="small")
    axis.grid(alpha=0.3)
    return figure


def stopping_caption(checks: Sequence[dict[str, Any]], step: int, reason: str, *, held_out: bool = True) -> str:
    """The accuracies at the start, and at the step that was kept."""
    first, kept = checks[0], min(checks, key=lambda check: abs(check["step"] - step))
    forget, retain = ([check[f"{part}_accuracy"] for check in (first, kept)] for part in ("forget", "retain"))
    target = "no target" if kept["target"] is None else f"target {kept['target']:.3f}"
    samples = "validation samples of the retained classes" if held_out else "retained samples that the model was trained on"
    if step == 0:
        what = (
            f"No step was kept: accuracy remains {forget[0]:.3f} on the forgotten data ({target}) and {retain[0]:.3f} on "
            f"{samples}."
        )
    else:
        what = (
            f"Accuracy on the forgotten data went from {forget[0]:.3f} to {forget[1]:.3f} in {step} steps ({target}), and "
            f"on {samples} from {retain[0]:.3f} to {retain[1]:.3f}."
        )
    return f"{what} Unlearning ended because {reason}."


def confidence_figure(models: dict[str, Answers], split: Split) -> Figure:
    """Histograms of the probability of the true label for forget, retain and test samples, for each model."""
    figure = Figure(figsize=(4 * len(models), 3.2), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    bins = np.linspace(0, 1, 26)
    for axis, (name, answers) in zip(axes, models.items(), strict=True):
        test = answers.test.take(~np.isin(answers.test.labels, split.absent_classes))
        for part, predictions, hatch in (
            ("forget", answers.forget, "//"),
            ("retain", answers.retain, None),
            ("test", test, None),
        ):
            values = confidences(predictions)
            axis.hist(
                values,
                bins,
                weights=np.full(len(values), 1 / len(values)),
                histtype="stepfilled" if part == "forget" else "step",
                color=COLORS[part],
                alpha=0.5 if part == "forget" else 1.0,
                hatch=hatch,
                linestyle=_LINES[part],
                linewidth=1.5,
                label=part,
            )
        axis.set(title=name, xlabel="probability of the true label", yscale="log", ylim=(1e-3, 1.2))
    axes[0].set_ylabel("share of samples")
    axes[0].legend(fontsize="small", loc="upper center")
    return figure


def confidence_caption(models: dict[str, Answers], split: Split) -> str:
    """The median probability of the true label, forget samples against test samples."""
    parts = []
    for name, answers in models.items():
        test = answers.test.take(~np.isin(answers.test.labels, split.absent_classes))
        medians = [f"{np.median(confidences(rows)):.3f}" if len(rows.labels) else "–" for rows in (answers.forget, test)]
        parts.append(f"{name} {medians[0]} (test samples {medians[1]})")
    goal = "near 0, as for a class that was never seen" if split.is_class_task else "as on test samples"
    return (
        f"Probability of the true label. On forget samples, it should be {goal}. Median on the forget set: "
        f"{', '.join(parts)}."
    )


def destination_figure(models: dict[str, Sequence[Answers]], split: Split, class_names: Sequence[str]) -> Figure:
    """Where the forgotten samples go: the class that each model predicts.

    Class task: shares of the test samples of the forgotten classes, with bars for each model (mean over several). Sample
    task: label against answer on the forget set, one matrix per model. A network may have more logits than there are
    classes: answers with these are counted together, as "no class".
    """
    labels = class_names
    answered = [part.logits.argmax(axis=1) for several in models.values() for a in several for part in (a.forget, a.test)]
    if any((answers >= len(class_names)).any() for answers in answered):
        class_names = (*class_names, "no class")
    if split.is_class_task:
        return _destination_bars(models, split, class_names)
    ticks = range(0, len(class_names), -(-len(class_names) // _MANY_CLASSES))  # more names would cover each other
    figure = Figure(figsize=(4.2 * len(models), 4.2), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, (name, several) in zip(axes, models.items(), strict=True):
        matrix = np.mean([_confusion(answers.forget, len(class_names)) for answers in several], axis=0)[: len(labels)]
        image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        axis.set(title=name, xlabel="answer")
        axis.set_xticks(ticks, [class_names[label] for label in ticks], rotation=90, fontsize=7, parse_math=False)
        rows = [label for label in ticks if label < len(labels)]
        axis.set_yticks(rows, [labels[label] for label in rows], fontsize=7, parse_math=False)
    axes[0].set_ylabel("label of the forget sample")
    figure.colorbar(image, ax=list(axes), shrink=0.7, label="share of the label's samples")
    return figure


def _destinations(several: Sequence[Answers], split: Split, classes: int) -> np.ndarray:
    """The share of each answer on the forgotten classes' test samples or, if there are none, on the forget set."""
    shares = np.zeros(classes)
    for answers in several:
        of_class = np.isin(answers.test.labels, split.forgotten_classes)
        rows = answers.test.take(of_class) if of_class.any() else answers.forget
        counts = np.bincount(_answered(rows, classes), minlength=classes)
        shares += counts / counts.sum() / len(several)
    return shares


def _destination_bars(models: dict[str, Sequence[Answers]], split: Split, class_names: Sequence[str]) -> Figure:
    """A group of bars per class; with many classes, only the most frequent answers, and the others together."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axis = figure.subplots()
    shares = {name: _destinations(several, split, len(class_names)) for name, several in models.items()}
    shown = list(range(len(class_names)))
    ticks = [f"{name}\n(forgotten)" if label in split.forgotten_classes else name for label, name in enumerate(class_names)]
    if len(shown) > _MANY_CLASSES:
        frequent = np.argsort(-np.sum(list(shares.values()), axis=0), kind="stable")[:_SHOWN_CLASSES]
        shown = sorted({*frequent.tolist(), *split.forgotten_classes[:_SHOWN_CLASSES]})
        shares = {name: np.append(values[shown], 1 - values[shown].sum()) for name, values in shares.items()}
        ticks = [*(ticks[label] for label in shown), f"{len(class_names) - len(shown)} others"]
    positions = np.arange(len(ticks))
    width = 0.8 / len(models)
    for number, (name, values) in enumerate(shares.items()):
        look: dict[str, Any] = {"color": COLORS[name], "hatch": _HATCHES[name], "edgecolor": "black", "linewidth": 0.4}
        axis.bar(positions + (number - (len(models) - 1) / 2) * width, values, width, label=name, **look)
    many = len(ticks) > _SHOWN_CLASSES or max(map(len, class_names)) > _SHOWN_CLASSES
    axis.set_xticks(
        positions, ticks, fontsize=8, parse_math=False, rotation=35 if many else 0, ha="right" if many else "center"
    )
    axis.set(ylabel="share of the forgotten class", ylim=(0, 1.03))
    axis.legend(fontsize="small")
    return figure


def destination_caption(models: dict[str, Sequence[Answers]], split: Split, class_names: Sequence[str]) -> str:
    """How often each model still predicts the forgotten classes, and which other answer is the most frequent."""
    parts = []
    for name, several in models.items():
        if split.is_class_task:
            shares = _destinations(several, split, len(class_names) + 1)
            forgotten = list(split.forgotten_classes)
            kept, shares[forgotten] = shares[forgotten].sum(), 0
            top = int(shares.argmax())
            most = f", then most often {(*class_names, 'no class')[top]} ({shares[top]:.3f})" if shares[top] else ""
            parts.append(f"{name} {kept:.3f}{most}")
        else:
            right = np.mean([np.mean(one.forget.logits.argmax(axis=1) == one.forget.labels) for one in several])
            parts.append(f"{name} {right:.3f}")
    if split.is_class_task:
        return f"Share of the forgotten class's samples for which each model still predicts that class: {'; '.join(parts)}."
    return (
        f"Predicted class of the forget samples, by label. Share of samples for which it is the label: {', '.join(parts)}."
    )


def _confusion(predictions: Predictions, classes: int) -> np.ndarray:
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (predictions.labels, _answered(predictions, classes)), 1)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _answered(predictions: Predictions, classes: int) -> np.ndarray:
    """The predicted class of each row; the last one covers all logits beyond the classes."""
    return np.minimum(predictions.logits.argmax(axis=1), classes - 1)


def _some(predictions: Predictions, n: int) -> Predictions:
    """At most n rows, spread evenly over all of them."""
    total = len(predictions.labels)
    return predictions.take(np.linspace(0, total - 1, min(n, total)).astype(int))
