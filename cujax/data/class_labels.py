"""Classes by number or by name."""

from collections.abc import Iterable, Sequence


def with_names(labels: Iterable[int], names: Sequence[str]) -> str:
    """Classes by number and by name, for messages.

    >>> with_names([1, 0], ["cat", "dog"])
    "1 ('dog'), 0 ('cat')"
    """
    return ", ".join(f"{label} ({names[label]!r})" for label in labels)


def label_of(label: int | str, names: Sequence[str], where: str) -> int:
    """The number of a class.

    Args:
        label: Its number, counted from 0, or its name; label:NUMBER or name:NAME if numbers are also names.
        names: The name of each class.
        where: The data set, for messages.

    Raises:
        ValueError: if there is no such class, or the number of one class is the name of another.

    >>> label_of("dog", ["cat", "dog"], "pets"), label_of(0, ["cat", "dog"], "pets")
    (1, 0)
    """
    text = str(label).strip()
    if not text:
        raise ValueError(f"the class of {where} to forget is empty; give its number or its name.")
    kind, _, rest = text.partition(":")
    explicit = kind in ("label", "name") and bool(rest) and text not in names
    text = rest if explicit else text
    number = int(text) if text.isdecimal() and text.isascii() else None
    by_number = number if number is not None and number < len(names) and (not explicit or kind == "label") else None
    by_name = None if explicit and kind == "label" else _named(names, text, number)
    if by_number is not None and by_name is not None and by_number != by_name:
        raise ValueError(
            f"class {text} of {where} may mean number {text}, which is named {names[by_number]!r}, or the one named "
            f"{names[by_name]!r}, which has number {by_name}; write label:{text} or name:{text}."
        )
    found = by_number if by_name is None else by_name
    if found is None:
        shown = ", ".join(f"{number} ({name})" for number, name in enumerate(names[:20]))
        raise ValueError(
            f"class {label} does not exist: {where} has the {len(names)} classes {shown}"
            f"{', ...' if len(names) > 20 else ''}."
        )
    return found


def _named(names: Sequence[str], text: str, number: int | None) -> int | None:
    """The class with a name: as written, or, if this gives exactly one class, with other case or leading zeros."""
    if text in names:
        return names.index(text)
    if number is not None:
        alike = [label for label, name in enumerate(names) if name.isdecimal() and int(name) == number]
    else:
        alike = [label for label, name in enumerate(names) if name.casefold() == text.casefold()]
    return alike[0] if len(alike) == 1 else None
