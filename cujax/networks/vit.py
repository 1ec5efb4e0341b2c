"""Vision transformers (Dosovitskiy et al., arXiv:2010.11929), as timm lays them out."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from cujax.model import Outputs
from cujax.networks.heads import Head, classify, head_layers


class ViT(nn.Module):
    """A vision transformer with a class token, learned positions and pre-normalised blocks.

    Attributes:
        num_classes: Number of logits.
        patch_size: Side of a patch in pixels; the images' sides must be multiples of it.
        width: Features of a token.
        depth: Number of blocks.
        num_heads: Attention heads of each block.
        head: "official" or "linear"; see `cujax.networks.heads`.
        dtype: The dtype in which the blocks compute; parameters, layer normalisation and the head are float32.
    """

    num_classes: int
    patch_size: int = 4
    width: int = 192
    depth: int = 12
    num_heads: int = 3
    head: Head = "official"
    dtype: DTypeLike = "float32"

    @property
    def layers(self) -> tuple[str, ...]:
        """Parameter-path prefixes in order of depth; the last is the head."""
        blocks = (f"block_{number}" for number in range(self.depth))
        return ("patches", "class_token", "positions", *blocks, "norm", *head_layers(self.head))

    @nn.compact
    def __call__(self, images: jax.Array) -> Outputs:
        """Images `[B, H, W, C]` to `Outputs`; taps are the class token at each quarter of the depth, and the head's.

        Raises:
            ValueError: if the images cannot be cut into patches.
        """
        batch, height, width, _ = images.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images of {height}x{width} pixels cannot be cut into patches of {self.patch_size}; their sides must be "
                "multiples of it."
            )
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype, name="patches")(images)
        x = x.reshape(batch, -1, self.width)
        small = nn.initializers.truncated_normal(0.02)
        class_token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        positions = self.param("positions", small, (1, x.shape[1] + 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(class_token, (batch, 1, self.width)), x], axis=1) + positions
        x = x.astype(self.dtype)
        taps = {}
        for number in range(self.depth):
            if number and number % max(self.depth // 4, 1) == 0:
                taps[f"depth_{number}"] = x[:, 0].astype(jnp.float32)
            x = TransformerBlock(self.num_heads, self.dtype, name=f"block_{number}")(x)
        return classify(
            nn.LayerNorm(epsilon=1e-6, name="norm")(x[:, 0]),
            taps,
            num_classes=self.num_classes,
            head=self.head,
            hidden_dim=self.width,
            embedding_dim=128,
        )


class TransformerBlock(nn.Module):
    """Self-attention, then two dense layers; each of the two parts reads its normalised input and is added to it."""

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)

        normalized = nn.LayerNorm(epsilon=1e-6, name="norm_1")(x)
        qkv = dense(3 * width, "qkv")(normalized).reshape(*x.shape[:2], 3, self.num_heads, width // self.num_heads)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x + dense(width, "projection")(attended.reshape(x.shape))
        normalized = nn.LayerNorm(epsilon=1e-6, name="norm_2")(x)
        widened = nn.gelu(dense(4 * width, "mlp_1")(normalized), approximate=False)
        return x + dense(width, "mlp_2")(widened)
