"""Contrastive machine unlearning in JAX: make a trained classifier forget, and measure how well it did.

What is public is listed in `__init__.pyi`, and imported when it is first used: importing this starts no device and loads no
data, checkpoint or plotting library, nor JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
