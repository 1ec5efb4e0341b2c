"""Calibrates the verdict on methods, on the unchanged original, and on retrained models judged as if unlearned.

    uv run scripts/verdicts.py                              # digits class 5; a quarter of an hour on two cores
    uv run scripts/verdicts.py --config digits_sample
    uv run scripts/verdicts.py --config fashion_mnist_class --seeds 0
    uv run scripts/verdicts.py --retrained 0                # the verdict without retrained models

All are compared with the same 8 retrained models, which the audits of the split share. Each verdict is written to
WORKDIR/verdicts.json as soon as it is available, and the same command resumes where it stopped. Further retrained models are
judged with the original of the first seed. The share of them without a fault is printed at the end, with Wilson's interval.
"""

if __name__ == "__main__":
    import interrupted  # noqa: F401


import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cujax.audit.intervals import share
from cujax.audit.verdict_words import HEADINGS
from cujax.cli import main, notify, parse_setup
from cujax.data.requests import Request
from cujax.experiments.audit import DEFAULT_ROOT, Audit
from cujax.experiments.request_words import parse_request, request_in_words
from cujax.experiments.sweep import ReadySweep, SeveralRuns, Sweep, slug
from cujax.methods.registry import find_method
from cujax.methods.retrain import Retrain
from cujax.progress import Progress, silent
from cujax.reports.verdict import describe_verdict
from cujax.storage.preemption import Interruption
from cujax.storage.records import Kind, kept_record, write_whole
from cujax.storage.workdir import Notify

VERDICTS = Kind("verdict of a calibration", schema=1, computed_by=1)


@dataclass(frozen=True)
class Calibration(SeveralRuns):
    """What is judged.

    Attributes:
        request: What to forget: class:LABEL, random:FRACTION, ...; by default the request of the configuration.
        methods: The methods, with their default settings.
        seeds: Seeds of originals and methods.
        judged_retrained: Number of further retrained models that are judged as if they were unlearned.
    """

    request: str = ""
    methods: tuple[str, ...] = ("mask_logit", "fine_tune", "contrastive", "salun", "random_labels", "deep_contrastive")
    seeds: tuple[int, ...] = (0, 1, 2)
    judged_retrained: int = 12

    @classmethod
    def asked(cls, request: Request) -> dict[str, Any]:
        return {"request": request_in_words(request)}


@dataclass
class Ready(ReadySweep):
    """A calibration that is ready to compute."""

    calibration: Calibration


def prepare(calibration: Calibration, progress: Progress = silent, notify: Notify = notify,
            interruption: Interruption | None = None) -> Ready:  # fmt: skip
    """Reads the data."""
    return Ready(Sweep(calibration, progress, notify, interruption or Interruption()), calibration)


def judged(ready: Ready) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, seed and verdict of each model."""
    calibration, sweep = ready.calibration, ready.cells
    request = parse_request(calibration.request)
    class_task = sweep.split(request).is_class_task

    def verdict(name: str, method: Any, seed: int, *, of_original: int | None = None) -> dict[str, Any]:
        experiment = replace(sweep.experiment(request, method, seed if of_original is None else of_original), seed=seed)
        place = ("verdicts", slug(calibration.request), name)

        def judge() -> dict[str, Any]:
            run = sweep.prepare(experiment, *place)
            level, root = ("standard", DEFAULT_ROOT) if calibration.retrained else ("quick", None)
            audit = Audit(run, level, root, judged_only=True)
            original = run.original()
            unlearned = original if name == "original" else run.unlearned()
            return describe_verdict(audit.findings(original, unlearned, None), len(run.split.forget))

        return kept_record(sweep.folder(experiment, *place) / "calibration.json", VERDICTS, judge)

    for seed in calibration.seeds:
        yield "original", seed, verdict("original", Retrain(), seed)
        for name in calibration.methods:
            if name != "mask_logit" or class_task:
                yield name, seed, verdict(name, find_method(name)(), seed)
    for seed in range(100, 100 + calibration.judged_retrained):
        yield "retrained", seed, verdict("retrained", Retrain(calibration.training), seed, of_original=calibration.seeds[0])


def calibrate(ready: Ready) -> None:
    """Judges everything and prints one line for each."""
    found: list[dict[str, Any]] = []
    for name, seed, verdict in judged(ready):
        found.append({"name": name, "seed": seed, **verdict})
        also = ", ".join(HEADINGS[fault] for fault in verdict["faults"] if fault != verdict["word"])
        print(f"{name:<18} seed {seed:<4} {verdict['heading']}" + f" (also {also})" * bool(also), flush=True)
        path = write_whole(ready.workdir / "verdicts.json", json.dumps(found, indent=1) + "\n")
    faultless = np.array([not verdict["faults"] for verdict in found if verdict["name"] == "retrained"])
    if len(faultless):
        without_fault = share(faultless)
        assert without_fault.interval is not None
        low, high = without_fault.interval()
        print(f"Retrained models without a fault: {faultless.sum()} of {len(faultless)} ({low:.0%} to {high:.0%})")
    print(f"All figures: {path}")


if __name__ == "__main__":
    configs = Path(__file__).parents[1] / "configs"
    reader = partial(parse_setup, Calibration)
    sys.exit(main(calibrate, configs=configs, description=__doc__, parse=reader, prepare=prepare))
