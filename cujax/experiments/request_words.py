"""Deletion requests as words, for command lines, file names and reports."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

from cujax.data.request_kinds import Copies
from cujax.data.requests import ForgetClass, ForgetClasses, ForgetIds, ForgetRandom, ForgetSubject, Request
from cujax.experiments.identity import describe


def describe_request(request: Request) -> str:
    """A request in a few words, such as "ForgetClass(label=5)"."""
    parts = {name: value for name, value in describe(request, of_0_1=True).items() if name != "type" and value is not None}
    return f"{type(request).__name__}({', '.join(f'{name}={value}' for name, value in parts.items())})"


def class_labels(request: Request) -> list[int]:
    """The classes that a request names by number, in order; none if it names samples."""
    match request:
        case ForgetClass(label):
            return [int(label)]
        case ForgetClasses(labels):
            return sorted(set(map(int, labels)))
    return []


def request_title(request: Request, class_names: Sequence[str] | Mapping[int, str]) -> str:
    """A request as a heading.

    >>> request_title(ForgetClass(1), ["cat", "dog"])
    "forget class 1 ('dog')"
    >>> request_title(ForgetRandom(fraction=0.1), [])
    'forget 10 % of the training samples, drawn at random with seed 0'
    """
    labels = class_labels(request)
    if labels:
        return f"forget {'class' if len(labels) == 1 else 'classes'} " + ", ".join(
            f"{label} ('{class_names[label]}')" for label in labels
        )
    match request:
        case ForgetRandom(count, fraction, seed):
            amount = str(count) if fraction is None else f"{100 * fraction:.4g} % of the"
            return f"forget {amount} training samples, drawn at random with seed {seed}"
        case ForgetIds(path):
            return f"forget the training samples listed in {path}"
        case ForgetSubject(subject):
            return f"forget all training samples of subject {subject!r}"
    return "forget the training samples that a predicate selects"


def request_in_words(request: Request) -> str:
    """A request as one word for `parse_request`, such as "class:5", "classes:3,5", "random:0.1" or "ids:PATH".

    Raises:
        ValueError: for a predicate, which is code.
    """
    return _without_copies(request) + f"+{request.copies}" * (request.copies != _DEFAULT_COPIES[type(request)])


_DEFAULT_COPIES = {kind: kind.__dataclass_fields__["copies"].default for kind in get_args(Request)}


def _without_copies(request: Request) -> str:
    match request:
        case ForgetClass(label):
            return f"class:{label}"
        case ForgetClasses(labels):
            return f"classes:{','.join(map(str, labels))}"
        case ForgetRandom(count, fraction, seed):
            return f"random:{fraction if count is None else count}" + f"@{seed}" * bool(seed)
        case ForgetIds(path):
            return f"ids:{path}"
        case ForgetSubject(subject):
            return f"subject:{subject}"
    raise ValueError("a request by predicate cannot be written as a word; write its ids to a file and give ids:PATH.")


def parse_request(word: str) -> Request:
    """The request that a word describes.

    A word is class:LABEL, classes:LABEL,LABEL, random:FRACTION, random:COUNT, ids:PATH or subject:SUBJECT.

    A fraction or count may be followed by the seed of the draw: random:0.1@3. The word may end with what to do with other
    images that have the same pixels as one in the request: +with, +keep or +refuse.

    Raises:
        ValueError: if it does not describe a request.

    >>> parse_request("random:0.1@3")
    ForgetRandom(count=None, fraction=0.1, seed=3, copies='with')
    """
    for copies in get_args(Copies):
        if word.endswith(f"+{copies}"):
            return replace(parse_request(word.removesuffix(f"+{copies}")), copies=copies)
    kind, _, value = word.partition(":")
    try:
        match kind:
            case "class":
                return ForgetClass(_label(value))
            case "classes":
                return ForgetClasses(tuple(map(_label, value.split(","))))
            case "random":
                amount, _, seed = value.partition("@")
                if amount.isdecimal():
                    return ForgetRandom(count=int(amount), seed=int(seed or 0))
                return ForgetRandom(fraction=float(amount), seed=int(seed or 0))
            case "ids" if value:
                return ForgetIds(value)
            case "subject" if value:
                return ForgetSubject(value)
    except ValueError as error:
        raise ValueError(f"request {word!r} cannot be understood: {error}") from error
    raise ValueError(
        f"request {word!r} cannot be understood; give class:LABEL, classes:LABEL,LABEL, random:FRACTION, random:COUNT, "
        "ids:PATH or subject:SUBJECT."
    )


def _label(text: str) -> int | str:
    """A class by number, or by name."""
    text = text.strip()
    if not text:
        raise ValueError("it names no class")
    return int(text) if text.lstrip("-").isdecimal() and text.isascii() else text
