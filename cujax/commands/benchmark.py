"""Times a network's forward pass, plain training step, unlearning step and their loops in one run.

    cujax benchmark                                              # the small CNN, in half a minute on 2 cores
    cujax benchmark --network resnet18 --image-size 32 --channels 3 --forget-batch-size 32 \
      --retain-batch-size 32 --rounds 5 --steps 2                            # the paper's network, on a CPU

"bare" is a hand-written training step; "loop" is the step with everything around it. The measurements of one run alternate,
so they can be compared with each other. Those of two runs (--compare) can be compared only if the machine is otherwise
idle. --versus torch also times the same network and losses in PyTorch.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from cujax.benchmark import Benchmark, measure, read_earlier, tables
from cujax.cli import profiled
from cujax.experiments.checks import check_output_file
from cujax.progress import bar


@dataclass(frozen=True)
class Options(Benchmark):
    """What to time, and where to write the figures.

    Attributes:
        json: Write the figures to this file; by default, they are only shown.
        compare: The file that an earlier run wrote with --json; the ratios of this run's times to that run's are shown.
        profile: Write a profile of the computation to this folder; view it in TensorBoard or at ui.perfetto.dev.
    """

    json: Path | None = None
    compare: Path | None = None
    profile: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Measures, prints, writes, and returns the exit status: 0, or 2 for bad input."""
    try:
        options = tyro.cli(Options, args=arguments, description=__doc__)
        benchmark = Benchmark(**{name: getattr(options, name) for name in Benchmark.__dataclass_fields__})
        if options.json is not None:
            check_output_file("json", options.json.expanduser())
        earlier = read_earlier(options.compare, benchmark) if options.compare else None
        with profiled(options.profile):
            figures = measure(benchmark, bar)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for table in tables(figures, earlier):
        Console().print(table)
    if options.json is not None:
        options.json.expanduser().write_text(json.dumps(figures, indent=2) + "\n")
    return 0
