"""A strided convolutional network with the paper's kind of head, small enough to train on a CPU."""

from collections import OrderedDict

import flax.linen as nn
import jax

from cujax.losses import normalize
from cujax.model import Outputs


class CNN(nn.Module):
    """Three 3x3 convolutions of stride 2, then the official head of contrastive unlearning.

    The head is `Dense -> ReLU -> Dense -> L2-normalise = embedding -> ReLU -> Dense = logits`, so the contrastive loss
    acts on the very vector that the classifier reads. 651,402 parameters for 28x28x1 images and 10 classes.

    Attributes:
        num_classes: Number of logits.
        features: Channels of the convolutions.
        hidden_dim: Width of the hidden layer of the head.
        embedding_dim: Width of the embedding.
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64, 128)
    hidden_dim: int = 256
    embedding_dim: int = 128

    @property
    def layers(self) -> tuple[str, ...]:
        """Parameter-path prefixes in order of depth; the last is the head."""
        return (*(f"conv_{depth}" for depth in range(len(self.features))), "hidden", "embedding", "head")

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        """Images `[B, H, W, C]` to `Outputs` with the taps `encoder` and `hidden`."""
        x = images
        for depth, features in enumerate(self.features):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2, name=f"conv_{depth}")(x))
        encoder = x.reshape(x.shape[0], -1)
        hidden = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(encoder))
        embedding = normalize(nn.Dense(self.embedding_dim, name="embedding")(hidden))
        logits = nn.Dense(self.num_classes, name="head")(nn.relu(embedding))
        return Outputs(embedding, logits, OrderedDict(encoder=encoder, hidden=hidden))
