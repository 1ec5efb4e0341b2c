"""Checks of a setup before anything is computed, in addition to those of data, storage and methods."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import jax
import numpy as np

from cujax.adapters.common import unsaid_pair, which_order
from cujax.data.class_labels import with_names
from cujax.data.decoding import ImageFiles
from cujax.data.images import Data, Source
from cujax.data.requests import Part, Request, Split
from cujax.experiments.config import Experiment, Setup
from cujax.experiments.identity import normalised
from cujax.experiments.request_words import describe_request
from cujax.methods.retrain import Retrain, RetrainShort
from cujax.model import Model, Variables
from cujax.sharding import check_batch_size, data_mesh
from cujax.storage.checkpoints import Checkpoint

# With fewer errors to spare, a run that harms nothing may be ended by chance.
_FEW_ERRORS = 3
# A standardised column hardly ever has such a value.
_MANY_DEVIATIONS = 50.0


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
        raise OSError(f"{name} {folder} cannot be created as a folder ({error.strerror}); give another path.") from error


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
        raise ValueError(f"seeds must differ, but are {seeds}; give each seed only once.")


def check_models_at_once(setup: Setup, source: Source) -> None:
    """Raises ValueError if several models are to be trained in one step, but cannot be."""
    if (setup.models_at_once or 1) == 1:
        return
    if data_mesh() is not None:
        raise ValueError(
            f"models_at_once is {setup.models_at_once}, but with several devices, each step is spread over all of them; "
            "leave it out."
        )
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
                f"{where} was trained with --data.{name.replace('_', '-')} {trained_with[name]}, but is {value} now; give "
                "the same value, so that it is known which samples the model has seen."
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


def check_one_task(request: Request, split: Split, source: Source) -> None:
    """Raises ValueError if a request is for whole classes and for samples of others at once."""
    parts = split.divided(source.train.labels)
    if len(parts) == 1:
        return
    classes, samples = parts
    names = with_names(classes.forgotten_classes, source.class_names)
    raise ValueError(
        f"{describe_request(request)} names all of {names} and {len(samples.forget)} samples of other classes. Settings and "
        "verdicts for classes and for samples differ, so compare and tune accept only one of the two: give one request for "
        "the classes and another with a list of the samples. unlearn accepts both in one request and judges them "
        "separately."
    )


def remarks(experiment: Experiment, source: Source, split: Split, given: Checkpoint | None) -> Iterator[str]:
    """What users should know about a request, or about a given original, before anything is computed."""
    if len(split.copies):
        forgets = experiment.forget.copies == "with"
        how = "are forgotten too" if forgets else "are retained, so models are still trained on them"
        yield f"{len(split.copies)} images have the same pixels as one in the request and {how}: {_some(split.copies)}."
    if len(split.copies_in_test):
        yield (
            f"{len(split.copies_in_test)} test images have the same pixels as one in the request, but the audit treats them "
            f"as images that the model has never seen: {_some(split.copies_in_test)}. Remove them from the test images."
        )
    if given is not None and not given.metadata.source and experiment.validation_rows == "tenth":
        yield (
            f"{experiment.original} does not record what it was trained on. The {len(split.validation)} validation images "
            "are assumed to be images that it has not seen. If it has seen them, give --no-validation, or give images that "
            "it has not seen with --validation-ids FILE."
        )
    largest = 0.0 if source.are_images else _largest(source)
    if largest > _MANY_DEVIATIONS:
        yield (
            f"inputs of {source.name} are as large as {largest:g}, and networks train badly on such values. They are used "
            "as given; standardise each column with the mean and the standard deviation of the training samples."
        )
    labels = source.train.labels[split.validation.indices]
    retained = int(np.isin(labels, split.retained_classes).sum())
    errors = math.floor(experiment.retain_tolerance * retained + 1e-9)
    if retained > 0 and errors < _FEW_ERRORS and not isinstance(experiment.method, Retrain | RetrainShort):
        enough = min(1.0, math.ceil(20 * _FEW_ERRORS / retained) / 20)
        yield (
            f"retain_tolerance {experiment.retain_tolerance:g} allows {errors} more error{'s' * (errors != 1)} on the "
            f"{retained} validation samples of retained classes, so the run may end by chance before anything is "
            f"forgotten. If it does, raise the tolerance with --retain-tolerance {enough:g}."
        )


def _largest(source: Source) -> float:
    """The largest absolute value of the training inputs that are floats; integers may be tokens."""
    leaves = map(np.asarray, jax.tree.leaves(source.train.images))
    return max(
        (float(max(leaf.max(), -leaf.min())) for leaf in leaves if np.issubdtype(leaf.dtype, np.floating)), default=0.0
    )


def _some(part: Part) -> str:
    return f"{', '.join(part.ids[:5].tolist())}{', ...' if len(part) > 5 else ''}"
