"""Small data sets prepared as array_record, as TFDS would write them, without TensorFlow or network."""

import io
import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image


def png(pixels):
    """The file's content; TFDS would need TensorFlow to make it."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    file.seek(0)
    return file


def write_tfds(
    data_dir, name, *, config=None, version="1.0.0", shape=(6, 5, 1), classes=("a", "b", "c"), n=(20, 8), ids=False, seed=0
):
    """Writes a data set; what is in it, by split: images, labels and ids in the order of its rows.

    With `ids` the rows are shuffled, and each has its place before that in its id, as in CIFAR-10.
    """
    rng = np.random.default_rng(seed)
    features = {"image": tfds.features.Image(shape=shape, dtype=np.uint8), "label": tfds.features.ClassLabel(names=classes)}
    features = tfds.features.FeaturesDict(features | ({"id": tfds.features.Text()} if ids else {}))
    directory = Path(data_dir, name, config or "", version)
    directory.mkdir(parents=True)
    features.save_config(directory)
    written, splits = {}, []
    for split, rows in zip(("train", "test"), n, strict=True):
        images = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
        labels = rng.integers(0, len(classes), rows)
        order = rng.permutation(rows) if ids else np.arange(rows)
        names = [f"{split}_{row:05d}" for row in order]
        file = directory / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for image, label, text in zip(images, labels, names, strict=True):
            example = {"image": png(image), "label": int(label)} | ({"id": text} if ids else {})
            writer.write(features.serialize_example(features.encode_example(example)))
        writer.close()
        written[split] = images, labels, names
        splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(file.stat().st_size),
                "shardLengths": [str(rows)],
            }
        )
    info = {"fileFormat": "array_record", "name": name, "splits": splits, "version": version}
    info |= {} if config is None else {"configName": config}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return written
