"""A strided convolutional network with the paper's kind of head, small enough to train on a CPU."""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cujax.model import Outputs
from cujax.networks.heads import classify, head_layers


class CNN(nn.Module):
    """Three 3x3 convolutions of stride 2, then the official head of contrastive unlearning.

    651,402 parameters for 28x28x1 images and 10 classes.

    Attributes:
        num_classes: Number of logits.
        features: Channels of the convolutions.
        hidden_dim: Width of the hidden layer of the head.
        embedding_dim: Width of the embedding.
        dtype: The dtype in which the convolutions compute; the parameters and the head are float32.
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64, 128)
    hidden_dim: int = 256
    embedding_dim: int = 128
    dtype: DTypeLike = "float32"

    @property
    def layers(self) -> tuple[str, ...]:
        """Parameter-path prefixes in order of depth; the last is the head."""
        return (*(f"conv_{depth}" for depth in range(len(self.features))), *head_layers("official"))

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        """Images `[B, H, W, C]` to `Outputs` with the taps `encoder` and `hidden`."""
        x = images
        for depth, features in enumerate(self.features):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2, dtype=self.dtype, name=f"conv_{depth}")(x))
        return classify(
            x.reshape(x.shape[0], -1),
            {},
            num_classes=self.num_classes,
            head="official",
            hidden_dim=self.hidden_dim,
            embedding_dim=self.embedding_dim,
        )
