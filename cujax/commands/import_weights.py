"""Converts weights trained with another program to a checkpoint of an original model, from which cujax unlearn can start.

From PyTorch, it reads a safetensors file with the parameter names of the paper's code, torchvision's ResNets or timm's
vision transformers. With --num-classes and --image-shape, it reads what flax users save: an Orbax directory or the root of a
CheckpointManager, a file written with flax.serialization.to_bytes, or a safetensors file with flax's names. All names and
shapes must match those of the network; if some do not, they are listed and nothing is written.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from cujax._ranges import Count, CountOrZero, Pixels, check_fields
from cujax.experiments.user_files import build_model
from cujax.model import Model, Variables
from cujax.networks.registry import make_network
from cujax.networks.torch_weights import import_weights
from cujax.storage.checkpoints import Metadata, save_checkpoint
from cujax.storage.imports import check_logits, read_import


@dataclass(frozen=True)
class Import:
    """What to import.

    Attributes:
        file: A file or directory. PyTorch pickles (.pt, .pth) are never opened; the error message says how to convert them.
        directory: Where to write the checkpoint; it must not exist yet.
        network: The network that the weights belong to, such as resnet18 (with the paper's head) or resnet18_linear (with
            torchvision's); an unknown name lists them all. Or your own network, as PATH.py:FUNCTION.
        num_classes: For weights saved by flax: the number of classes.
        image_shape: For weights saved by flax: height, width and channels of the images.
        step: The step to read from a CheckpointManager; by default the latest.
        cast: For weights saved by flax: cast floating-point arrays to the network's dtype.
        check: An .npz file with inputs [n, H, W, C], as the network takes them, and the logits [n, C] that the source
            program computed. Nothing is written if a logit differs by more than 0.001.
    """

    file: Annotated[Path, tyro.conf.Positional]
    directory: Annotated[Path, tyro.conf.Positional]
    network: str = "resnet18"
    num_classes: Count | None = None
    image_shape: tuple[Pixels, ...] = ()
    step: CountOrZero | None = None
    cast: bool = False
    check: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class _Read:
    """The result of reading: the model, its arrays, where they come from, and notes to print."""

    model: Model
    variables: Variables
    origin: dict[str, Any]
    notes: list[str]


def _read_torch(asked: Import) -> _Read:
    if asked.step is not None or asked.cast:
        raise ValueError("--step and --cast are for weights saved by flax; also give --num-classes and --image-shape.")
    if asked.file.is_dir() or asked.file.suffix == ".msgpack":
        raise ValueError(
            f"{asked.file} is not a PyTorch file; for weights saved by flax, give --num-classes and --image-shape."
        )
    weights = import_weights(asked.file, asked.network)
    notes = [f"The prefix {weights.prefix!r} of all names is left out."] * bool(weights.prefix)
    origin = {"file": asked.file.name, "sha256": weights.digest}
    return _Read(make_network(asked.network, weights.num_classes), weights.variables, origin, notes)


def _read_flax(asked: Import) -> _Read:
    if asked.num_classes is None or not asked.image_shape:
        raise ValueError("--num-classes and --image-shape go together: both are needed for weights saved by flax.")
    if len(asked.image_shape) != 3:
        raise ValueError(f"--image-shape must be height, width and channels, but is {asked.image_shape}.")
    height, width, channels = asked.image_shape
    model = build_model(asked.network, asked.num_classes)
    found = read_import(asked.file, model, (height, width, channels), step=asked.step, cast=asked.cast)
    notes = [f"Read from {found.where}."] + [f"Left out: {', '.join(found.left_out)}."] * bool(found.left_out)
    return _Read(model, found.variables, {"file": Path(found.where).name}, notes)


def main(arguments: Sequence[str]) -> int:
    """Imports, reports what was imported, and returns the exit status: 0, or 2 for bad input."""
    try:
        asked = tyro.cli(Import, args=arguments, description=__doc__)
        read = _read_torch(asked) if asked.num_classes is None and not asked.image_shape else _read_flax(asked)
        if asked.check is not None:
            largest = check_logits(read.model, read.variables, asked.check)
            read.notes.append(f"The logits match those in {asked.check}: the largest difference is {largest:.2g}.")
        config = {"network": asked.network, "imported_from": read.origin}
        checkpoint = save_checkpoint(asked.directory, read.variables, Metadata("original", config=config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    leaves = jax.tree.leaves(read.variables.params)
    classes = read.model.num_classes
    print(
        "".join(f"{note}\n" for note in read.notes)
        + f"{asked.file} is {asked.network} with {classes} classes: {len(leaves)} tensors, "
        f"{sum(leaf.size for leaf in leaves):,} parameters, every name and shape as the network's.\n"
        f"Original checkpoint {checkpoint.digest[:12]}: {asked.directory}\n"
        "To unlearn, use the data and the normalisation that it was trained with:\n"
        f"  cujax unlearn --original {asked.directory} --network {asked.network} --data.source ..."
    )
    return 0
