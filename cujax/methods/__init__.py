"""One file a method: a frozen dataclass of its hyper-parameters, called on a model to make it forget."""

from cujax.methods.contrastive import ContrastiveUnlearning

__all__ = ["ContrastiveUnlearning"]
