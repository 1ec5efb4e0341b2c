"""Deletion requests as data: what a request may name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cujax._ranges import Count, Label, ProportionBetween, Seed, check_fields

# What happens to samples outside the request that have the same pixels as one in it: they are added to the request, they
# are kept (then the model, and every retrained model, continues to train on these pixels), or the request is rejected.
Copies = Literal["with", "keep", "refuse"]


@dataclass(frozen=True)
class ForgetClass:
    """Forget every training image of one class.

    Attributes:
        label: The class: its number, counted from 0, or its name. If the names are numbers too, write label:2 for the class
            with number 2, or name:2 for the class named 2.
        copies: What to do with images of other classes that have the same pixels as one in the request: forget them
            too ("with"), keep them, or refuse the request.
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
        copies: What to do with images of other classes that have the same pixels as one in the request: forget them
            too ("with"), keep them, or refuse the request.
    """

    labels: tuple[Label | str, ...]
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.labels:
            raise ValueError("labels is empty; name the classes to forget.")


@dataclass(frozen=True)
class ForgetRandom:
    """Forget training images that are drawn at random; give either a count or a fraction.

    Attributes:
        count: The number of images.
        fraction: The fraction of the training images.
        seed: Seed of the random draw.
        copies: What to do with images that were not drawn, but have the same pixels as one that was: forget them
            too ("with"), keep them, or refuse the request.
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
        path: The file, in UTF-8: a text file with one id per line, a .csv or .tsv file with a column named id, or a .json
            file with a list of ids. An image in a folder may be given by its path.
        copies: What to do with images that are not listed, but have the same pixels as one that is: forget them
            too ("with"), keep them, or refuse the request.
    """

    path: str
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.path.strip():
            raise ValueError("path is empty; give a file with one id per line.")


@dataclass(frozen=True)
class ForgetSubject:
    """Forget every training sample of one subject, such as a person or a device. The data must name each sample's subject.

    Attributes:
        subject: The subject, as it is written in the data (the array `subjects` of an .npz file).
        copies: What to do with samples of other subjects that have the same inputs: forget them too ("with"), keep them, or
            refuse the request.
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
        predicate: Takes one image's id and label. The ids it chooses are stored, not the predicate.
        copies: What to do with images that the predicate does not choose, but that have the same pixels as one that it does:
            forget them too ("with"), keep them, or refuse the request.
    """

    predicate: Callable[[str, int], bool]
    copies: Copies = field(default="refuse", metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        check_fields(self)


Request = ForgetClass | ForgetClasses | ForgetRandom | ForgetIds | ForgetSubject | ForgetWhere
