"""CIFAR's binary archives: every pixel and label, agreement with TFDS, and archives that are damaged or of another kind."""

import io
import tarfile

import numpy as np
import pytest

from cujax.data.images import Data
from cujax.data.sources import load_source

RNG = np.random.default_rng(0)
NAMES = {10: tuple("abcdefghij"), 100: tuple(f"name_{n}" for n in range(100))}


def records(images, labels, coarse=None):
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    columns = [labels[:, None], planes] if coarse is None else [coarse[:, None], labels[:, None], planes]
    return np.concatenate(columns, axis=1).astype(np.uint8).tobytes()


def make(classes, n=20):
    """The files of an archive, and the training and test images and labels they hold."""
    parts = [(RNG.integers(0, 256, (n, 32, 32, 3)), RNG.permutation(np.arange(n) % classes)) for _ in range(6)]
    if classes == 10:
        files = {f"data_batch_{number}.bin": records(*part) for number, part in enumerate(parts[:5], start=1)}
        files |= {"test_batch.bin": records(*parts[5]), "batches.meta.txt": "\n".join((*NAMES[10], "")).encode()}
    else:
        coarse = np.full(5 * n, 3)
        train = np.concatenate([part[0] for part in parts[:5]]), np.concatenate([part[1] for part in parts[:5]])
        files = {"train.bin": records(*train, coarse), "test.bin": records(*parts[5], coarse[:n])}
        files |= {"fine_label_names.txt": "\n".join(NAMES[100]).encode(), "coarse_label_names.txt": b"coarse"}
    train = np.concatenate([part[0] for part in parts[:5]]), np.concatenate([part[1] for part in parts[:5]])
    return files, train, parts[5]


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("packed", [True, False])
def test_every_pixel_label_and_name_is_read(classes, packed, tmp_path):
    files, (train_images, train_labels), (test_images, test_labels) = make(classes)
    path = tmp_path / "unpacked"
    if packed:
        path = archive(tmp_path / "cifar.tar.gz", files)
    else:
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    source = load_source(Data(str(path)))
    assert source.name == f"cifar{classes}"
    assert source.class_names == NAMES[classes]
    np.testing.assert_array_equal(source.train.images, train_images)
    np.testing.assert_array_equal(source.train.labels, train_labels)
    np.testing.assert_array_equal(source.test.images, test_images)
    np.testing.assert_array_equal(source.test.labels, test_labels)
    assert source.train.ids[[0, 42]].tolist() == ["train_00000", "train_00042"]


def test_an_archive_of_the_same_images_has_the_ids_and_normalisation_of_tfds(tfds_data_dir, tmp_path):
    prepared = load_source(Data("cifar10", tfds_data_dir, limit=300))
    row = {name: number for number, name in enumerate(prepared.train.ids.tolist())}
    in_order = sorted(row)  # TFDS shuffles, and keeps the row of the original file in the id
    images = prepared.train.images[[row[name] for name in in_order]]
    labels = prepared.train.labels[[row[name] for name in in_order]]
    content = records(images, labels)
    names = "\n".join(prepared.class_names).encode()
    files = {"data_batch_1.bin": content, "test_batch.bin": content, "batches.meta.txt": names}
    files |= {f"data_batch_{number}.bin": content[: 3073 * 10] for number in range(2, 6)}
    source = load_source(Data(str(archive(tmp_path / "c.tar.gz", files))))
    np.testing.assert_array_equal(source.train.images[:300], images)
    np.testing.assert_array_equal(source.mean, prepared.mean)
    np.testing.assert_array_equal(source.std, prepared.std)
    assert all(name.startswith("train_") and len(name) == len(source.train.ids[0]) for name in in_order)


def refused(path, error=ValueError):
    with pytest.raises(error) as raised:
        load_source(Data(str(path)))
    return str(raised.value)


def test_what_cannot_be_read_is_told(tmp_path):
    files, _, _ = make(10)
    assert "does not exist" in refused(tmp_path / "none.tar.gz", FileNotFoundError)
    whole = archive(tmp_path / "whole.tar.gz", files)
    for keep in (0, 100, whole.stat().st_size // 2):
        cut = tmp_path / f"cut{keep}.tar.gz"
        cut.write_bytes(whole.read_bytes()[:keep])
        assert "truncated or damaged" in refused(cut)
    short = files | {"data_batch_3.bin": files["data_batch_3.bin"][:-1]}
    assert "data_batch_3.bin has 61459 bytes, not a multiple of 3073" in refused(archive(tmp_path / "s.tar.gz", short))
    label = files | {"data_batch_2.bin": bytes([77]) + files["data_batch_2.bin"][1:]}
    assert "record 0 has label 77, but there are 10 classes" in refused(archive(tmp_path / "l.tar.gz", label))
    lacking = {name: content for name, content in files.items() if name != "data_batch_4.bin"}
    assert "lacks data_batch_4.bin" in refused(archive(tmp_path / "m.tar.gz", lacking))
    pickles = {"data_batch_1": b"pickle", "test_batch": b"pickle", "batches.meta": b"pickle"}
    assert "pickles are never opened" in refused(archive(tmp_path / "p.tar.gz", pickles))
