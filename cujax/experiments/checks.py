"""Checks of a setup before anything is computed, in addition to those of data, storage and methods."""

import importlib.util
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from cujax.adapters.common import unsaid_pair, which_order
from cujax.data.decoding import ImageFiles
from cujax.data.images import Data, Source
from cujax.data.requests import Split
from cujax.experiments.config import Experiment, Setup
from cujax.experiments.identity import normalised
from cujax.model import Model, Variables
from cujax.sharding import check_batch_size, data_mesh
from cujax.storage.checkpoints import Checkpoint


def check_extras(setup: Setup) -> None:
    """Raises ValueError if a setting needs a package that is not installed."""
    if setup.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("tensorboard needs tensorboardX: run the command as uv run --extra tensorboard ...")
    for name in ("workdir", "original", "profile"):
        value = getattr(setup, name)
        if value is not None and "://" in value and not value.startswith("gs://"):
            raise ValueError(f"{name} {value} must be a folder of this machine or a gs:// address.")
    if setup.workdir.startswith("gs://") and not any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        raise ValueError(f"workdir {setup.workdir} needs gcsfs: run the command as uv run --extra gcs ...")
    if setup.profile is not None and "://" not in setup.profile:
        check_folder("profile", Path(setup.profile).expanduser())


def check_folder(name: str, folder: Path) -> None:
    """Creates an output folder if it does not exist.

    Raises:
        OSError: if it cannot be created, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{name} {folder} cannot be made a folder ({error.strerror}); give another.") from error


def check_output_file(name: str, path: Path) -> None:
    """Checks that a file can be written, and creates its folder if it does not exist.

    Raises:
        OSError: if the folder cannot be created, or is a file.
        ValueError: if the path is a folder.
    """
    check_folder(f"the folder of {name}", path.parent)
    if path.is_dir():
        raise ValueError(f"{name} {path} is a folder; give a file.")


def check_seeds_differ(seeds: Sequence[int]) -> None:
    """Raises ValueError if a seed is given more than once."""
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must differ, but are {seeds}.")


def check_models_at_once(setup: Setup, source: Source) -> None:
    """Raises ValueError if several models are to be trained in one step, but cannot be."""
    if (setup.models_at_once or 1) == 1:
        return
    if data_mesh() is not None:
        raise ValueError(f"models_at_once is {setup.models_at_once}, but a step is spread over all devices; leave it out.")
    if isinstance(source.train.images, ImageFiles):
        raise ValueError(
            f"models_at_once is {setup.models_at_once}, but the images are read from disk, batch by batch; leave it out, or "
            "raise --data.memory-gb so that they fit in memory."
        )


def check_num_classes(model: Model, like: Variables, source: Source) -> None:
    """Raises ValueError if a network has fewer logits than the data has classes, or seems to return them first."""
    num_classes, where = source.num_classes, source.name
    widths = unsaid_pair(model, like, source.input_shapes)
    if widths is not None and widths[0] == num_classes:
        raise ValueError(which_order(widths, f"{where} has {num_classes} classes"))
    if model.num_classes < num_classes:
        raise ValueError(
            f"{where} has {num_classes} classes, but the network has {model.num_classes} logits; give a network with at "
            f"least {num_classes}."
        )


def check_trained_on(given: Checkpoint, where: str, source: Source, data: Data) -> None:
    """Raises ValueError if a given original was trained on other data."""
    metadata = given.metadata
    before, now = (
        (name, normalised({"source_version": version})["source_version"])
        for name, version in ((metadata.source, metadata.source_version), (source.name, source.version))
    )
    if metadata.source and before != now:
        raise ValueError(
            f"{where} was trained on {metadata.source} ({metadata.source_version}), but the data is {source.name} "
            f"({source.version}); its samples cannot be identified in other data. Give the data it was trained on."
        )
    trained_with = metadata.config.get("data", {})
    for name in ("limit", "label_noise", "label_noise_seed"):
        value = getattr(data, name)
        if name in trained_with and trained_with[name] != value:
            raise ValueError(
                f"{where} was trained with --data.{name.replace('_', '-')} {trained_with[name]}, but it is {value} now; "
                "give the same, so that the samples it saw are known."
            )


def check_batch_sizes(experiment: Experiment, split: Split, *, trains_original: bool) -> None:
    """Raises ValueError if a batch is larger than the set it is drawn from, or devices cannot share it equally."""
    for group in ("training", "method"):
        settings = getattr(experiment, group)
        names = [item.name for item in fields(settings)] if is_dataclass(settings) else []  # a method may be a function
        for name in (name for name in names if name.endswith("batch_size")):
            check_batch_size(f"{group}.{name}", getattr(settings, name), data_mesh())
    n_retain = len(split.retain)
    smallest = n_retain if experiment.retrained else n_retain + len(split.forget)
    if (trains_original or experiment.retrained) and experiment.training.batch_size > smallest:
        raise ValueError(
            f"training.batch_size is {experiment.training.batch_size}, but there are only {smallest} images to train on; "
            f"make it at most {smallest}."
        )
