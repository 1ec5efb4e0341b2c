"""The ranges of numbers that a user sets, declared in the type of each field and checked when the dataclass is created.

    @dataclass(frozen=True)
    class Recipe:
        epochs: Count = 20
        learning_rate: Positive = 2e-3

        def __post_init__(self) -> None:
            check_fields(self)

Numbers are finite; integers fit into 32 bits, as their consumers require.
"""

import functools
import math
import numbers
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """The numbers that a field accepts.

    Attributes:
        low: The smallest number.
        high: The largest number; infinity for any finite number.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
        whole: Whether only integers are accepted.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def broken(self, value: Any) -> str | None:
        """The rule that a value breaks, as in "must be positive"; None if it breaks none.

        >>> Range(0, 1, below=True).broken(1)
        'must lie in [0, 1)'
        """
        if not isinstance(value, numbers.Real):
            return "must be a number"
        if self.whole and not isinstance(value, numbers.Integral):
            return "must be a whole number"
        if not self.whole and not _is_finite(value):
            return "must be a finite number" if self.high == math.inf else f"must lie in {self.interval}"
        number: Any = value
        too_low = number <= self.low if self.above else number < self.low
        too_high = number >= self.high if self.below else number > self.high
        if not too_low and not too_high:
            return None
        if self.high != math.inf and not self.whole:
            return f"must lie in {self.interval}"
        if too_high:
            return f"must be at most {self.high}"
        if self.low == 0 and not self.whole:
            return "must be positive" if self.above else "must not be negative"
        return f"must be {'above' if self.above else 'at least'} {self.low}"

    @property
    def interval(self) -> str:
        """The range in brackets: [0, 1) includes 0 but not 1."""
        return f"{'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


# Seeds of JAX and NumPy: JAX takes the last 32 bits of a larger seed, so two seeds could be the same.
Seed = Annotated[int, Range(0, 2**32 - 1, whole=True)]
Count = Annotated[int, Range(1, _LARGEST, whole=True)]
CountOrZero = Annotated[int, Range(0, _LARGEST, whole=True)]
Label = Annotated[int, Range(0, _LARGEST - 1, whole=True)]
Pixels = Annotated[int, Range(1, 65_535, whole=True)]  # of one side of an image
Finite = Annotated[float, Range(-math.inf)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Proportion = Annotated[float, Range(0, 1)]
ProportionAboveZero = Annotated[float, Range(0, 1, above=True)]
ProportionBelowOne = Annotated[float, Range(0, 1, below=True)]
ProportionBetween = Annotated[float, Range(0, 1, above=True, below=True)]


def check_fields(instance: Any, prefix: str = "") -> None:
    """Raises ValueError, with the field, its value and the rule, if a number is out of its range or a choice is unknown.

    Args:
        instance: A dataclass.
        prefix: The prefix that a user writes before field names.
    """
    for name, hint in _hints(type(instance)).items():  # type: ignore[arg-type]
        value = getattr(instance, name)
        for rule in _broken(hint, value):
            raise ValueError(f"{prefix}{name} {rule}, but is {value!r}.")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: hints[item.name] for item in fields(cls)}


def _broken(hint: Any, value: Any) -> Iterator[str]:
    """The rules of a type that a value breaks."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for item in arguments[1:]:
            rule = item.broken(value) if isinstance(item, Range) else None
            if rule is not None:
                yield rule
    elif origin is Literal:
        if value not in arguments:
            yield f"must be one of {arguments}"
    elif origin in (Union, UnionType):
        if type(value) not in arguments:  # None, or text where text is accepted
            for option in arguments:
                yield from _broken(option, value)
    elif origin is tuple:
        if isinstance(value, str) or not isinstance(value, Iterable):
            yield "must be a sequence, such as a tuple"  # a string would be read letter by letter
            return
        for item in value:
            yield from _broken(arguments[0], item)
