"""Downloads a TFDS data set and prepares it as array_record, which cujax reads without TensorFlow. Needs the internet once.

    uv run --extra prepare cujax prepare-data cifar10

CIFAR can also be read from its original archive, without this command: --data.source ./cifar-10-binary.tar.gz.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cujax.data.images import DEFAULT_DATA_DIR, Data
from cujax.data.sources import load_source
from cujax.progress import bar

KNOWN = ("cifar10", "cifar100", "svhn_cropped", "mnist", "fashion_mnist")


@dataclass(frozen=True)
class Prepare:
    """What to prepare.

    Attributes:
        name: A TFDS data set with an image and a class label, such as cifar10, cifar100, svhn_cropped, mnist or
            fashion_mnist; NAME/CONFIG if it has several configurations.
        data_dir: The folder to write to (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets).
    """

    name: Annotated[str, tyro.conf.Positional]
    data_dir: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Prepares, reads the result back as a run would, and returns the exit status.

    Status 0: done. 1: the download failed. 2: bad input.
    """
    asked = tyro.cli(Prepare, args=arguments, description=__doc__)
    if importlib.util.find_spec("tensorflow") is None:
        print(
            "error: preparing a data set needs TensorFlow (1.2 GB); using one does not. Run the command as:\n"
            f"  uv run --extra prepare cujax prepare-data {' '.join(arguments)}",
            file=sys.stderr,
        )
        return 2
    import tensorflow_datasets as tfds

    data_dir = asked.data_dir or Path(os.environ.get("TFDS_DATA_DIR", DEFAULT_DATA_DIR))
    data_dir = data_dir.expanduser()
    try:
        builder = tfds.builder(asked.name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        print(f"error: {error}\nTFDS data sets with known normalisation: {', '.join(KNOWN)}.", file=sys.stderr)
        return 2
    try:
        builder.download_and_prepare()
    except OSError as error:
        print(
            f"error: {asked.name} could not be downloaded: {error}\nRun the same command again to continue.", file=sys.stderr
        )
        return 1
    name = f"{builder.name}/{builder.builder_config.name}" if builder.builder_config else builder.name
    source = load_source(Data(name, str(data_dir)), bar)
    print(
        f"{source.name} {source.version}: {len(source.train)} training and {len(source.test)} test images of "
        f"{source.num_classes} classes, in {builder.data_dir}.\n"
        f"Use it with --data.source {name} --data.data-dir {data_dir}, or set TFDS_DATA_DIR={data_dir}."
    )
    return 0
