"""Measures on a borrowed accelerator within a given time, most useful first: benchmark, class and sample unlearning.

    uv run --extra cuda scripts/campaign.py --hours 1       # TFDS_DATA_DIR must name a folder with CIFAR-10
    uv run scripts/campaign.py --dry-run --workdir runs/dry --page runs/dry/gpu.md     # tiny sizes, on a CPU

With the paper's ResNet-18 on CIFAR-10: steps in float32 and bfloat16, requests for class 5 and for 10 % at random with their
verdicts, then comparisons of methods. Each is a separate command that keeps completed work; the page is written after each.
When the time is over, the running command is asked to save its progress, and the same campaign can resume from there later.
"""

if __name__ == "__main__":
    import interrupted  # noqa: F401


import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from etils import epath
from tabulate import tabulate as text_table

from cujax._ranges import Count, Positive, check_fields
from cujax.audit.verdict_words import HEADINGS
from cujax.cli import notify
from cujax.reports.comparison_report import as_markdown
from cujax.storage.records import write_whole

ROOT = Path(__file__).parents[1]
METHODS = (
    "contrastive",
    "deep_contrastive",
    "margin_matching",
    "neg_grad_plus",
    "scrub",
    "salun",
    "random_labels",
    "fine_tune",
)
# A run that ended with a verdict below what was required has completed; one that was asked to end has saved its progress.
_COMPLETED, _SAVED = (0, 3), 143


@dataclass(frozen=True)
class Campaign:
    """What to measure, and how long.

    Attributes:
        hours: Time after which the running command is asked to end.
        epochs: Epochs of every training run.
        retrained: Number of retrained models in each run and comparison; the verdict "no trace found" needs 8.
        dry_run: Use small networks on digits instead of ResNet-18 on CIFAR-10, to check that everything works.
        workdir: Folder of all runs.
        page: The Markdown page to write.
    """

    hours: Positive = 1.0
    epochs: Count = 30
    retrained: Count = 5
    dry_run: bool = False
    workdir: str = "runs/campaign"
    page: Path = ROOT / "docs" / "results" / "gpu.md"

    def __post_init__(self) -> None:
        check_fields(self)


class Stage(NamedTuple):
    """A command, and the file that it writes when it is complete.

    Attributes:
        title: Heading on the page.
        arguments: Arguments of `cujax`.
        result: The JSON file of the result.
    """

    title: str
    arguments: tuple[str, ...]
    result: Path


def stages(campaign: Campaign) -> list[Stage]:
    """All commands, the most useful first."""
    root = Path(campaign.workdir).expanduser()
    tiny = campaign.dry_run
    retrained = ("--retrained", str(campaign.retrained))
    trained = (*retrained, "--training.epochs", str(campaign.epochs))
    found = []
    for dtype in ("bfloat16", "float32"):
        result = root / f"benchmark-{dtype}.json"
        size = ("--rounds", "2", "--steps", "1") if tiny else (
            "--network", "resnet18", "--image-size", "32", "--channels", "3",
            "--forget-batch-size", "256", "--retain-batch-size", "256",
        )  # fmt: skip
        arguments = ("benchmark", "--dtype", dtype, *size, "--json", str(result))
        found.append(Stage(f"Steps in {dtype}", arguments, result))
    tasks = ("class", "digits_class" if tiny else "cifar10_resnet18_class"), (
        "samples", "digits_sample" if tiny else "cifar10_resnet18_sample"
    )  # fmt: skip
    for task, config in tasks:
        workdir = root / task
        level = ("--audit", "quick") if tiny else ()
        arguments = ("unlearn", "--config", config, *trained, *level, "--workdir", str(workdir))
        found.append(Stage(f"Contrastive unlearning: {task}", arguments, workdir / "report.json"))
    methods = ("fine_tune", "--controls", "0.5") if tiny else METHODS
    for task, config in tasks:
        workdir = root / f"{task}-comparison"
        arguments = ("compare", "--config", config, *trained, "--methods", *methods, "--workdir", str(workdir))
        found.append(Stage(f"Methods: {task}", arguments, workdir / "comparison.json"))
    return found


def run(campaign: Campaign) -> int:
    """Runs the commands within the time, writes the page after each, and returns the exit status: 1 if one failed."""
    end, status = time.monotonic() + 3600 * campaign.hours, 0
    all_stages = stages(campaign)
    page = epath.Path(campaign.page.expanduser())
    page.parent.mkdir(parents=True, exist_ok=True)
    Path(campaign.workdir).expanduser().mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(all_stages, 1):
        left = end - time.monotonic()
        if left <= 0:
            notify(f"The time is over before {stage.title!r}; run the same command again to go on.")
            break
        if stage.result.is_file() and stage.arguments[0] == "benchmark":
            continue
        notify(f"[{number}/{len(all_stages)}] {stage.title}, {left / 60:.0f} minutes left")
        code = within(left, [sys.executable, "-m", "cujax", *stage.arguments])
        if code not in (*_COMPLETED, _SAVED):
            notify(f"FAILED {stage.title}: exit status {code}")
            status = 1
        write_whole(page, as_page(campaign, all_stages))
    write_whole(page, as_page(campaign, all_stages))
    notify(f"The page: {page}")
    return status


def within(seconds: float, command: Sequence[str]) -> int:
    """Runs a command; asks it to end when the time is over, or when this process is interrupted, and waits for it."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reached it, too
            raise
        return process.wait()


def as_page(campaign: Campaign, all_stages: Sequence[Stage]) -> str:
    """The measurements so far, as Markdown."""
    parts = [
        "# Measured by scripts/campaign.py\n\n"
        f"{campaign.epochs} epochs a training, {campaign.retrained} retrained models a run, the methods' defaults. "
        + ("**A dry run: small networks on digits, which say nothing of CIFAR-10.**" if campaign.dry_run else "")
    ]
    for stage in all_stages:
        found = json.loads(stage.result.read_text("utf-8")) if stage.result.is_file() else None
        shown = "Not measured yet." if found is None else _SHOWN[stage.arguments[0]](found)
        parts.append(f"## {stage.title}\n\n{shown}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _benchmark(found: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['ms']:.2f}",
            f"{row['images_per_second']:,.0f}",
            _shown(row["share_of_peak"]),
            _shown(row.get("memory_mib")),
        ]
        for name, row in found["steps"].items()
    ]
    ratios = ", ".join(f"{name} {value:.3f}" for name, value in found["ratios"].items())
    table = text_table(rows, ["a step", "ms", "images/s", "of peak", "MiB"], "pipe", disable_numparse=True)
    return f"{found['device']}, peak {found['peak_tflops']:.1f} TFLOP/s in a matrix product.\n\n{table}\n\nRatios: {ratios}."


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _run(found: dict[str, Any]) -> str:
    keys = ("forget_train_accuracy", "forget_test_accuracy", "retain_test_accuracy", "test_accuracy", "mia_loss_auc")
    rows = [[name, *(_shown(row[key]) for key in keys)] for name, row in found["rows"].items()]
    verdict = found["verdict"]
    table = text_table(rows, ["", *(key.replace("_", " ") for key in keys)], "pipe", disable_numparse=True)
    return ("" if verdict is None else f"**{HEADINGS[verdict['word']]}.**\n\n") + table


def _comparison(found: dict[str, Any]) -> str:
    return as_markdown(found).partition("\n\n")[2].replace("\n## ", "\n### ")


_SHOWN = {"benchmark": _benchmark, "unlearn": _run, "compare": _comparison}


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, measures, and returns the exit status."""
    try:
        campaign = tyro.cli(Campaign, args=arguments, description=__doc__)
        return run(campaign)
    except (ValueError, OSError) as error:
        notify(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        notify("\nInterrupted. Run the same command again to continue.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
