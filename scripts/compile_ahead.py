"""Compiles the sharded unlearning step for a TPU slice, on a machine without one, and prints what its devices would send.

    uv run --extra tpu scripts/compile_ahead.py --topology v5e:2x4 --network resnet18
    uv run --extra tpu scripts/compile_ahead.py --topology v5p:2x4x4 --json v5p.json

Collectives, bytes, memory and operations are the compiler's; the times are predicted from published peaks, not measured.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Before JAX starts: the compiler for TPUs is asked without a TPU, so that several processes may ask.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import tyro
from rich.console import Console

from cujax.compile_ahead import CompileAhead, compile_ahead, tables
from cujax.experiments.checks import check_output_file
from cujax.progress import bar


@dataclass(frozen=True)
class Options(CompileAhead):
    """What to compile, and where the figures go.

    Attributes:
        json: File for the figures; by default none is written.
    """

    json: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Compiles, prints, writes, and returns the exit status: 0, 1 without the compiler, or 2 for bad input."""
    try:
        options = tyro.cli(Options, args=arguments, description=__doc__)
        if options.json is not None:
            check_output_file("json", options.json.expanduser())
        wanted = CompileAhead(**{name: getattr(options, name) for name in CompileAhead.__dataclass_fields__})
        with bar("compiling", 1) as advance:
            figures = compile_ahead(wanted)
            advance()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    for table in tables(figures):
        Console().print(table)
    if options.json is not None:
        options.json.expanduser().write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
