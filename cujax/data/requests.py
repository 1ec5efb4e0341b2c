"""What to forget: deletion requests as data, and the split of a source that each request makes."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cujax._ranges import Count, Label, ProportionBetween, Seed, check_fields
from cujax.data.images import Images, Source

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class ForgetClass:
    """Forget every training image of one class.

    Attributes:
        label: The class, counted from 0.
    """

    label: Label = 5

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ForgetClasses:
    """Forget every training image of several classes.

    Attributes:
        labels: The classes, counted from 0.
    """

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ForgetRandom:
    """Forget training images drawn at random; give either a count or a fraction.

    Attributes:
        count: How many.
        fraction: What fraction of the training part.
        seed: Seed of the draw.
    """

    count: Count | None = None
    fraction: ProportionBetween | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        if (self.count is None) == (self.fraction is None):
            raise ValueError(
                f"ForgetRandom takes either a count or a fraction, but count is {self.count} and fraction {self.fraction}."
            )
        check_fields(self)


@dataclass(frozen=True)
class ForgetIds:
    """Forget the images that a text file names.

    Attributes:
        path: The file: one id a line; empty lines are passed over.
    """

    path: str


@dataclass(frozen=True)
class ForgetWhere:
    """Forget the training images for which `predicate(id, label)` is true; from Python only.

    Attributes:
        predicate: Looks at one image's id and label. The ids it chooses are what is stored, not the predicate.
    """

    predicate: Callable[[str, int], bool]


Request = ForgetClass | ForgetClasses | ForgetRandom | ForgetIds | ForgetWhere


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a source.

    Attributes:
        indices: `[n]` int32, ascending: rows of `source.train` (for the test part, of `source.test`).
        ids: `[n]` str, their ids.
    """

    indices: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class Split:
    """A source divided by a request. The first three and the last are disjoint and together the training images.

    Attributes:
        forget: To be forgotten now.
        retain: To be kept; what a retrained model sees.
        validation: A tenth of each class, which no model trains on: it decides when to stop.
        test: The test images; only reports read them.
        previously_forgotten: Forgotten by earlier requests; no model sees them again.
        forgotten_classes: The classes of the forget set of which nothing is retained. Validation and test rows of
            them are there to see that the class is gone.
        absent_classes: All classes of which nothing is retained, earlier requests included.
    """

    forget: Part
    retain: Part
    validation: Part
    test: Part
    previously_forgotten: Part
    forgotten_classes: tuple[int, ...]
    absent_classes: tuple[int, ...]

    @property
    def is_class_task(self) -> bool:
        """Whether whole classes are forgotten, rather than samples of classes that stay."""
        return bool(self.forgotten_classes)

    @property
    def digest(self) -> str:
        """The digest of the ids to forget."""
        return ids_digest(self.forget.ids.tolist())


def ids_digest(ids: Iterable[str]) -> str:
    r"""SHA-256, in hex, over the ids in UTF-8, sorted bytewise and joined by newlines: their order does not matter.

    >>> ids_digest(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()
    True
    """
    return hashlib.sha256(b"\n".join(sorted(name.encode() for name in ids))).hexdigest()


def make_split(source: Source, request: Request, previously_forgotten_ids: Sequence[str] = ()) -> Split:
    """Divides a source by a deletion request.

    Validation is the tenth of each class whose ids have the lowest SHA-256, so it depends on the data alone: it is the
    same for every request and seed, whatever the order of the rows.

    Args:
        source: The data set.
        request: What to forget.
        previously_forgotten_ids: What earlier requests, on the model at hand, made it forget.

    Raises:
        ValueError: if the request names a class or ids that do not exist, ids that are in the validation part or
            forgotten already, or leaves nothing to forget or nothing to retain.
        FileNotFoundError: if the file of ids is not there.
    """
    train = source.train
    is_previous = np.isin(train.ids, np.array(list(previously_forgotten_ids), dtype=str))
    is_validation = np.zeros(len(train), bool)
    is_validation[_validation_rows(train)] = True
    is_validation &= ~is_previous
    unknown = set(previously_forgotten_ids) - set(train.ids[is_previous].tolist())
    if unknown:
        raise ValueError(
            f"{len(unknown)} ids that the model forgot earlier are not in {source.name}, such as {sorted(unknown)[:5]}; "
            "give the data (source, limit) that the model was trained on."
        )
    available = ~is_validation & ~is_previous
    is_forget = np.zeros(len(train), bool)
    is_forget[_resolve(request, source, available, is_validation, is_previous)] = True
    is_retain = available & ~is_forget
    if not is_forget.any():
        raise ValueError(f"{request} selects no training image of {source.name}; there is nothing to forget.")
    if not is_retain.any():
        raise ValueError(f"{request} selects all {is_forget.sum()} training images; nothing would be retained.")

    absent = np.setdiff1d(train.labels, train.labels[is_retain])
    forgotten = np.unique(train.labels[is_forget])
    whole_classes = bool(np.isin(forgotten, absent).all())

    def part(images: Images, rows: np.ndarray) -> Part:
        indices = np.flatnonzero(rows).astype(np.int32)
        return Part(indices, images.ids[indices])

    return Split(
        forget=part(train, is_forget),
        retain=part(train, is_retain),
        validation=part(train, is_validation),
        test=part(source.test, np.ones(len(source.test), bool)),
        previously_forgotten=part(train, is_previous),
        forgotten_classes=tuple(forgotten.tolist()) if whole_classes else (),
        absent_classes=tuple(absent.tolist()),
    )


def _validation_rows(train: Images) -> np.ndarray:
    digests = np.array([hashlib.sha256(name.encode()).hexdigest() for name in train.ids.tolist()])
    chosen = []
    for label in np.unique(train.labels):
        rows = np.flatnonzero(train.labels == label)
        chosen.append(rows[np.argsort(digests[rows])[: round(VALIDATION_FRACTION * len(rows))]])
    return np.concatenate(chosen)


def _resolve(
    request: Request,
    source: Source,
    available: np.ndarray,
    is_validation: np.ndarray,
    is_previous: np.ndarray,
) -> np.ndarray:
    """The rows of `source.train` that a request selects among the available ones."""
    train = source.train
    match request:
        case ForgetClass(label):
            return _rows_of_classes(source, (label,), available)
        case ForgetClasses(labels):
            return _rows_of_classes(source, labels, available)
        case ForgetRandom(count, fraction, seed):
            rows = np.flatnonzero(available)
            wanted = count if count is not None else round(fraction * len(rows))  # type: ignore[operator]
            if wanted > len(rows):
                raise ValueError(f"count is {wanted}, but only {len(rows)} training images can be forgotten.")
            return np.random.default_rng(seed).choice(rows, size=wanted, replace=False)
        case ForgetIds(path):
            return _rows_of_ids(source, Path(path).expanduser(), is_validation, is_previous)
        case ForgetWhere(predicate):
            chosen = [predicate(*row) for row in zip(train.ids.tolist(), train.labels.tolist(), strict=True)]
            return np.flatnonzero(available & np.array(chosen, bool))


def _rows_of_classes(source: Source, labels: Sequence[int], available: np.ndarray) -> np.ndarray:
    for label in labels:
        if not 0 <= label < source.num_classes:
            names = ", ".join(f"{number} ({name})" for number, name in enumerate(source.class_names[:20]))
            raise ValueError(
                f"class {label} does not exist: {source.name} has the {source.num_classes} classes {names}"
                f"{', ...' if source.num_classes > 20 else ''}."
            )
    rows = np.flatnonzero(np.isin(source.train.labels, labels) & available)
    if not len(rows):
        raise ValueError(
            f"no training image of class {', '.join(map(str, labels))} is left in {source.name}: earlier requests, or "
            "the limit, left none; there is nothing to forget."
        )
    return rows


def _rows_of_ids(source: Source, path: Path, is_validation: np.ndarray, is_previous: np.ndarray) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"file of ids {path} does not exist; write one id a line.")
    wanted = list(dict.fromkeys(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()))
    row_of = {name: row for row, name in enumerate(source.train.ids.tolist())}
    unknown = [name for name in wanted if name not in row_of]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the {len(wanted)} ids in {path} do not exist in {source.name}: {unknown[:5]}; its ids "
            f"look like {source.train.ids[0]!r}."
        )
    rows = np.array([row_of[name] for name in wanted], int)
    for selected, why in (
        (
            is_validation,
            "are validation images, which the model was not trained on: there is nothing to forget",
        ),
        (is_previous, "were forgotten by an earlier request"),
    ):
        names = source.train.ids[rows[selected[rows]]].tolist()
        if names:
            raise ValueError(f"{len(names)} of the ids in {path} {why}: {names[:5]}; take them off the list.")
    return rows


def check_held_out(source: Source, split: Split) -> None:
    """Raises ValueError if no validation or no test sample of the retained classes is left."""
    for name, labels in (
        ("validation", source.train.labels[split.validation.indices]),
        ("test", source.test.labels[split.test.indices]),
    ):
        if np.isin(labels, split.absent_classes).all():
            raise ValueError(
                f"{source.name} has no {name} sample of the retained classes, so nothing shows whether they are kept; give "
                "more images: a class needs 6 training images for one of validation, and test images of its own."
            )


def check_whole_classes(split: Split, what: str) -> None:
    """Raises ValueError, saying what a method does to whole classes, where samples are forgotten rather than classes."""
    if not split.is_class_task:
        raise ValueError(
            f"{what} whole classes, but the request is for samples of classes that stay; choose another method."
        )
