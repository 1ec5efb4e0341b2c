"""The ledger of deletion requests: the chain of models from the original to a checkpoint, verified link by link."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from etils.epath import Path

from cujax.data.requests import ids_digest
from cujax.storage.checkpoints import Ancestor, Checkpoint, CheckpointError, load_checkpoint
from cujax.storage.records import RecordError
from cujax.storage.verdicts import load_verdict


def request_words(described: str, class_names: Sequence[str] = ()) -> str:
    """A request in words for users, from the form in which a checkpoint stores it; other kinds are returned unchanged.

    Args:
        described: A stored request, such as "ForgetClass(label=5)".
        class_names: Class names by label; without them, only labels are given.

    >>> request_words("ForgetClass(label=1)", ["cat", "dog"])
    "class 1 ('dog')"
    >>> request_words("ForgetClasses(labels=[3, 5])")
    'classes 3, 5'
    >>> request_words("ForgetRandom(fraction=0.1, seed=0)")
    '10 % of the training samples, drawn at random with seed 0'
    """
    if classes := re.fullmatch(r"ForgetClass(?:es)?\(labels?=([\[\](), \d]+)\)", described):
        labels = [int(label) for label in re.findall(r"\d+", classes[1])]
        names = [f"{label} ('{class_names[label]}')" if label < len(class_names) else str(label) for label in labels]
        return f"{'class' if len(labels) == 1 else 'classes'} {', '.join(names)}"
    if drawn := re.fullmatch(r"ForgetRandom\((count|fraction)=([\d.e-]+), seed=(\d+)\)", described):
        amount = drawn[2] if drawn[1] == "count" else f"{100 * float(drawn[2]):.4g} % of the"
        return f"{amount} training samples, drawn at random with seed {drawn[3]}"
    if listed := re.fullmatch(r"ForgetIds\(path=(.*)\)", described):
        return f"the training samples listed in {listed[1]}"
    return described


@dataclass(frozen=True)
class Deletion:
    """One request that was carried out on a model or on an ancestor of it.

    Attributes:
        request: The request in words.
        method: The method; "" for a model that was retrained.
        created: When it was carried out, in UTC.
        ids: The ids of the request.
    """

    request: str
    method: str
    created: str
    ids: tuple[str, ...]


def deletions(checkpoint: Checkpoint) -> tuple[Deletion, ...]:
    """The requests that were carried out on a checkpoint, in order."""
    found, before = [], 0
    for model in (*checkpoint.metadata.lineage, checkpoint.as_ancestor()):
        if model.n_forgotten > before:
            ids = checkpoint.metadata.forgotten_ids[before : model.n_forgotten]
            found.append(Deletion(request_words(model.request), model.method, model.created, ids))
            before = model.n_forgotten
    return tuple(found)


@dataclass(frozen=True)
class Link:
    """One model of a chain.

    Attributes:
        model: What its descendants, or the model itself, record about it.
        path: The expected path of its checkpoint.
        verified: Whether its arrays and metadata were read and match the digest; False if it does not exist.
        problem: What is wrong; "" if nothing is.
        verdict: The word of the last audit's verdict; "" if there was none.
    """

    model: Ancestor
    path: Path | None
    verified: bool
    problem: str = ""
    verdict: str = ""


def verify_lineage(directory: str | PathLike[str]) -> list[Link]:
    """Verifies a checkpoint, what it records about its ancestors, and their checkpoints if they are found.

    A parent is searched for where the run that made the child found it: at the given path, or next to the child.

    Returns:
        The chain, the original first.

    Raises:
        FileNotFoundError: if the directory does not exist.
        CheckpointError: if the checkpoint itself is damaged, so that its record of its ancestors is not valid.
    """
    path: Path | None = Path(directory)
    checkpoint = load_checkpoint(directory)
    chain, ids = (*checkpoint.metadata.lineage, checkpoint.as_ancestor()), checkpoint.metadata.forgotten_ids
    links: list[Link] = []
    for model in reversed(chain):
        problem, found = "", None
        if ids_digest(ids[: model.n_forgotten]) != model.forgotten_digest:
            problem = "the ids it forgot are not the first of those that its descendant forgot"
        elif path is not None and path.is_dir():
            try:
                found = load_checkpoint(path)
                if found.digest != model.digest:
                    problem, found = f"there is another model there: {found.digest[:12]}", None
            except CheckpointError as error:
                problem = str(error)
        verdict = None
        if path is not None and found is not None:
            try:
                verdict = load_verdict(path, found.digest)
            except RecordError as error:
                problem = str(error)
        links.append(Link(model, path, found is not None, problem, verdict["word"] if verdict else ""))
        path = _parent_of(path, found)
    return links[::-1]


def _parent_of(path: Path | None, checkpoint: Checkpoint | None) -> Path | None:
    if path is None or checkpoint is None:
        return None
    given = checkpoint.metadata.config.get("original")
    return path.parent / "original" if given is None else Path(given).expanduser()


def describe_lineage(checkpoint: Checkpoint) -> str:
    """The chain from the original to this checkpoint, one line each."""
    lines = []
    for depth, model in enumerate((*checkpoint.metadata.lineage, checkpoint.as_ancestor())):
        request = f"forgot {request_words(model.request)}" if model.request else "nothing forgotten"
        lines.append(
            f"{'  ' * depth}{model.kind} {model.digest[:12]}: {request} ({model.n_forgotten} ids in all, "
            f"digest {model.forgotten_digest[:12]})"
        )
    return "\n".join(lines)
