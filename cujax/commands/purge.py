"""Lists, and with --yes removes, the files that contain forgotten samples and the models that were trained on them.

    cujax purge runs/digits_class          # only lists
    cujax purge runs/digits_class --yes    # lists and removes

Use it after a deletion request was carried out. It removes the original and shadow models, unfinished models, the evidence
of audits, and lists of ids in the folder (.txt or .csv, one id per line) that name a forgotten sample. It keeps the
unlearned model, the models retrained without the samples, reports, metrics and the ledger with all digests. A list of what
was removed is written to WORKDIR/purged.json. Exit status 2 if there is no unlearned model, if the folder of --references
does not exist, or if another process uses the folder.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cujax.storage.purge import find_leftovers, purge
from cujax.storage.workdir import lock

SHARED = Path("runs/oracles")


@dataclass(frozen=True)
class Purge:
    """What to purge.

    Attributes:
        workdir: Folder of a run; it must contain an unlearned model.
        references: Folder of the models that audits share; models trained on the same data are included.
        yes: Remove what is listed. Without this flag, nothing is removed.
    """

    workdir: Annotated[Path, tyro.conf.Positional]
    references: Path = SHARED
    yes: bool = False


def main(arguments: Sequence[str]) -> int:
    """Lists, removes if asked to, and returns the exit status."""
    asked = tyro.cli(Purge, args=arguments, description=__doc__)
    workdir = asked.workdir.expanduser()
    try:
        if not workdir.is_dir():
            raise FileNotFoundError(f"folder {workdir} does not exist; give the --workdir of a run.")
        held = lock(workdir)
        shared = [asked.references.expanduser()] if asked.references != SHARED or SHARED.is_dir() else []
        leftovers = find_leftovers(workdir, shared)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for leftover in leftovers.found:
        print(f"{leftover.path} ({leftover.n_bytes / 1e6:.1f} MB): {leftover.reason}")
    if not leftovers.found:
        print(f"Nothing in {workdir} contains the forgotten samples.")
    for sentence in leftovers.out_of_reach:
        print(f"Out of reach: {sentence}.")
    if leftovers.found and not asked.yes:
        print("Nothing was removed. Give --yes to remove what is listed; it cannot be restored.")
    elif leftovers.found:
        try:
            print(f"Removed; the list is in {purge(leftovers, workdir)}.")
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    del held
    return 0
