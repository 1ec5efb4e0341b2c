"""The figures of a comparison: accuracies and operations of all its methods."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cujax.reports.figures import COLORS

_MANY_POINTS = 500
_LEGEND_LINE = 0.2  # inches
_MARKERS = "osD^v<>PX*hpd"
# Okabe and Ito's palette; the markers distinguish methods in grey, too.
_PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _styled(names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A distinct style for each method, the same in every figure; contrastive unlearning stands out."""
    for number, name in enumerate(sorted(names)):
        style: dict[str, Any] = {
            "marker": _MARKERS[number % len(_MARKERS)],
            "color": _PALETTE[number % len(_PALETTE)],
            "markersize": 7,
        }
        if number >= len(_MARKERS):  # the same markers again, hollow
            style["markerfacecolor"] = "white"
        yield (
            name,
            style | ({"markersize": 12, "markeredgecolor": "black"} if name.partition("@")[0] == "contrastive" else {}),
        )


def trade_off_figure(found: dict[str, Any], word: str, key: str) -> Figure:
    """Accuracy on the forgotten data against test accuracy on retained data, with the retrained models as a region.

    Args:
        found: A comparison with its tables.
        word: The request.
        key: Which accuracy shows how much was forgotten.
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
    axis.plot(x, y, ".", color=COLORS["retrained"], markersize=4, rasterized=len(x) > _MANY_POINTS)
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
    axis.set(xlabel="accuracy on the forgotten data", ylabel="test accuracy on retained data")
    finish(figure, axis)
    return figure


def basis(found: dict[str, Any]) -> str:
    """What the verdicts are based on: "answers" alone, as in all comparisons before there was a choice, or "standard"."""
    return str(found["setup"].get("audit", "answers"))


def trade_off_caption(found: dict[str, Any], word: str, key: str) -> str:
    """How many methods have no fault, and which."""
    table = found["tables"][word]
    methods = {name: row for name, row in table.items() if name not in ("original", "retrained")}
    clear = [name for name, row in methods.items() if row["n"] and set(row["verdicts"]) <= {"no_trace", "not_judged"}]
    original, retrained = table["original"]["mean"], table["retrained"]["mean"]
    accuracies = (
        f"Accuracy on the forgotten data: original {original[key]:.3f}, retrained {retrained[key]:.3f}. "
        if None not in (original[key], retrained[key])
        else ""
    )
    subject = f"{'The answers of ' * (basis(found) == 'answers')}{len(clear)} of {len(methods)} methods"
    return (
        f"{accuracies}{subject} show no fault in any seed"
        f"{': ' * bool(clear)}{', '.join(clear)}. A point is the mean of a method over seeds, with bars of one standard "
        "deviation; the shaded rectangle is the range of all retrained models."
    )


def shares_of_cost(table: dict[str, Any], key: str = "mean_gap") -> dict[str, float]:
    """The operations relative to retraining, for each method whose operations and `key` are known."""
    retraining = table["retrained"]["mean"]["gflops"]
    known = {name: row["mean"] for name, row in table.items() if name not in ("original", "retrained")}
    return {
        name: mean["gflops"] / retraining
        for name, mean in known.items()
        if mean[key] is not None and mean["gflops"] and retraining
    }


def cost_caption(table: dict[str, Any]) -> str:
    """How many methods need fewer operations than retraining, and which has the smallest gap among them."""
    shares = shares_of_cost(table)
    cheaper = [name for name, share in shares.items() if share < 1]
    parts = [f"{len(cheaper)} of {len(shares)} methods need fewer operations than retraining (1 on the axis)"]
    if cheaper:
        best = min(cheaper, key=lambda name: table[name]["mean"]["mean_gap"])
        gap = table[best]["mean"]["mean_gap"]
        parts.append(f"the smallest gap among them is {gap:.4f} ({best}, {shares[best]:.0%} of the operations)")
    if table["retrained"]["mean"]["mean_gap"] is not None:
        parts.append(f"the dotted line is the retrained models' own gap, {table['retrained']['mean']['mean_gap']:.4f}")
    return "; ".join(parts) + ". Methods without training steps, or whose operations are not known, are not shown."


def cost_figure(table: dict[str, Any]) -> Figure:
    """Operations relative to retraining against mean gap."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    own_gap = table["retrained"]["mean"]["mean_gap"]
    draw_methods(axis, table, shares_of_cost(table), "mean_gap")
    if own_gap is not None:
        axis.axhline(own_gap, color=COLORS["retrained"], linestyle=":", label="retrained models' own gap")
    axis.set(xlabel="operations relative to retraining (retraining = 1)", ylabel="mean gap", xscale="log", ylim=(0, None))
    finish(figure, axis)
    return figure


def draw_methods(axis: Axes, table: dict[str, Any], shares: Mapping[str, float], key: str) -> None:
    """One point per method, at its share of operations, with the standard deviation over seeds.

    The styles are those that the methods have among all rows of the table.
    """
    for name, style in _styled(name for name in table if name not in ("original", "retrained")):
        if name in shares:
            value, error = (table[name][which][key] for which in ("mean", "std"))
            axis.errorbar(shares[name], value, yerr=error, linestyle="", elinewidth=0.8, label=name, **style)


def finish(figure: Figure, axis: Axes) -> None:
    """Adds a grid, and a legend next to the axes; the figure is made as high as its legend."""
    axis.grid(alpha=0.3)
    entries = len(axis.get_legend_handles_labels()[0])
    if entries:
        figure.set_figheight(max(figure.get_figheight(), _LEGEND_LINE * (entries + 1)))
        figure.legend(loc="outside right center", fontsize="small")
