"""What to forget: deletion requests as data, and the split of a source that each request makes."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cujax.data.class_labels import label_of, with_names
from cujax.data.held_out import Validation, validation_rows
from cujax.data.id_lists import hashed_id, is_among, rows_of_file
from cujax.data.images import Images, Source
from cujax.data.request_kinds import (
    ForgetClass,
    ForgetClasses,
    ForgetIds,
    ForgetRandom,
    ForgetSubject,
    ForgetWhere,
    Request,
)


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
        forget: The forget set of this request.
        retain: The retain set, on which retrained models are trained.
        validation: A held-out tenth of each class, on which no model trains: it decides when to stop.
        test: The test images; only reports use them.
        previously_forgotten: Samples of earlier requests, which are not used again.
        forgotten_classes: The classes of the forget set of which no samples are retained. Their validation and test rows
            are used to check whether the class is gone.
        absent_classes: All classes of which no samples are retained, including those of earlier requests.
        retained_classes: The classes of the retain set.
        copies: Training images outside the request with the same pixels as one in it: in the forget set with "with", in
            the retain set with "keep".
    """

    forget: Part
    retain: Part
    validation: Part
    test: Part
    previously_forgotten: Part
    forgotten_classes: tuple[int, ...]
    absent_classes: tuple[int, ...]
    retained_classes: tuple[int, ...] = ()
    copies: Part = field(default_factory=lambda: Part(np.array([], np.int32), np.array([], str)))
    copies_in_test: Part = field(default_factory=lambda: Part(np.array([], np.int32), np.array([], str)))

    @property
    def is_class_task(self) -> bool:
        """Whether the request is for whole classes, not for samples of retained classes."""
        return bool(self.forgotten_classes)

    @property
    def task(self) -> Literal["class", "samples"]:
        """What is forgotten, as settings and key metrics name it."""
        return "class" if self.is_class_task else "samples"

    def divided(self, labels: np.ndarray) -> "tuple[Split, ...]":
        """One split for whole classes and one for samples of retained classes; usually only this split.

        Args:
            labels: `[n]` integer, of all training images.
        """
        of_forget = labels[self.forget.indices]
        whole = np.isin(of_forget, self.absent_classes)
        if whole.all() or not whole.any():
            return (self,)

        def with_forget(rows: np.ndarray, classes: tuple[int, ...]) -> Split:
            part = Part(self.forget.indices[rows], self.forget.ids[rows])
            return replace(self, forget=part, forgotten_classes=classes)

        return with_forget(whole, tuple(np.unique(of_forget[whole]).tolist())), with_forget(~whole, ())

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


def make_split(
    source: Source,
    request: Request,
    previously_forgotten_ids: Sequence[str] = (),
    validation: Validation = "tenth",
) -> Split:
    """Divides a source by a deletion request.

    The validation set is the tenth of each class whose ids have the lowest SHA-256. It depends only on the data: it is the
    same for every request and seed, whatever the order of the rows.

    Args:
        source: The data set.
        request: What to forget.
        previously_forgotten_ids: The ids of earlier requests to this model.
        validation: "tenth", or another fraction; or, for an imported model, "none" or the images that it has not seen: a
            file that names them, or their rows.

    Raises:
        ValueError: if the request names a class or ids that do not exist, or ids that are in the validation part or already
            forgotten; if it leaves nothing to forget or nothing to retain; or if there are copies of its images in the
            retain set and `copies` is "refuse".
        FileNotFoundError: if the file of ids does not exist.
    """
    train = source.train
    is_previous = is_among(train.ids, previously_forgotten_ids)
    is_validation = np.zeros(len(train), bool)
    is_validation[validation_rows(source, validation)] = True
    is_validation &= ~is_previous
    previous = train.ids[is_previous].tolist()
    unknown = set(previously_forgotten_ids) - {*previous, *map(hashed_id, previous)}
    if unknown:
        raise ValueError(
            f"{len(unknown)} ids that the model forgot earlier are not in {source.name}, such as {sorted(unknown)[:5]}; "
            "give the data (source, limit) that the model was trained on."
        )
    available = ~is_validation & ~is_previous
    is_forget = np.zeros(len(train), bool)
    is_forget[_resolve(request, source, available, is_validation, is_previous)] = True
    if not is_forget.any():
        raise ValueError(f"{request} selects no training image of {source.name}; there is nothing to forget.")
    requested = train.pixel_digests[is_forget]
    copies = np.flatnonzero(available & ~is_forget & _is_copy(train, requested)).astype(np.int32)
    if len(copies) and request.copies == "refuse":
        raise ValueError(
            f"{len(copies)} images that would be retained have the same pixels as one in the request, such as "
            f"{train.ids[copies[0]]}: the model, and every retrained one, would continue to train on them. Forget them too "
            'with --forget.copies with (copies="with"), or keep them with --forget.copies keep (copies="keep").'
        )
    is_forget[copies] = request.copies == "with"
    is_retain = available & ~is_forget
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
        retained_classes=tuple(np.unique(train.labels[is_retain]).tolist()),
        copies=Part(copies, train.ids[copies]),
        copies_in_test=part(source.test, _is_copy(source.test, requested)),
    )


def _is_copy(images: Images, requested: np.ndarray) -> np.ndarray:
    """`[n]` bool: the images with one of the requested digests.

    Images of a single colour are not copies of each other: they show nothing that could belong to a person.
    """
    digests = images.pixel_digests
    return (digests != "") & np.isin(digests, requested)


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
        case ForgetClass() | ForgetClasses():
            return _rows_of_classes(source, named_labels(source, request), available)
        case ForgetRandom(count, fraction, seed):
            rows = np.flatnonzero(available)
            wanted = count if count is not None else round(fraction * len(rows))  # type: ignore[operator]
            if wanted > len(rows):
                raise ValueError(f"count is {wanted}, but only {len(rows)} training images can be forgotten.")
            return np.random.default_rng(seed).choice(rows, size=wanted, replace=False)
        case ForgetIds(path):
            return _rows_of_ids(source, Path(path).expanduser(), is_validation, is_previous)
        case ForgetSubject(subject):
            return _rows_of_subject(source, subject, available, is_validation)
        case ForgetWhere(predicate):
            chosen = [predicate(*row) for row in zip(train.ids.tolist(), train.labels.tolist(), strict=True)]
            return np.flatnonzero(available & np.array(chosen, bool))


def with_numbers[Kind: Request](request: Kind, source: Source) -> Kind:
    """The request with its classes given by number, so that all ways of writing it are equal.

    Raises:
        ValueError: if a class does not exist, or a number is ambiguous.
    """
    if isinstance(request, ForgetClass):
        return replace(request, label=named_labels(source, request)[0])
    if isinstance(request, ForgetClasses):
        return replace(request, labels=tuple(sorted(set(named_labels(source, request)))))
    return request


def named_labels(source: Source, request: ForgetClass | ForgetClasses) -> tuple[int, ...]:
    """The numbers of the classes that a request names."""
    labels = (request.label,) if isinstance(request, ForgetClass) else request.labels
    return tuple(label_of(label, source.class_names, source.name) for label in labels)


def _rows_of_classes(source: Source, labels: Sequence[int], available: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(np.isin(source.train.labels, labels) & available)
    if not len(rows):
        raise ValueError(
            f"no training image of class {with_names(labels, source.class_names)} is left in {source.name} after earlier "
            "requests and the limit; there is nothing to forget."
        )
    return rows


def _rows_of_subject(source: Source, subject: str, available: np.ndarray, is_validation: np.ndarray) -> np.ndarray:
    subjects = source.train.subjects
    if subjects is None:
        raise ValueError(
            f"{source.name} does not name the subject of each sample; add an array of subjects, or forget the samples by "
            "their ids."
        )
    of_subject = subjects == subject
    if (of_subject & is_validation).any():
        raise ValueError(
            f"samples of subject {subject!r} are validation samples, on which no model is trained here; there is nothing to "
            "forget. If the model is imported and was trained on them, give --no-validation."
        )
    if source.test.subjects is not None and not of_subject.any() and (source.test.subjects == subject).any():
        raise ValueError(
            f"all samples of subject {subject!r} are test samples, on which no model is trained: there is nothing to forget."
        )
    if not (of_subject & available).any():
        some = ", ".join(np.unique(subjects)[:5].tolist())
        raise ValueError(f"no training sample of subject {subject!r} is in {source.name}, whose subjects are {some}, ...")
    return np.flatnonzero(of_subject & available)


def _rows_of_ids(source: Source, path: Path, is_validation: np.ndarray, is_previous: np.ndarray) -> np.ndarray:
    rows = rows_of_file(path, source)
    for selected, why in (
        (
            is_validation,
            "are validation images, on which no model is trained here: there is nothing to forget. Remove them from the "
            "list; if the model is imported and was trained on them, give --no-validation, or --validation-ids FILE with "
            "the images that it has not seen:",
        ),
        (is_previous, "were forgotten by an earlier request; remove them from the list:"),
    ):
        names = source.train.ids[rows[selected[rows]]].tolist()
        if names:
            raise ValueError(f"{len(names)} of the ids in {path} {why} {', '.join(names[:5])}.")
    return rows


def check_held_out(source: Source, split: Split, *, needs_validation: bool = True) -> None:
    """Raises ValueError if the retained classes have no test samples, or no validation samples where these are needed."""
    for name, labels in (
        ("validation", source.train.labels[split.validation.indices]),
        ("test", source.test.labels[split.test.indices]),
    ):
        if (needs_validation or name == "test") and np.isin(labels, split.absent_classes).all():
            raise ValueError(
                f"{source.name} has no {name} sample of the retained classes, so a loss of accuracy on these classes would "
                "not be noticed. Give more images: a class needs at least 6 training images for one validation image, and "
                "test images of its own."
            )


def check_whole_classes(split: Split, what: str) -> None:
    """Raises ValueError, naming what a method does to whole classes, if the request is for samples."""
    if not split.is_class_task:
        raise ValueError(f"{what} whole classes, but the request is for samples of retained classes; choose another method.")
