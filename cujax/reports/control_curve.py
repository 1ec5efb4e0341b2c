"""Distance to retrained models over operations: the curve of shortened retraining, and where each method lies.

An approximate method is worthwhile below that curve: there it is nearer to retrained models than a user gets by shortening
retraining to the same cost.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from cujax.reports.comparison_figures import draw_methods, finish, shares_of_cost
from cujax.reports.figures import COLORS

Place = Literal["below", "within", "above"]
_KEY = "js_to_retrained"


@dataclass(frozen=True)
class Curve:
    """The curve of shortened retraining.

    Attributes:
        names: Names of its rows, cheapest first.
        shares: Their operations relative to retraining, `[k]`, ascending.
        distances: Their Jensen-Shannon divergence from retrained models on the forget set, `[k]`, in nats.
        spread: Standard deviation of the retrained models' own distances.
        retrained: Mean of the retrained models' own distances.
    """

    names: tuple[str, ...]
    shares: np.ndarray
    distances: np.ndarray
    spread: float
    retrained: float

    def at(self, share: float) -> float:
        """The curve at a cost: linear between its points over the logarithm, constant beyond its ends."""
        return float(np.interp(np.log(share), np.log(self.shares), self.distances))


def control_curve(table: dict[str, Any], controls: Collection[str]) -> Curve | None:
    """The curve of a request; None if the comparison has no such control, or too few retrained models for a spread."""
    if "retrained" not in table:
        return None
    mean, std = table["retrained"]["mean"], table["retrained"]["std"]
    known = shares_of_cost(table, _KEY)
    points = sorted((known[name], table[name]["mean"][_KEY], name) for name in controls if name in known)
    if len(points) < 2 or mean[_KEY] is None or std[_KEY] is None:
        return None
    shares, distances, names = zip(*points, strict=True)
    return Curve(names, np.array(shares), np.array(distances), std[_KEY], mean[_KEY])


def _shares_beside(table: dict[str, Any], curve: Curve) -> dict[str, float]:
    """The operations of each method relative to retraining, without the points of the curve."""
    return {name: share for name, share in shares_of_cost(table, _KEY).items() if name not in curve.names}


def side(share: float, distance: float, curve: Curve) -> Place:
    """On which side of the curve a method lies; within the spread of retrained models, it is on neither."""
    difference = distance - curve.at(share)
    if abs(difference) <= curve.spread:
        return "within"
    return "below" if difference < 0 else "above"


_IN_WORDS: dict[Place, str] = {
    "below": "nearer to retrained models than retraining cut short to the same operations",
    "within": "as near to retrained models as retraining cut short to the same operations, within their spread",
    "above": "farther from retrained models than retraining cut short to the same operations",
}


def beside_curve(table: dict[str, Any], curve: Curve) -> dict[str, Place]:
    """Where each method with a cost lies, without the points of the curve."""
    return {name: side(share, table[name]["mean"][_KEY], curve) for name, share in _shares_beside(table, curve).items()}


def control_remarks(table: dict[str, Any], curve: Curve) -> dict[str, str]:
    """The same in words, by method."""
    return {name: _IN_WORDS[found] for name, found in beside_curve(table, curve).items()}


def control_figure(table: dict[str, Any], curve: Curve) -> Figure:
    """Distance over operations: shortened retraining as a curve with its band, and every method as a point."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(curve.shares, curve.distances, "k-s", markersize=4, label="retraining cut short")
    low, high = curve.distances - curve.spread, curve.distances + curve.spread
    axis.fill_between(curve.shares, low, high, color="black", alpha=0.12, linewidth=0)
    axis.axhline(curve.retrained, color=COLORS["retrained"], linestyle=":", label="retrained models' own distance")
    draw_methods(axis, table, _shares_beside(table, curve), _KEY)
    axis.set(
        xlabel="operations relative to retraining (retraining = 1)",
        ylabel="JS divergence from retrained models",
        xscale="log",
        ylim=(0, None),
    )
    finish(figure, axis)
    return figure


def control_caption(table: dict[str, Any], curve: Curve) -> str:
    """States which methods lie below the curve, and what the curve is."""
    found = beside_curve(table, curve)
    below = [name for name, where in found.items() if where == "below"]
    within = sum(where == "within" for where in found.values())
    return (
        "Below the curve, that is, nearer to retrained models than retraining that was cut short to the same number of "
        f"operations: {len(below)} of {len(found)} methods{': ' * bool(below)}{', '.join(below)}; within the spread of "
        f"retrained models (±{curve.spread:.4f}, the band): {within}. The curve is what an approximate method has to beat. "
        "Distance: mean Jensen-Shannon divergence of the answers on the forget set from those of retrained models, in "
        "nats. The curve is assumed to be constant to the left and right of its points. Methods whose operations are not "
        "known are not shown."
    )
