"""Three ways to implement the contract of `cujax.model`: `from_linen`, `from_nnx`, `from_function`."""

from cujax.adapters.functions import from_function
from cujax.adapters.linen import from_linen
from cujax.adapters.nnx import NnxModel, from_nnx

__all__ = ["NnxModel", "from_function", "from_linen", "from_nnx"]
