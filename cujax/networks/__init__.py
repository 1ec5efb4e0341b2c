"""Reference networks: linen modules, and `make_network`, which makes one by name."""

from cujax.networks.registry import MODULES, make_network

__all__ = ["MODULES", "make_network"]
