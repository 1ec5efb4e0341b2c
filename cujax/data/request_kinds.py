"""Deletion requests as data: what a person may ask to have forgotten."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cujax._ranges import Count, Label, ProportionBetween, Seed, check_fields

# What happens to samples outside the request that have the same pixels as one in it: they are forgotten with it, they are
# kept (then the model, and every retrained one, goes on training on these pixels), or the request is refused.
Copies = Literal["with", "keep", "refuse"]


@dataclass(frozen=True)
class ForgetClass:
    """Forget every training image of one class.

    Attributes:
        label: The class: its number, counted from 0, or its name. Where numbers are names, too, and differ, write
            label:2 or name:2.
        copies: What happens to images of other classes with the same pixels: forgotten with it, kept, or the request is
            refused.
    """

    label: Label | str = 5
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ForgetClasses:
    """Forget every training image of several classes.

    Attributes:
        labels: The classes: their numbers, counted from 0, or their names.
        copies: What happens to images of other classes with the same pixels: forgotten with them, kept, or the request is
            refused.
    """

    labels: tuple[Label | str, ...]
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.labels:
            raise ValueError("labels is empty; name the classes to forget.")


@dataclass(frozen=True)
class ForgetRandom:
    """Forget training images drawn at random; give either a count or a fraction.

    Attributes:
        count: How many.
        fraction: What fraction of the training part.
        seed: Seed of the draw.
        copies: What happens to images that were not drawn and have the same pixels as one that was: forgotten with it,
            kept, or the request is refused.
    """

    count: Count | None = None
    fraction: ProportionBetween | None = None
    seed: Seed = 0
    copies: Copies = field(default="with", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        if (self.count is None) == (self.fraction is None):
            raise ValueError(
                f"ForgetRandom takes either a count or a fraction, but count is {self.count} and fraction {self.fraction}."
            )
        check_fields(self)


@dataclass(frozen=True)
class ForgetIds:
    """Forget the images that a file names.

    Attributes:
        path: The file, in UTF-8: one id a line, or a .csv or .tsv with a header and a column id. An image of a folder may
            be given by its path.
        copies: What happens to images that are not listed and have the same pixels as one that is: forgotten with it,
            kept, or the request is refused.
    """

    path: str
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.path.strip():
            raise ValueError("path is empty; give a file with one id a line.")


@dataclass(frozen=True)
class ForgetSubject:
    """Forget every training sample of one subject: a person, a patient, a device. The data names the subject of each.

    Attributes:
        subject: The subject, as the data (`subjects` of a .npz file) writes it.
        copies: What happens to samples of other subjects with the same inputs: forgotten with it, kept, or the request is
            refused.
    """

    subject: str
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.subject.strip():
            raise ValueError("subject is empty; give a subject as the data writes it.")


@dataclass(frozen=True)
class ForgetWhere:
    """Forget the training images for which `predicate(id, label)` is true; from Python only.

    Attributes:
        predicate: Looks at one image's id and label. The ids it chooses are what is stored, not the predicate.
        copies: What happens to images that it does not choose and have the same pixels as one that it does: forgotten with
            it, kept, or the request is refused.
    """

    predicate: Callable[[str, int], bool]
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)


Request = ForgetClass | ForgetClasses | ForgetRandom | ForgetIds | ForgetSubject | ForgetWhere
