"""The trade-off of each method between retained and forget accuracy, pass by pass, also outside the tolerance of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cujax.reports.figures import COLORS

# The course of a run: accuracy on the forget set and on retained validation data, before the first pass and after each.
Course = Sequence[dict[str, Any]]
_COLUMNS = 4


def courses(task: dict[str, Any]) -> dict[str, dict[str, Course]]:
    """The courses of each method, by seed; cells that failed, or are from version 0.1, have none."""
    found = {
        name: {seed: cell["course"] for seed, cell in cells.items() if "course" in cell}
        for name, cells in task["cells"].items()
        if name not in task.get("controls", ())
    }
    return {name: by_seed for name, by_seed in found.items() if by_seed}


def lost(course: Course) -> np.ndarray:
    """The loss of accuracy on retained validation data since before the first pass, `[passes + 1]`."""
    return course[0]["retain_accuracy"] - np.array([check["retain_accuracy"] for check in course])


def ends_beyond(course: Course, tolerance: float) -> bool:
    """Whether the last pass ended outside the tolerance, so that an earlier state was returned."""
    return bool(lost(course)[-1] > tolerance + 1e-9)


def remark_on_end(by_seed: dict[str, Course], tolerance: float, *, class_task: bool) -> str | None:
    """A method's end state if that was outside the tolerance, and its best state within it; otherwise None."""
    beyond = {seed: course for seed, course in by_seed.items() if ends_beyond(course, tolerance)}
    if not beyond:
        return None
    seed, course = next(iter(beyond.items()))
    within = [number for number, loss in enumerate(lost(course)) if loss <= tolerance + 1e-9]
    best = min(within, key=lambda number: (_left(course[number], class_task=class_task), lost(course)[number]))
    return (
        f"ended outside the tolerance of {100 * tolerance:g} points in {len(beyond)} of {len(by_seed)} seeds, where an "
        f"earlier state was returned; seed {seed}, last state: {_point(course, -1)}; best state within the tolerance: "
        f"{_point(course, best)}"
    )


def _left(check: dict[str, Any], *, class_task: bool) -> float:
    """How much is left to forget: for a class, the accuracy on it; for samples, the gap to held-out samples."""
    forget, target = check["forget_accuracy"], check["target"]
    return float(forget if class_task or target is None else abs(forget - target))


def _point(course: Course, number: int) -> str:
    check = course[number]
    return (
        f"step {check['step']}, forget accuracy {check['forget_accuracy']:.3f}, retained {-100 * lost(course)[number]:+.1f} "
        "points (validation)"
    )


def trade_off_curves(by_method: dict[str, dict[str, Course]], tolerance: float) -> Figure:
    """A small plot per method: accuracy on the forget set over the loss on retained data, with one line per seed."""
    rows = -(-len(by_method) // _COLUMNS)
    figure = Figure(figsize=(9, 0.8 + 1.7 * rows), layout="constrained")
    axes = list(figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
    for axis, (name, by_seed) in zip(axes, sorted(by_method.items()), strict=False):
        axis.axvline(100 * tolerance, color="#666666", linestyle="--", linewidth=0.8)
        for course in by_seed.values():
            loss, forget = 100 * lost(course), [check["forget_accuracy"] for check in course]
            axis.plot(loss, forget, "-", color=COLORS["unlearned"], linewidth=0.8, marker=".", markersize=3)
            axis.plot(loss[0], forget[0], "+", color="#666666", markersize=9)
            axis.plot(loss[-1], forget[-1], "o", color="black", markersize=5)
        axis.set_title(name, fontsize="small")
        axis.set_xscale("symlog", linthresh=1)
        axis.set_ylim(-0.05, 1.05)
        axis.grid(alpha=0.3)
    for axis in axes[len(by_method) :]:
        axis.set_axis_off()
    figure.supxlabel("loss of accuracy on retained validation data, points (logarithmic beyond ±1)", fontsize="small")
    figure.supylabel("accuracy on the forget set", fontsize="small")
    return figure


def trade_off_curves_caption(by_method: dict[str, dict[str, Course]], tolerance: float) -> str:
    """States which methods ended outside the tolerance, and how to read the plots."""
    beyond = sorted(
        name for name, by_seed in by_method.items() if any(ends_beyond(course, tolerance) for course in by_seed.values())
    )
    found = f"{len(beyond)} of {len(by_method)} methods ended outside the tolerance in a seed{': ' * bool(beyond)}"
    return (
        f"{found}{', '.join(beyond)}. Each line is a run and each dot a pass. A line begins at the cross (the original) and "
        f"ends at the large dot. A run that ends to the right of the dashed line ({100 * tolerance:g} points) returns its "
        "last state to the left of it, which is what the table shows."
    )
