"""Loops of compiled steps, supervised training, and predictions."""

import warnings
from typing import Any

from cujax.training import supervised


def __getattr__(name: str) -> Any:
    if name.startswith("_") or not hasattr(supervised, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"cujax.training.{name} is cujax.training.supervised.{name} now; the old name will be removed in the next release.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(supervised, name)
