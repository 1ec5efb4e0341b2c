"""The protocol of the papers for random samples: four figures, and their mean distance from retrained models."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cujax.data.requests import ForgetRandom
from cujax.experiments.request_words import parse_request

# Key of a row's figure, heading; in points.
FIGURES = (
    ("retain_train_accuracy", "retain (train)"),
    ("forget_train_accuracy", "100 − forget (train)"),
    ("test_accuracy", "test (all)"),
    ("mia_confidence", "MIA"),
)
GAP = "mean gap (points)"

# Mean gaps in points that CoUn's authors give for CIFAR-10, ResNet-18, 10 % at random, ten trials (arXiv:2509.16391).
_PUBLISHED = {
    "CoUn": 0.25,
    "layer_negation (NoT)": 0.30,
    "l1_sparse": 0.38,
    "neg_grad_plus": 0.58,
    "salun": 0.59,
    "contrastive": 0.61,
    "scrub": 0.62,
    "fine_tune": 0.65,
    "bad_teacher": 1.58,
    "selective_synaptic_dampening": 3.83,
}


class Gap4(NamedTuple):
    """The table of one request.

    Attributes:
        columns: Headings; the first is that of the method's name.
        rows: One row per method, as text.
        caption: What the table shows, and how it differs from the published figures next to it.
    """

    columns: list[str]
    rows: list[list[str]]
    caption: str


def gap4(found: dict[str, Any], word: str) -> Gap4:
    """The table of a request for samples.

    Args:
        found: What a comparison found.
        word: The request.
    """
    task = found["tasks"][word]
    references = {seed: entry for seed, entry in task["references"].items() if "failed" not in entry}
    of_original, of_retrained = [], []
    for entry in references.values():
        retrained = [_points(row) for row in entry["retrained"]]
        of_original.append(_with_gap(_points(entry["original"]), retrained))
        for number, row in enumerate(retrained):
            others = retrained[:number] + retrained[number + 1 :]
            of_retrained.append(_with_gap(row, others or [row]))
    rows = [_line("original", of_original), _line("retrained", of_retrained)]
    methods = {}
    for name, cells in task["cells"].items():
        measured = [
            _with_gap(_points(cell["row"]), [_points(row) for row in references[seed]["retrained"]])
            for seed, cell in cells.items()
            if "failed" not in cell
        ]
        if measured:
            methods[name] = measured
    order = sorted(methods, key=lambda name: np.mean([row[-1] for row in methods[name]]))
    rows += [_line(name, methods[name]) for name in order]
    caption = (
        "Four figures in points and their mean absolute distance from the mean of the retrained models; that of a "
        "retrained model is from the mean of the others. MIA: the share of the forget set that an attack on confidence, "
        "trained on retained and test samples, classifies as never seen. A small gap does not show that the right samples "
        "were forgotten; see the columns agreement and JS of the other table for that."
    )
    request = parse_request(word)
    if found["source"]["name"] == "cifar10" and isinstance(request, ForgetRandom) and request.fraction == 0.1:
        rows += [[f"{name}, published", *("–" for _ in FIGURES), f"{gap:.2f}"] for name, gap in _PUBLISHED.items()]
        setup = found["setup"]
        caption += (
            " Published: what CoUn's authors report (arXiv:2509.16391) for ResNet-18, means of ten trials, their own code. "
            f"Here: {setup['network']}, {setup['training']['epochs']} epochs, a tenth of the training images held out for "
            "validation, and nothing tuned on these gaps. Do not compare the two method by method."
        )
    return Gap4(["", *(heading for _, heading in FIGURES), GAP], rows, caption)


def _points(row: Mapping[str, Any]) -> list[float]:
    values = [np.nan if row[key] is None else 100 * row[key] for key, _ in FIGURES]
    values[1] = 100 - values[1]
    return values


def _with_gap(row: Sequence[float], references: Sequence[Sequence[float]]) -> list[float]:
    """The figures, and their mean absolute distance from the mean of others; NaN where one is not known."""
    return [*row, float(np.mean(np.abs(np.asarray(row) - np.mean(references, axis=0))))]


def _line(name: str, rows: Sequence[Sequence[float]]) -> list[str]:
    """Means and standard deviations (n - 1) as text."""
    if not rows:
        return [name, *("–" for _ in FIGURES), "–"]
    mean = np.mean(rows, axis=0)
    spread = [""] * len(mean) if len(rows) < 2 else [f" ± {value:.2f}" for value in np.std(rows, axis=0, ddof=1)]
    return [
        name,
        *("–" if np.isnan(value) else f"{value:.2f}{around}" for value, around in zip(mean, spread, strict=True)),
    ]
