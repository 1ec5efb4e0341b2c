"""Finds and removes what contains forgotten samples or was trained on them, after a deletion request was carried out.

The unlearned model, the models retrained without the samples, reports, metrics, digests and the ledger are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from etils import epath

from cujax.data.id_lists import hashed_id, is_hashed
from cujax.storage.checkpoints import CheckpointError, Metadata, load_checkpoint
from cujax.storage.lineage import verify_lineage
from cujax.storage.records import Kind, write_record

PURGED = Kind("purged", schema=1)
LEDGER = "purged.json"
# Lists of ids are smaller; larger files are not read.
_LARGEST_LIST = 10_000_000


@dataclass(frozen=True)
class Leftover:
    """A file or folder to remove.

    Attributes:
        path: Its path.
        reason: Why it should be removed.
        n_bytes: Its size on disk.
        digest: The digest of the checkpoint; "" for anything else.
    """

    path: str
    reason: str
    n_bytes: int
    digest: str = ""


@dataclass(frozen=True)
class Leftovers:
    """What was found.

    Attributes:
        found: What can be removed.
        out_of_reach: What else may contain the samples, in sentences.
    """

    found: tuple[Leftover, ...]
    out_of_reach: tuple[str, ...]


def find_leftovers(workdir: Path, references: Sequence[Path] = ()) -> Leftovers:
    """Finds what still contains the samples of a run's request, or was trained on them.

    Args:
        workdir: The folder of the run.
        references: Folders of the models that audits share, such as runs/oracles. Only models of the same data in them
            are considered.

    Raises:
        FileNotFoundError: if the folder has no unlearned model, or one of the others does not exist.
        CheckpointError: if that model is damaged.
    """
    path = workdir / "checkpoints" / "unlearned"
    if not path.is_dir():
        raise FileNotFoundError(
            f"{workdir} contains no unlearned model (checkpoints/unlearned), so nothing was unlearned there yet; give the "
            "--workdir of a run that is complete."
        )
    for folder in references:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"folder {folder} of shared models does not exist, so nothing in it can be found; give the folder of the "
                "models that audits share (--oracles of cujax audit)."
            )
    unlearned = load_checkpoint(path).metadata
    places = [(workdir, ""), *((folder, unlearned.source_version) for folder in references)]
    found = [leftover for folder, version in places for leftover in _within(folder, unlearned, version)]
    found += _lists_of_ids(workdir, unlearned, [Path(leftover.path) for leftover in found])
    removed = {Path(leftover.path).resolve() for leftover in found}
    elsewhere = [
        f"the {link.model.kind} model {link.model.digest[:12]}, on which this one is built, is in {link.path}"
        for link in verify_lineage(path)[:-1]
        if link.path is not None and Path(link.path).exists() and Path(link.path).resolve() not in removed
    ]
    if not is_hashed(unlearned.forgotten_ids[0]):
        elsewhere.append(
            f"{path} names the ids of the samples, for later requests; with --hashed-ids it would name their SHA-256"
        )
    elsewhere += [
        f"the data {unlearned.source}: remove the samples there, and in its copies, or the next original learns them again",
        "lists of ids in other folders and in files other than .txt and .csv with one id per line, comparisons and tunings "
        "in other folders, copies of checkpoints, and backups",
    ]
    return Leftovers(tuple(found), tuple(elsewhere))


def purge(leftovers: Leftovers, workdir: Path) -> Path:
    """Removes what was found, and records it in the folder of the run.

    Returns:
        The path of the record: paths, reasons and digests, and the time of removal.

    Raises:
        OSError: if something cannot be removed; the record names what was removed.
    """
    ledger = epath.Path(workdir / LEDGER)
    now = datetime.now(UTC)
    if ledger.exists():  # an earlier one stays
        ledger = epath.Path(workdir / f"purged-{now:%Y%m%dT%H%M%S%f}.json")
    removed: list[dict[str, object]] = []
    try:
        for leftover in leftovers.found:
            path = epath.Path(leftover.path)
            if path.is_dir():
                path.rmtree()
            else:
                path.unlink()
            removed.append(asdict(leftover))
    finally:
        write_record(ledger, PURGED, {"created": now.isoformat(timespec="seconds"), "removed": removed})
    return Path(ledger)


def _within(folder: Path, unlearned: Metadata, only_version: str) -> Iterator[Leftover]:
    for path in sorted(folder.rglob("checkpoints/*")):
        if not path.is_dir():
            continue
        try:
            checkpoint = load_checkpoint(path)
        except (CheckpointError, OSError) as error:
            if not only_version:
                yield Leftover(str(path), f"a checkpoint that cannot be read ({str(error)[:80]})", _size(path))
            continue
        metadata = checkpoint.metadata
        if only_version and metadata.source_version != only_version:
            continue
        n_known = np.count_nonzero(~_forgot(metadata, unlearned))
        if n_known:
            reason = f"{metadata.kind} model that may have been trained on {n_known} of the forgotten samples"
            yield Leftover(str(path), reason, _size(path), checkpoint.digest)
    for name, reason in (
        ("progress", "unfinished models"),
        ("evidence", "model answers on each of the forgotten samples"),
    ):
        for path in sorted(folder.rglob(name)):
            in_scope = not only_version or _is_of(path.parent, only_version)
            if path.is_dir() and in_scope:
                yield Leftover(str(path), reason, _size(path))


def _lists_of_ids(folder: Path, unlearned: Metadata, removed: Sequence[Path]) -> Iterator[Leftover]:
    """The lists with one id per line that name forgotten samples in plain, except those inside what is removed."""
    forgotten = set(map(hashed_id, unlearned.forgotten_ids))
    for path in sorted([*folder.rglob("*.txt"), *folder.rglob("*.csv")]):
        inside = any(path.is_relative_to(other) for other in removed)
        if inside or not path.is_file() or path.stat().st_size > _LARGEST_LIST:
            continue
        lines = {line.strip() for line in path.read_text("utf-8-sig", errors="replace").splitlines()}
        n_named = sum(not is_hashed(line) and hashed_id(line) in forgotten for line in lines)
        if n_named:
            yield Leftover(str(path), f"a list of ids that names {n_named} of the forgotten samples", _size(path))


def _is_of(folder: Path, version: str) -> bool:
    """Whether the shared models of a folder belong to the given data."""
    config = folder / "config.json"
    return config.is_file() and version in config.read_text("utf-8")


def _forgot(metadata: Metadata, unlearned: Metadata) -> np.ndarray:
    """Which of the unlearned model's forgotten ids another model has also forgotten, or never seen."""
    own = set(map(hashed_id, metadata.forgotten_ids))
    return np.array([hashed_id(name) in own for name in unlearned.forgotten_ids], bool)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
