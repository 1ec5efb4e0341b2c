"""Contrastive machine unlearning in JAX: make a trained classifier forget, and measure how well that worked.

Public names are listed in `__init__.pyi` and imported on first use: importing this package starts no device and does not
load JAX, nor any data, checkpoint or plotting library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
