"""What docstrings say, apart from what Python writes itself."""

import dataclasses
import inspect
import re


def written(thing):
    """The docstring that somebody wrote; dataclasses without one are given their signature, and inherit nothing here."""
    doc = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    if not doc:
        return ""
    if dataclasses.is_dataclass(thing) and re.fullmatch(rf"{thing.__name__}\(.*\)", doc, re.DOTALL):
        return ""
    return inspect.cleandoc(doc)


def attributes(kind):
    """The names with an entry of their own under "Attributes:", of a class and those that it inherits from."""
    names = set()
    for cls in kind.__mro__:
        _, _, section = written(cls).partition("\nAttributes:\n")
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break  # another section
            names |= set(re.findall(r"^    (\w+): \S", line))
    return names
