"""The pictures of a comparison."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cujax.figures import COLORS

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
