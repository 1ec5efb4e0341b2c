"""Where tuning looks for the settings of a method: ranges that lie beside it, as its `search_space`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cujax._ranges import Positive, check_fields


@dataclass(frozen=True)
class LogUniform:
    """A range in which every factor is as likely as another; whole numbers where both ends are.

    Attributes:
        low: The smallest value, above 0.
        high: The largest.
        below_one: Whether one minus the value is drawn from the range: for settings whose distance to 1 matters.
    """

    low: Positive
    high: Positive
    below_one: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.low < self.high:
            raise ValueError(f"a range must have 0 < low < high, but is {self.low} to {self.high}.")
        if self.below_one and not self.high < 1:
            raise ValueError(f"below one, a range must end below 1, but is {self.low} to {self.high}.")

    def at(self, fraction: float) -> float | int:
        """The value at a fraction in [0, 1) of the range.

        >>> LogUniform(0.001, 0.1).at(0.5)
        0.01
        >>> LogUniform(0.0001, 0.01, below_one=True).at(0.5)
        0.999
        >>> [LogUniform(1, 4).at(fraction) for fraction in (0, 0.5, 0.7, 0.99)]
        [1, 2, 3, 4]
        """
        if isinstance(self.low, int) and isinstance(self.high, int):
            return int(self.low * ((self.high + 1) / self.low) ** fraction)
        value = self.low * (self.high / self.low) ** fraction
        return float(f"{1 - value if self.below_one else value:.4g}")

    def place(self, value: float) -> float:
        """Where in the range a value lies, in [0, 1]: the inverse of `at`, but for rounding.

        >>> LogUniform(0.001, 0.1).place(0.01), LogUniform(1, 3).place(2)
        (0.5, 0.5)
        """
        if isinstance(self.low, int) and isinstance(self.high, int):
            return math.log(value / self.low) / math.log((self.high + 1) / self.low)
        fraction = math.log((1 - value if self.below_one else value) / self.low) / math.log(self.high / self.low)
        return min(max(fraction, 0.0), 1.0)


# By the name of the setting.
SearchSpace = Mapping[str, LogUniform]
