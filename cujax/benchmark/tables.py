"""The figures of a benchmark as tables, next to those of an earlier run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from cujax.benchmark.measure import Benchmark


def tables(figures: dict[str, Any], earlier: dict[str, Any] | None = None) -> list[Table]:
    """The figures as tables; with an earlier run, also the ratio of this run's times to that run's."""
    settings = figures["settings"]
    title = (
        f"{settings['network']}, {settings['dtype']}, {settings['forget_batch_size']} + {settings['retain_batch_size']} "
        f"images of {settings['image_size']}x{settings['image_size']}x{settings['channels']}, "
        f"{figures['parameters']:,} parameters; {figures['device']}, peak {figures['peak_tflops']:.2f} TFLOP/s"
    )
    steps = Table(title=title)
    headings = {"ms": "ms", "ms_least": "least", "images_per_second": "images/s", "gflop": "GFLOP"}
    headings |= {"share_of_peak": "of peak", "memory_mib": "MiB", "compile_seconds": "compile s"}
    steps.add_column("a step", no_wrap=True)
    for heading in headings.values():
        steps.add_column(heading, justify="right")
    for name, row in figures["steps"].items():
        steps.add_row(name, *(_shown(row.get(key)) for key in headings))
    rest = Table()
    rest.add_column("ratio of times, and rates")
    rest.add_column("", justify="right")
    for name, value in figures["ratios"].items():
        rest.add_row(name, f"{value:.3f}")
    for name, row in (earlier or {"steps": {}})["steps"].items():
        if name not in figures["steps"]:
            continue
        rest.add_row(f"{name}, time / earlier", f"{figures['steps'][name]['ms'] / row['ms']:.3f}")
    for name, value in figures["pipeline"].items():
        rest.add_row(f"images/s {name}", f"{value:,.0f}")
    if figures["peak_memory_mib"] is not None:
        rest.add_row("peak memory of the device, MiB", f"{figures['peak_memory_mib']:,.0f}")
    return [steps, rest]


def _shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def read_earlier(path: Path, figures_of: Benchmark) -> dict[str, Any]:
    """Reads the figures of an earlier run.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it does not contain such figures, or those of other settings.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; an earlier run writes it with --json {path}.")
    try:
        earlier = json.loads(path.read_text("utf-8"))
        differing = {
            name: (earlier["settings"][name], value)
            for name, value in asdict(figures_of).items()
            if name not in ("rounds", "steps", "peak_tflops", "versus") and earlier["settings"][name] != value
        }
        complete = all(row["ms"] > 0 for row in earlier["steps"].values())
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} contains no figures of this benchmark ({error!r}).") from error
    if differing or not complete:
        told = ", ".join(f"{name} {there} there, {here} now" for name, (there, here) in differing.items())
        raise ValueError(f"{path} was measured with other settings: {told}. Compare runs with the same settings.")
    return earlier
