"""Checks of a method's settings, each naming the setting, its value and the rule."""

from collections.abc import Sequence
from typing import Any

from cujax.data.requests import Split


def positive(method: Any, *names: str) -> None:
    """Raises ValueError unless each setting is above 0."""
    for name in names:
        if not getattr(method, name) > 0:
            raise ValueError(f"{name} must be positive, but is {getattr(method, name)}.")


def not_negative(method: Any, *names: str) -> None:
    """Raises ValueError unless each setting is 0 or more."""
    for name in names:
        if not getattr(method, name) >= 0:
            raise ValueError(f"{name} must not be negative, but is {getattr(method, name)}.")


def at_least(minimum: int, method: Any, *names: str) -> None:
    """Raises ValueError unless each setting is at least `minimum`."""
    for name in names:
        if not getattr(method, name) >= minimum:
            raise ValueError(f"{name} must be at least {minimum}, but is {getattr(method, name)}.")


def share(method: Any, *names: str) -> None:
    """Raises ValueError unless each setting lies in [0, 1]."""
    for name in names:
        if not 0 <= getattr(method, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], but is {getattr(method, name)}.")


def momentum(method: Any) -> None:
    """Raises ValueError unless momentum lies in [0, 1)."""
    if not 0 <= method.momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), but is {method.momentum}.")


def choice(method: Any, name: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless the setting is one of the choices."""
    if getattr(method, name) not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, but is {getattr(method, name)!r}.")


def whole_classes(split: Split, what: str) -> None:
    """Raises ValueError, saying what the method does to whole classes, where samples are forgotten rather than classes."""
    if not split.is_class_task:
        raise ValueError(
            f"{what} whole classes, but the request is for samples of classes that stay; choose another method."
        )
