"""Prints the chain of models that a checkpoint comes from, back to the original, and verifies every digest.

For each model, it prints the request, the method and the time, and whether the checkpoint is intact. A checkpoint that has
moved is reported but is not a failure. Exit status 1 if a digest does not match, 2 if there is no checkpoint.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cujax.storage.checkpoints import CheckpointError
from cujax.storage.lineage import request_words, verify_lineage


@dataclass(frozen=True)
class Lineage:
    """What to inspect.

    Attributes:
        directory: A checkpoint, such as runs/digits_class/checkpoints/unlearned.
    """

    directory: Annotated[Path, tyro.conf.Positional]


def main(arguments: Sequence[str]) -> int:
    """Prints the chain and returns the exit status."""
    directory = tyro.cli(Lineage, args=arguments, description=__doc__).directory
    try:
        if directory.is_dir() and not any((directory / name).exists() for name in ("_CHECKPOINT_METADATA", "state")):
            raise FileNotFoundError(f"{directory} is not a checkpoint; give one, such as WORKDIR/checkpoints/unlearned.")
        links = verify_lineage(directory)
    except CheckpointError as error:
        print(f"FAILED: {error}")
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for depth, link in enumerate(links):
        model, indent = link.model, "  " * depth
        by = f" by {model.method}" * bool(model.method)
        what = f"forgot {request_words(model.request)}{by}" if model.request else "nothing forgotten"
        print(f"{indent}{model.kind} {model.digest[:12]}, {model.created}: {what}")
        print(f"{indent}  {model.n_forgotten} ids in all, digest {model.forgotten_digest[:12]}")
        state = "verified" if link.verified else f"FAILED: {link.problem}" if link.problem else "not found, not verified"
        if link.verdict:
            print(f"{indent}  verdict of its last audit: {link.verdict}")
        print(f"{indent}  {link.path or 'its location is not recorded'}: {state}")
    return int(any(link.problem for link in links))
