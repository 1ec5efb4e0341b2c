"""One way to let a part fail without the whole: the value of a computation, or why there is none."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Why there is no value."""

    reason: str


def attempt[Value](compute: Callable[[], Value], *, expected: tuple[type[Exception], ...] = ()) -> Value | Failure:
    """What `compute` gives, or its failure. Interruptions are no failures: they pass.

    Args:
        compute: Called once.
        expected: Exceptions whose message is the reason as it is; of others the type is named, too.
    """
    try:
        return compute()
    except expected as reason:
        return Failure(str(reason))
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}")
