"""The verdict on a model, stored in its checkpoint: written after the audit, bound to the checkpoint by its digest."""

from typing import Any

from etils.epath import Path

from cujax.storage.records import Kind, read_record, write_record

VERDICT = Kind("verdict", schema=1)
_NAME = "verdict.json"


def save_verdict(checkpoint: Path, digest: str, verdict: dict[str, Any]) -> None:
    """Stores a verdict in the folder of a checkpoint; that of a later audit replaces an earlier one.

    Args:
        checkpoint: The folder.
        digest: The digest of the checkpoint that was judged.
        verdict: Plain data, with its "word".
    """
    write_record(checkpoint / _NAME, VERDICT, {"checkpoint": digest, "verdict": verdict})


def load_verdict(checkpoint: Path, digest: str) -> dict[str, Any] | None:
    """The stored verdict; None if the model was not judged, or if the verdict is on another model.

    Raises:
        RecordError: if it is damaged.
    """
    path = checkpoint / _NAME
    if not path.is_file():
        return None
    found = read_record(path, VERDICT)
    return found["verdict"] if found is not None and found["checkpoint"] == digest else None
