"""The networks by name: those of this package, and those that others registered (entry points `cujax.networks`)."""

import functools
from collections.abc import Callable

import flax.linen as nn
from jax.typing import DTypeLike

from cujax.adapters import from_linen
from cujax.model import Model
from cujax.networks.airbench import Airbench
from cujax.networks.cnn import CNN
from cujax.networks.heads import Head
from cujax.networks.mlp import MLP
from cujax.networks.resnet import ResNet
from cujax.networks.vit import ViT
from cujax.registry import Registry

_MakeModule = (
    functools.partial[Airbench]
    | functools.partial[CNN]
    | functools.partial[MLP]
    | functools.partial[ResNet]
    | functools.partial[ViT]
)

_HEADS: tuple[tuple[str, Head], ...] = (("", "official"), ("_linear", "linear"))
_RESNETS: dict[str, _MakeModule] = {
    "resnet8": functools.partial(ResNet, stage_sizes=(1, 1, 1), width=16),
    "resnet20": functools.partial(ResNet, stage_sizes=(3, 3, 3), width=16),
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True),
    "resnet101": functools.partial(ResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True),
}
_AIRBENCHES: dict[str, _MakeModule] = {
    "airbench32": functools.partial(Airbench, widths=(32, 64, 128)),
    "airbench64": functools.partial(Airbench, widths=(64, 128, 128)),
}
_VITS: dict[str, _MakeModule] = {
    "vit_tiny_32": functools.partial(ViT, patch_size=4, width=192, num_heads=3),
    "vit_small_32": functools.partial(ViT, patch_size=4, width=384, num_heads=6),
    "vit_tiny_224": functools.partial(ViT, patch_size=16, width=192, num_heads=3),
    "vit_small_224": functools.partial(ViT, patch_size=16, width=384, num_heads=6),
}
_IMAGENET_RESNETS: dict[str, _MakeModule] = {
    f"{name}_imagenet": functools.partial(_RESNETS[name], stem="imagenet")
    for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}

# Name to linen module, called as make(num_classes, dtype=...). Names ending in _linear have a linear head on the
# encoder's features, the others the paper's; _imagenet is the stem for images of 84 to 224 pixels.
MODULES: dict[str, _MakeModule] = {
    "cnn": functools.partial(CNN),
    "small_cnn": functools.partial(CNN, features=(32, 64)),
    "mlp": functools.partial(MLP),
    **{
        f"{name}{suffix}": functools.partial(make, head=head)
        for name, make in (_AIRBENCHES | _RESNETS | _IMAGENET_RESNETS | _VITS).items()
        for suffix, head in _HEADS
    },
}


NETWORKS: Registry[Callable[..., nn.Module | Model]] = Registry("network", "cujax.networks", MODULES)


def make_network(name: str, num_classes: int, dtype: DTypeLike = "float32") -> Model:
    """Creates the reference network with this name.

    Args:
        name: A key of `MODULES`, or a name that another package registered.
        num_classes: Number of logits.
        dtype: The dtype in which it computes, float32 or bfloat16; its parameters are float32.

    Raises:
        ValueError: if there is no network with this name (the message lists the existing names).
    """
    try:
        make = NETWORKS.find(name)
    except ValueError as error:
        raise ValueError(f"{error} Or give your own network as PATH.py:FUNCTION.") from error
    made = make(num_classes, dtype=dtype)
    return made if isinstance(made, Model) else from_linen(made)
