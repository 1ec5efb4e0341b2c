"""Weights of PyTorch networks: safetensors files with the names of the paper's code, torchvision or timm.

Only names and layouts are translated; nothing of PyTorch is needed, and nothing is unpickled.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cujax.model import Variables, abstract_variables
from cujax.networks.registry import make_network

# What the name of a module there is called here, tried in order. torchvision calls the shortcut downsample; the paper's
# code calls the head's layers head.0, head.2 and fc.1; timm's ViT and torchvision have one layer, head or fc.
_MODULES = (
    (r"conv1", "stem/conv"),
    (r"bn1", "stem/norm"),
    (r"layer(\d+)\.(\d+)\.conv(\d)", r"stage_\1/block_\2/conv_\3"),
    (r"layer(\d+)\.(\d+)\.bn(\d)", r"stage_\1/block_\2/norm_\3"),
    (r"layer(\d+)\.(\d+)\.(?:shortcut|downsample)\.0", r"stage_\1/block_\2/shortcut"),
    (r"layer(\d+)\.(\d+)\.(?:shortcut|downsample)\.1", r"stage_\1/block_\2/shortcut_norm"),
    (r"patch_embed\.proj", "patches"),
    (r"blocks\.(\d+)\.norm(\d)", r"block_\1/norm_\2"),
    (r"blocks\.(\d+)\.attn\.qkv", r"block_\1/qkv"),
    (r"blocks\.(\d+)\.attn\.proj", r"block_\1/projection"),
    (r"blocks\.(\d+)\.mlp\.fc(\d)", r"block_\1/mlp_\2"),
    (r"norm", "norm"),
    (r"head\.0", "hidden"),
    (r"head\.2", "embedding"),
    (r"head|fc|fc\.1", "head"),
)
_WHOLE = {"cls_token": "params/class_token", "pos_embed": "params/positions"}
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")


@dataclass(frozen=True)
class ImportedWeights:
    """Translated weights that match their network.

    Attributes:
        variables: Of the network.
        num_classes: The number of classes, as read from the file.
        image_shape: `(H, W, C)` of images that it takes; for a network without positions, height and width are only an
            example.
        digest: SHA-256 of the file, in hexadecimal.
        prefix: A meaningless prefix that all names had, such as "module._orig_mod."; "" if there was none.
    """

    variables: Variables
    num_classes: int
    image_shape: tuple[int, int, int]
    digest: str
    prefix: str = ""


def import_weights(path: str | Path, network: str) -> ImportedWeights:
    """Reads a safetensors file as the weights of a reference network.

    A prefix that all names share, as training tools add it ("module.", "_orig_mod.", "model.", ...), is left out, and so
    is "encoder." before some names. Half-precision weights become float32, and a last layer without a bias has one of zeros.
    PyTorch's counters of batches (`num_batches_tracked`) are left out.

    Args:
        path: The file, written by `safetensors.torch.save_file(model.state_dict(), path)` or the like.
        network: A name in `cujax.networks.MODULES`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a safetensors file (a pickle is never opened), holds NaN or infinity, or a name or shape
            does not match the network's; the message lists what is missing, unknown and of another shape.
    """
    path = Path(path)
    prefix, tensors = _without_prefix(_read(path))
    translated = {
        name: _translate(name, tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")
    }
    named = {place: (name, array) for name, found in translated.items() if found for place, array in [found]}
    unknown = [name for name, found in translated.items() if found is None]
    if len(named) + len(unknown) < len(translated):
        twice = sorted({name for name, found in translated.items() if found and named[found[0]][0] != name})
        raise ValueError(f"{path} holds several tensors for one place in the network, among them {', '.join(twice[:5])}.")

    arrays = {place: array for place, (_, array) in named.items()}
    if "params/head/kernel" in arrays and "params/head/bias" not in arrays:  # a last layer without a bias has one of zeros
        arrays["params/head/bias"] = np.zeros(arrays["params/head/kernel"].shape[1], np.float32)
        named["params/head/bias"] = ("the last layer's bias", arrays["params/head/bias"])
    num_classes, image_shape = _sizes(path, arrays)
    like = abstract_variables(make_network(network, num_classes), image_shape)
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {_place(key_path): leaf for key_path, leaf in leaves}
    missing = sorted(wanted.keys() - arrays.keys())
    unknown += [named[place][0] for place in arrays.keys() - wanted.keys()]
    differing = [
        f"{named[place][0]} makes {place} {arrays[place].shape}, but the network's is {leaf.shape}"
        for place, leaf in wanted.items()
        if place in arrays and arrays[place].shape != leaf.shape
    ]
    if missing or unknown or differing:
        raise ValueError(_account(path, network, missing, sorted(unknown), differing))
    bad = [named[place][0] for place in wanted if not np.isfinite(arrays[place]).all()]
    if bad:
        raise ValueError(f"{path} holds NaN or infinity in {', '.join(bad[:5])} ({len(bad)} in all).")
    variables = jax.tree.unflatten(structure, [jnp.asarray(arrays[place]) for place in wanted])
    return ImportedWeights(variables, num_classes, image_shape, hashlib.sha256(path.read_bytes()).hexdigest(), prefix)


def _without_prefix(tensors: dict[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """The leading parts that all names share, and the tensors without them."""
    names = list(tensors)
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    prefix = "".join(f"{part}." for part in parts[0][:shared]) if names else ""
    return prefix, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _read(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist.")
    if path.suffix != ".safetensors":
        pickled = path.suffix in _PICKLED
        raise ValueError(
            f"{path} is not a .safetensors file"
            + (", and files that PyTorch pickled are never opened: reading one can run code" if pickled else "")
            + ". Where PyTorch is installed, convert it:\n"
            "  import torch, safetensors.torch\n"
            f'  weights = torch.load("{path.name}", map_location="cpu", weights_only=True)  # or its ["state_dict"]\n'
            f'  safetensors.torch.save_file({{k: v.contiguous() for k, v in weights.items()}}, "{path.stem}.safetensors")'
        )
    try:
        return {name: np.asarray(tensor, np.float32) for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); it is damaged or something else.") from error


def _translate(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Where a tensor belongs in our trees, and its array in our layout; None for a name that means nothing here."""
    bare = re.sub(r"^((module|_orig_mod|encoder|backbone|model|net)\.)+", "", name)
    if bare in _WHOLE:
        return _WHOLE[bare], tensor
    module, _, kind = bare.rpartition(".")
    for pattern, replacement in _MODULES:
        if match := re.fullmatch(pattern, module):
            place = match.expand(replacement)
            break
    else:
        return None
    match kind, tensor.ndim:
        case "weight", 4:
            return f"params/{place}/kernel", tensor.transpose(2, 3, 1, 0)
        case "weight", 2:
            return f"params/{place}/kernel", tensor.T
        case "weight", 1:
            return f"params/{place}/scale", tensor
        case "bias", 1:
            return f"params/{place}/bias", tensor
        case "running_mean" | "running_var", 1:
            return f"batch_stats/{place}/{kind.removeprefix('running_')}", tensor
    return None


def _sizes(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[int, tuple[int, int, int]]:
    """Classes and image shape that the tensors imply."""
    first = next((arrays[place] for place in ("params/stem/conv/kernel", "params/patches/kernel") if place in arrays), None)
    head = arrays.get("params/head/bias")
    if first is None or head is None or first.ndim != 4:
        raise ValueError(
            f"{path} is not of a network that can be read: it needs a first convolution (conv1 or patch_embed.proj) and a "
            "last layer (fc, fc.1 or head). Its names must be those of the paper's code, torchvision or timm."
        )
    side = 64
    if "params/positions" in arrays:
        side = first.shape[0] * math.isqrt(arrays["params/positions"].shape[1] - 1)
    return len(head), (side, side, first.shape[2])


def _place(key_path: tuple) -> str:
    collection, *rest = jax.tree_util.keystr(key_path, simple=True, separator="/").split("/")
    return "/".join([collection, *rest] if collection == "params" else rest)


def _account(path: Path, network: str, missing: list[str], unknown: list[str], differing: list[str]) -> str:
    lines = [f"{path} does not fit the network {network}:"]
    lines += [f"  missing in the file: {', '.join(missing[:5])} ({len(missing)} in all)"] if missing else []
    lines += [f"  unknown to the network: {', '.join(unknown[:5])} ({len(unknown)} in all)"] if unknown else []
    lines += [f"  {line}" for line in differing[:5]]
    lines += [f"  and {len(differing) - 5} more of another shape"] if len(differing) > 5 else []
    lines.append(
        "Give the network that the file is of: names ending in _linear have one layer after the encoder, as torchvision's "
        "and timm's, the others the paper's head; _imagenet has the 7x7 stem of torchvision, _32 and _224 are sizes of "
        "images."
    )
    return "\n".join(lines)
