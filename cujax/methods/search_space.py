"""The ranges that tuning searches for the settings of a method: its `search_space`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cujax._ranges import Positive, check_fields


@dataclass(frozen=True)
class LogUniform:
    """A log-uniform range; values are integers if both ends are.

    Attributes:
        low: The smallest value, above 0.
        high: The largest value.
        below_one: Whether one minus the value is drawn from the range, for settings whose distance to 1 matters.
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
        """The position of a value in the range, in [0, 1]: the inverse of `at`, up to rounding.

        >>> LogUniform(0.001, 0.1).place(0.01), LogUniform(1, 3).place(2)
        (0.5, 0.5)
        """
        if isinstance(self.low, int) and isinstance(self.high, int):
            return math.log(value / self.low) / math.log((self.high + 1) / self.low)
        fraction = math.log((1 - value if self.below_one else value) / self.low) / math.log(self.high / self.low)
        return min(max(fraction, 0.0), 1.0)


@dataclass(frozen=True)
class Choice:
    """A set of equally likely values.

    Attributes:
        values: The values.
    """

    values: tuple[Any, ...]

    def at(self, fraction: float) -> Any:
        """The value at a fraction in [0, 1).

        >>> [Choice(("sgd", "adamw")).at(fraction) for fraction in (0.0, 0.49, 0.5)]
        ['sgd', 'sgd', 'adamw']
        """
        return self.values[int(fraction * len(self.values))]

    def place(self, value: Any) -> float:
        """The middle of the interval that `at` maps to a value.

        >>> Choice(("sgd", "adamw")).place("adamw")
        0.75
        """
        return (self.values.index(value) + 0.5) / len(self.values)


@dataclass(frozen=True)
class ByOptimizer:
    """A separate range for each optimiser: rates that suit one are far from those that suit another.

    Attributes:
        sgd: The range with "sgd".
        adamw: The range with "adamw".
    """

    sgd: LogUniform
    adamw: LogUniform

    def __post_init__(self) -> None:
        check_fields(self)


# By the name of the setting. What a `ByOptimizer` depends on stands before it.
SearchSpace = Mapping[str, LogUniform | Choice | ByOptimizer]
# By task ("class" or "samples") the settings of a method's reproduction, where they differ from its defaults.
Reproduction = Mapping[str, Mapping[str, Any]]
OPTIMIZERS = Choice(("sgd", "adamw"))


def settings_at(space: SearchSpace, places: Mapping[str, float]) -> dict[str, Any]:
    """The settings at positions in [0, 1), by name.

    >>> space = {"optimizer": OPTIMIZERS, "rate": ByOptimizer(LogUniform(0.01, 1.0), LogUniform(0.001, 0.1))}
    >>> settings_at(space, {"optimizer": 0.9, "rate": 0.5})
    {'optimizer': 'adamw', 'rate': 0.01}
    """
    settings: dict[str, Any] = {}
    for name, values in space.items():
        settings[name] = _range(values, settings).at(places[name])
    return settings


def places_of(space: SearchSpace, settings: Mapping[str, Any]) -> dict[str, float]:
    """The positions of settings in a space: the inverse of `settings_at`, up to rounding.

    >>> space = {"optimizer": OPTIMIZERS, "rate": ByOptimizer(LogUniform(0.01, 1.0), LogUniform(0.001, 0.1))}
    >>> places_of(space, {"optimizer": "adamw", "rate": 0.01})
    {'optimizer': 0.75, 'rate': 0.5}
    """
    return {name: _range(values, settings).place(settings[name]) for name, values in space.items()}


def _range(values: LogUniform | Choice | ByOptimizer, settings: Mapping[str, Any]) -> LogUniform | Choice:
    if not isinstance(values, ByOptimizer):
        return values
    chosen = next(settings[name] for name in ("optimizer", "optimizer_name") if name in settings)
    found: LogUniform = getattr(values, chosen)
    return found
