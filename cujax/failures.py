"""Lets a part fail without the whole: the value of a computation, or the reason why there is none."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """The reason why there is no value."""

    reason: str


def attempt[Value](compute: Callable[[], Value], *, expected: tuple[type[Exception], ...] = ()) -> Value | Failure:
    """Returns the result of `compute`, or its failure. Interruptions are not failures and are raised.

    Args:
        compute: Called once.
        expected: Exceptions whose message alone is the reason; for others, the type is named too.
    """
    try:
        return compute()
    except expected as reason:
        return Failure(str(reason))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}")
