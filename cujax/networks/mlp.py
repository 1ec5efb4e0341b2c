"""A perceptron for tables and series: the default network of the command line for inputs that are not images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cujax.model import Outputs, PyTree
from cujax.networks.heads import classify, head_layers


class MLP(nn.Module):
    """One hidden layer on all numbers of a row, flattened, then the official head of contrastive unlearning.

    Attributes:
        num_classes: Number of logits.
        width: Width of the first hidden layer.
        hidden_dim: Width of the hidden layer of the head.
        embedding_dim: Width of the embedding.
        dtype: The dtype in which the first layer computes; the parameters and the head are float32.

    >>> import jax, jax.numpy as jnp
    >>> from cujax.adapters import from_linen
    >>> model = from_linen(MLP(3))
    >>> rows = {"heart": jnp.ones((4, 50, 2)), "age": jnp.ones((4, 1))}
    >>> model.apply(*model.init(jax.random.key(0), rows), rows, train=False)[0].logits.shape
    (4, 3)
    """

    num_classes: int
    width: int = 256
    hidden_dim: int = 128
    embedding_dim: int = 64
    dtype: DTypeLike = "float32"

    @property
    def layers(self) -> tuple[str, ...]:
        """Parameter-path prefixes in order of depth; the last is the head."""
        return ("dense", *head_layers("official"))

    @nn.compact
    def __call__(self, inputs: PyTree) -> Outputs:
        """A pytree of arrays, each `[B, ...]`, to `Outputs` with the taps `encoder` and `hidden`."""
        flat = [leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in jax.tree.leaves(inputs)]
        return classify(
            nn.relu(nn.Dense(self.width, dtype=self.dtype, name="dense")(jnp.concatenate(flat, axis=1))),
            {},
            num_classes=self.num_classes,
            head="official",
            hidden_dim=self.hidden_dim,
            embedding_dim=self.embedding_dim,
        )
