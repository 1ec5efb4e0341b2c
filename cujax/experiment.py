"""Deprecated: the names of `cujax.experiment` are in `cujax.experiments.config` and `request_words` now.

This module stays for one release, so that configurations written for 0.1 still load.
"""

import warnings
from typing import Any

from cujax.experiments import config, identity, request_words, user_files


def __getattr__(name: str) -> Any:
    for module in (config, identity, request_words, user_files):
        if not name.startswith("_") and hasattr(module, name):
            warnings.warn(
                f"cujax.experiment.{name} is {module.__name__}.{name} now; the old name will be removed in the next "
                "release.",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
