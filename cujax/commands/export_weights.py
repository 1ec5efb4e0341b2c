"""Writes the arrays of a checkpoint, bit for bit, for other programs.

The name of the output sets the format: NAME.safetensors, NAME.msgpack (for flax.serialization.msgpack_restore), or a name
without a suffix for an Orbax directory. The arrays have the names that flax gives them. Existing files are never
overwritten.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from cujax.storage.checkpoints import CheckpointError, load_checkpoint
from cujax.storage.exports import export_weights


@dataclass(frozen=True)
class Export:
    """What to export.

    Attributes:
        checkpoint: A checkpoint, such as runs/digits_class/checkpoints/unlearned. Its digests are verified first.
        output: Where to write the arrays; it must not exist yet.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    output: Annotated[Path, tyro.conf.Positional]


def main(arguments: Sequence[str]) -> int:
    """Exports, reports what was written, and returns the exit status: 0, or 2 for bad input."""
    asked = tyro.cli(Export, args=arguments, description=__doc__)
    try:
        checkpoint = load_checkpoint(asked.checkpoint)
        export_weights(checkpoint, asked.output)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    leaves = jax.tree.leaves(checkpoint.variables)
    print(
        f"{asked.output}: {len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} values, of the "
        f"{checkpoint.metadata.kind} checkpoint {checkpoint.digest[:12]}.\nIts record of deletion requests is not exported; "
        f"it stays in {asked.checkpoint}."
    )
    return 0
