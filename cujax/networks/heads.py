"""Heads, which compute the logits from an encoder's features: the paper's head, or one linear layer."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cujax.losses import normalize
from cujax.model import Outputs

Head = Literal["official", "linear"]


def head_layers(head: Head) -> tuple[str, ...]:
    """Names of a head's parameters in order of depth."""
    return ("hidden", "embedding", "head") if head == "official" else ("head",)


def classify(
    features: jax.Array, taps: Mapping[str, jax.Array], *, num_classes: int, head: Head, hidden_dim: int, embedding_dim: int
) -> Outputs:
    """Applies a head to the features `[B, d]` of an encoder, inside a module's compact `__call__`; in float32.

    "official": `Dense -> ReLU -> Dense -> L2-normalise = embedding -> ReLU -> Dense = logits`, so the contrastive loss
    acts on the very vector that the classifier reads (Lee et al., arXiv:2401.10458).
    "linear": the features are the embedding, and one `Dense` reads them.

    Args:
        features: The output of the encoder.
        taps: Features of lower depths, shallow first; `encoder` (and `hidden`) are added.
        num_classes: Number of logits.
        head: "official" or "linear".
        hidden_dim: Width of the official head's hidden layer.
        embedding_dim: Width of the official head's embedding.
    """
    features = features.astype(jnp.float32)
    depths = OrderedDict(taps, encoder=features)
    if head == "linear":
        return Outputs(features, nn.Dense(num_classes, name="head")(features), depths)
    depths["hidden"] = nn.relu(nn.Dense(hidden_dim, name="hidden")(features))
    embedding = normalize(nn.Dense(embedding_dim, name="embedding")(depths["hidden"]))
    return Outputs(embedding, nn.Dense(num_classes, name="head")(nn.relu(embedding)), depths)
