"""One file per method: a frozen dataclass of its hyper-parameters, which is called on a model to unlearn.

The classes in `registry.METHODS` can be imported from here by name: `from cujax.methods import Scrub`.
"""

from typing import Any

from cujax.methods.registry import METHODS, find_method, method_names

_CLASSES = {method.__name__: method for method in METHODS.values()}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["METHODS", "find_method", "method_names", *_CLASSES]
