"""TFDS data sets prepared as array_record, read without TensorFlow."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cujax.data.images import (
    DEFAULT_DATA_DIR,
    NORMALIZATION,
    Data,
    Images,
    Reader,
    Source,
    check_memory,
    numbered_ids,
    pixel_statistics,
)
from cujax.progress import Progress

_ALIASES = {"svhn": "svhn_cropped", "fashion-mnist": "fashion_mnist"}


def _read(data: Data, progress: Progress) -> Source:
    import absl.logging
    import tensorflow_datasets as tfds

    absl.logging.set_verbosity(absl.logging.ERROR)
    name = _ALIASES.get(data.source, data.source)
    directory = _newest_version(name, _data_dir(data))
    builder = tfds.builder_from_directory(directory)
    config = builder.info.config_name
    version = str(builder.info.version)
    if config:
        name = name if "/" in name else f"{name}/{config}"
        version = f"{name} {version}"
    prepare = _prepare(name, _data_dir(data))
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise ValueError(
            f"{directory} is prepared as {file_format and file_format.value}, which only TensorFlow can "
            f"read; cujax reads array_record. Prepare it again in another folder:\n  {prepare}-array_record"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise ValueError(
            f"data set {name!r} has the features {sorted(features)}, but an image and a class label are needed."
        )
    absent = [split for split in ("train", "test") if split not in builder.info.splits]
    if absent:
        raise ValueError(f"data set {name!r} has the splits {sorted(builder.info.splits)}, but no {absent[0]!r}.")
    shape = features["image"].shape
    if None in shape:
        raise ValueError(
            f"images of {name!r} are of different sizes {shape}; export it as a folder of images (CLASS/*.png) and bring "
            "them to one size with --data.image-size."
        )
    n_train = builder.info.splits["train"].num_examples
    n_images = min(data.limit or n_train, n_train) + builder.info.splits["test"].num_examples
    check_memory(f"data set {name!r}", n_images * math.prod(shape), data)
    train = _read_split(builder, "train", data.limit, progress)
    test = _read_split(builder, "test", None, progress)
    if name in NORMALIZATION:
        mean, std = (np.array(values, np.float32) for values in NORMALIZATION[name])
    else:
        mean, std = pixel_statistics(train)
    return Source(name, version, train, test, tuple(features["label"].names), mean, std)


def _data_dir(data: Data) -> Path:
    return Path(data.data_dir or os.environ.get("TFDS_DATA_DIR", DEFAULT_DATA_DIR)).expanduser()


def _prepare(name: str, data_dir: Path) -> str:
    return f"uv run --extra prepare cujax prepare-data {name} --data-dir {data_dir}"


def _newest_version(name: str, data_dir: Path) -> Path:
    """The folder of a data set's newest version; NAME, or NAME/CONFIG, which is needed if there are several."""
    versions = _versions(data_dir / name)
    if versions:
        return max(versions, key=_version_key)
    configs = {} if "/" in name else {path.name: _versions(path) for path in sorted((data_dir / name).glob("*"))}
    configs = {config: found for config, found in configs.items() if found}
    if not configs:
        raise FileNotFoundError(
            f"data set {name!r} is not in {data_dir}. If it is in another folder, name that folder with --data.data-dir or "
            f"TFDS_DATA_DIR. If it does not exist yet, prepare it once (this needs network):\n  {_prepare(name, data_dir)}\n"
            f"A folder of images in this directory is given as ./{name}. "
            "The embedded data set --data.source digits needs no download."
        )
    if len(configs) > 1:
        raise ValueError(
            f"data set {name!r} has the configurations {', '.join(configs)}; choose one, as in --data.source "
            f"{name}/{next(iter(configs))}."
        )
    (only,) = configs.values()
    return max(only, key=_version_key)


def _versions(directory: Path) -> list[Path]:
    """The subfolders, one per version, with a prepared data set."""
    return [
        info.parent for info in directory.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
    ]


def _version_key(directory: Path) -> list[int]:
    return [int(number) for number in directory.name.split(".")]


def _is_named(data: Data) -> bool:
    """Whether a source is a TFDS data set: a name, or NAME/CONFIG that is prepared, and not a path that exists."""
    if "/" not in data.source:
        return True
    is_name = re.fullmatch(r"\w+/[\w.+-]+", data.source) is not None
    return is_name and not Path(data.source).exists() and bool(_versions(_data_dir(data) / data.source))


def _read_split(builder: "object", split: str, limit: int | None, progress: Progress) -> Images:
    source = builder.as_data_source(split=split)  # type: ignore[attr-defined]
    n = len(source) if limit is None else min(limit, len(source))
    chunk = 1000
    images, labels, ids = [], [], []
    with progress(f"reading {split} images", n) as advance:
        for start in range(0, n, chunk):
            rows: Sequence[dict] = source.__getitems__(list(range(start, min(start + chunk, n))))
            images += [row["image"] for row in rows]
            labels += [row["label"] for row in rows]
            ids += [row["id"] for row in rows if "id" in row]
            advance(len(rows))
    names = np.array([name.decode() for name in ids]) if ids else numbered_ids(split, n)
    return Images(np.stack(images), np.array(labels), names)


READER = Reader(_is_named, _read)
