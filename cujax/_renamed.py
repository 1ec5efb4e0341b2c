"""Old names that keep working, with a warning, for one release after they were changed."""

import warnings
from typing import Any


class _NotGiven:
    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN: Any = _NotGiven()


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warns that a name has changed and that the old name will be removed in the next release."""
    message = f"{old} is now {new}; the old name will be removed in the next release."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def as_inputs(where: str, inputs: Any, images: Any) -> Any:
    """The argument given as `inputs`, or under its old name `images`, with a warning.

    Raises:
        TypeError: if neither was given.
    """
    if images is not NOT_GIVEN:
        warn_renamed(f"{where}(images=...)", f"{where}(inputs=...)", stacklevel=4)
        return images
    if inputs is NOT_GIVEN:
        raise TypeError(f"{where} needs inputs: a pytree of arrays with a leading row axis.")
    return inputs
