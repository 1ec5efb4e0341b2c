"""Turns weights that PyTorch trained into an original checkpoint, from which cujax unlearn starts with --original.

Takes a safetensors file with the names of the paper's code, torchvision's ResNets or timm's vision transformers, and
compares every name and shape with the network's. What does not match is listed, and nothing is written.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from cujax.networks.torch_weights import import_weights
from cujax.storage.checkpoints import Metadata, save_checkpoint


@dataclass(frozen=True)
class Import:
    """What to import.

    Attributes:
        file: A .safetensors file. One that PyTorch pickled (.pt, .pth) is never opened; the error says how to convert it.
        directory: Where the checkpoint goes; it must not exist yet.
        network: The network it is of, such as resnet18 (the paper's head) or resnet18_linear (torchvision's); a wrong
            name lists all.
    """

    file: Annotated[Path, tyro.conf.Positional]
    directory: Annotated[Path, tyro.conf.Positional]
    network: str = "resnet18"


def main(arguments: Sequence[str]) -> int:
    """Imports, says what it was, and gives the exit status: 0, or 2 for bad input."""
    asked = tyro.cli(Import, args=arguments, description=__doc__)
    try:
        weights = import_weights(asked.file, asked.network)
        config = {"network": asked.network, "imported_from": {"file": asked.file.name, "sha256": weights.digest}}
        checkpoint = save_checkpoint(asked.directory, weights.variables, Metadata("original", config=config))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    leaves = jax.tree.leaves(weights.variables.params)
    print(
        f"The prefix {weights.prefix!r} of all names is left out.\n"
        * bool(weights.prefix)
        + f"{asked.file} is {asked.network} with {weights.num_classes} classes: {len(leaves)} tensors, "
        f"{sum(leaf.size for leaf in leaves):,} parameters, every name and shape as the network's.\n"
        f"Original checkpoint {checkpoint.digest[:12]}: {asked.directory}\n"
        "Unlearn from it with the data and the normalisation that it was trained with:\n"
        f"  cujax unlearn --original {asked.directory} --network {asked.network} --data.source ..."
    )
    return 0
