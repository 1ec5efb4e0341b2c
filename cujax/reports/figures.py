"""The pictures of a report. Each function draws one matplotlib figure; colours are told apart by the colour-blind."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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
_MAX_FORGET, _MAX_KEPT = 250, 500


def embeddings_figure(models: dict[str, Answers], split: Split, class_names: Sequence[str]) -> Figure:
    """Embeddings of forget samples among test samples of the classes that stay: PCA above, t-SNE below.

    Args:
        models: By name, in the order of the columns.
        split: What was forgotten.
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
            (("PCA", PCA(2)), ("t-SNE", TSNE(2, init="pca", random_state=0, perplexity=perplexity)))
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
    axis.scatter(kept[:, 0], kept[:, 1], s=8, c="#BBBBBB", linewidths=0, label="kept (test)")
    axis.scatter(forget[:, 0], forget[:, 1], s=16, c=COLORS["forget"], marker="x", linewidths=0.9, label="forget")
    for label in np.unique(kept_labels):
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


def stopping_figure(checks: Sequence[dict[str, float]], step: int, rule: str, is_class_task: bool) -> Figure:
    """What the stop rule saw: accuracies over optimiser steps, and the step whose parameters were kept."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    steps = [check["step"] for check in checks]
    target = "threshold" if is_class_task else "held-out samples (the target)"
    for key, label, color, style in (
        ("forget_accuracy", "what to forget", COLORS["forget"], "o-"),
        ("target", target, "black", ":"),
        ("retain_accuracy", "what stays (validation)", COLORS["retain"], "s-"),
    ):
        axis.plot(steps, [check[key] for check in checks], style, color=color, label=label, markersize=4)
    axis.axvline(step, color="#999999", linewidth=1)
    axis.annotate(f" {rule}: step {step}", (step, 0.5), rotation=90, va="center", ha="right", color="#555555")
    axis.set(xlabel="optimiser steps", ylabel="accuracy", ylim=(-0.03, 1.03))
    axis.legend(loc="lower left", fontsize="small")
    axis.grid(alpha=0.3)
    return figure


def confidence_figure(models: dict[str, Answers], split: Split) -> Figure:
    """Histograms of the probability given to the true label, of forget, retain and test samples, for each model."""
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
                linewidth=1.5,
                label=part,
            )
        axis.set(title=name, xlabel="probability of the true label", yscale="log", ylim=(1e-3, 1.2))
    axes[0].set_ylabel("share of samples")
    axes[0].legend(fontsize="small", loc="upper center")
    return figure


def destination_figure(models: dict[str, Sequence[Answers]], split: Split, class_names: Sequence[str]) -> Figure:
    """Where the forgotten samples go: which class each model answers with.

    Class task: shares of the test samples of the forgotten classes, bars a model (mean over several). Sample task:
    label against answer on the forget set, one matrix a model. A network may have more logits than there are classes:
    answers with these are counted together, as "no class".
    """
    labels = class_names
    answered = [part.logits.argmax(axis=1) for several in models.values() for a in several for part in (a.forget, a.test)]
    if any((answers >= len(class_names)).any() for answers in answered):
        class_names = (*class_names, "no class")
    if split.is_class_task:
        return _destination_bars(models, split, class_names)
    figure = Figure(figsize=(4.2 * len(models), 4.2), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, (name, several) in zip(axes, models.items(), strict=True):
        matrix = np.mean([_confusion(answers.forget, len(class_names)) for answers in several], axis=0)[: len(labels)]
        image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        axis.set(title=name, xlabel="answer")
        axis.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=7, parse_math=False)
        axis.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)
    axes[0].set_ylabel("label of the forget sample")
    figure.colorbar(image, ax=list(axes), shrink=0.7, label="share of the label's samples")
    return figure


def _destination_bars(models: dict[str, Sequence[Answers]], split: Split, class_names: Sequence[str]) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axis = figure.subplots()
    positions = np.arange(len(class_names))
    width = 0.8 / len(models)
    for number, (name, several) in enumerate(models.items()):
        shares = np.zeros(len(class_names))
        for answers in several:
            of_class = np.isin(answers.test.labels, split.forgotten_classes)
            rows = answers.test.take(of_class) if of_class.any() else answers.forget
            counts = np.bincount(_answered(rows, len(class_names)), minlength=len(class_names))
            shares += counts / counts.sum() / len(several)
        axis.bar(
            positions + (number - (len(models) - 1) / 2) * width,
            shares,
            width,
            label=name,
            color=COLORS[name],
            edgecolor="black",
            linewidth=0.4,
        )
    ticks = [f"{name}\n(forgotten)" if label in split.forgotten_classes else name for label, name in enumerate(class_names)]
    axis.set_xticks(positions, ticks, fontsize=8, parse_math=False)
    axis.set(ylabel="share of the forgotten class", ylim=(0, 1.03))
    axis.legend(fontsize="small")
    return figure


def _confusion(predictions: Predictions, classes: int) -> np.ndarray:
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (predictions.labels, _answered(predictions, classes)), 1)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _answered(predictions: Predictions, classes: int) -> np.ndarray:
    """The class that each row is answered with; the last stands for all logits beyond it."""
    return np.minimum(predictions.logits.argmax(axis=1), classes - 1)


def _some(predictions: Predictions, n: int) -> Predictions:
    """At most n rows, spread evenly over them all."""
    total = len(predictions.labels)
    return predictions.take(np.linspace(0, total - 1, min(n, total)).astype(int))


_MARKERS = "osD^v<>PX*hpd"
# Okabe and Ito's palette; with the markers, told apart in grey as well.
_PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _styled(names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each method with a look of its own, the same in every picture: contrastive unlearning stands out."""
    for number, name in enumerate(sorted(names)):
        style = {"marker": _MARKERS[number % len(_MARKERS)], "color": _PALETTE[number % len(_PALETTE)], "markersize": 7}
        yield name, style | ({"markersize": 12, "markeredgecolor": "black"} if name == "contrastive" else {})


def trade_off_figure(found: dict[str, Any], word: str, key: str) -> Figure:
    """Accuracy on what was to be forgotten against test accuracy on what stays, the retrained models as a region.

    Args:
        found: A comparison with its tables.
        word: The request.
        key: Which accuracy says how much was forgotten.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    table = found["tables"][word]
    references = [entry for entry in found["tasks"][word]["references"].values() if "failed" not in entry]
    retrained = [row for entry in references for row in entry["retrained"]]
    x, y = (np.array([row[name] for row in retrained], float) for name in (key, "retain_test_accuracy"))
    axis.add_patch(
        Rectangle((x.min(), y.min()), np.ptp(x), np.ptp(y), color=COLORS["retrained"], alpha=0.2, label="range of retrained")
    )
    axis.plot(x, y, ".", color=COLORS["retrained"], markersize=4)
    original = table["original"]["mean"]
    axis.plot(original[key], original["retain_test_accuracy"], "+", color="#666666", markersize=12, label="original")
    methods = {name: row for name, row in table.items() if name not in ("original", "retrained")}
    for name, style in _styled(methods):
        mean, std = methods[name]["mean"], methods[name]["std"]
        if mean[key] is not None:
            errors = {"xerr": std[key], "yerr": std["retain_test_accuracy"]}
            axis.errorbar(
                mean[key], mean["retain_test_accuracy"], **errors, linestyle="", elinewidth=0.8, label=name, **style
            )
    axis.set(xlabel="accuracy on what was to be forgotten", ylabel="test accuracy on what stays")
    _finish(figure, axis)
    return figure


def cost_figure(table: dict[str, Any]) -> Figure:
    """Operations relative to retraining against mean gap."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    retraining, own_gap = table["retrained"]["mean"]["gflops"], table["retrained"]["mean"]["mean_gap"]
    methods = {name: row for name, row in table.items() if name not in ("original", "retrained")}
    for name, style in _styled(methods):
        mean, std = methods[name]["mean"], methods[name]["std"]
        if mean["mean_gap"] is not None and mean["gflops"] and retraining:
            share = mean["gflops"] / retraining
            axis.errorbar(share, mean["mean_gap"], yerr=std["mean_gap"], linestyle="", elinewidth=0.8, label=name, **style)
    if own_gap is not None:
        axis.axhline(own_gap, color=COLORS["retrained"], linestyle=":", label="retrained models' own gap")
    axis.set(xlabel="operations, retraining = 1", ylabel="mean gap", xscale="log", ylim=(0, None))
    _finish(figure, axis)
    return figure


def _finish(figure: Figure, axis: Axes) -> None:
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right center", fontsize="small")
