"""Where images come from: embedded digits, TFDS directories, a user's own arrays; and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cujax.data.images import Data
from cujax.data.sources import load_source


def test_digits_are_all_there_with_stable_ids_and_exact_pixels():
    source, again, bunch = load_source(Data()), load_source(Data()), load_digits()
    assert len(source.train) + len(source.test) == len(bunch.target)
    assert set(source.train.ids).isdisjoint(source.test.ids)
    for part in (source.train, source.test):
        rows = np.array([int(name.removeprefix("digits_")) for name in part.ids])
        np.testing.assert_array_equal(np.round(part.images[..., 0] * (16 / 255)), bunch.images[rows])
        np.testing.assert_array_equal(part.labels, bunch.target[rows])
        assert set(part.labels) == set(range(10))
    np.testing.assert_array_equal(source.train.ids, again.train.ids)
    assert source.train.images.dtype == np.uint8
    pixels = source.train.images.astype(np.float64) / 255
    np.testing.assert_allclose([source.mean[0], source.std[0]], [pixels.mean(), pixels.std()], rtol=1e-6)


def test_the_limit_takes_the_first_training_images():
    whole, limited = load_source(Data()), load_source(Data(limit=50))
    np.testing.assert_array_equal(limited.train.ids, whole.train.ids[:50])
    assert len(limited.test) == len(whole.test)


def test_label_noise_is_exact_seeded_recorded_and_spares_the_test_set():
    clean, noisy, other = load_source(Data()), *(load_source(Data(label_noise=0.2, label_noise_seed=s)) for s in (0, 1))
    changed = clean.train.labels != noisy.train.labels
    assert changed.sum() == round(0.2 * len(clean.train))
    assert set(noisy.redrawn_ids) == set(clean.train.ids[changed])
    assert set(other.redrawn_ids) != set(noisy.redrawn_ids)
    np.testing.assert_array_equal(clean.test.labels, noisy.test.labels)
    np.testing.assert_array_equal(noisy.train.labels, load_source(Data(label_noise=0.2)).train.labels)
    assert set(noisy.train.labels) <= set(range(10))
    assert clean.redrawn_ids == ()


def arrays(n=40, **changes):
    rng = np.random.default_rng(0)
    made = {
        "images": rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8),
        "labels": np.arange(n) % 4,
        "ids": np.array([f"person {row}" for row in range(n)]),
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def load(tmp_path, contents):
    np.savez(tmp_path / "mine.npz", **contents)
    return load_source(Data(str(tmp_path / "mine.npz")))


def test_own_arrays_are_split_by_class_and_keep_their_ids(tmp_path):
    contents = arrays()
    source = load(tmp_path, contents)
    assert len(source.train) == 32
    assert np.bincount(source.test.labels).tolist() == [2, 2, 2, 2]
    for part in (source.train, source.test):
        rows = [int(name.split()[1]) for name in part.ids]
        np.testing.assert_array_equal(part.images, contents["images"][rows])
    pixels = source.train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(source.mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(source.std, pixels.std(0), rtol=1e-5)
    assert source.num_classes == 4


def test_own_test_images_are_taken_and_ids_numbered_where_missing(tmp_path):
    contents = arrays(ids=None, test_images=arrays(8)["images"], test_labels=np.arange(8) % 4)
    source = load(tmp_path, contents)
    assert source.train.ids[:2].tolist() == ["train_00000", "train_00001"]
    assert source.test.ids[0] == "test_00000"
    assert (len(source.train), len(source.test)) == (40, 8)


def test_float_images_are_taken_as_preprocessed_and_gain_a_channel(tmp_path):
    images = np.random.default_rng(0).normal(size=(40, 6, 5))
    source = load(tmp_path, arrays(images=images))
    assert source.train.images.shape == (32, 6, 5, 1)
    assert source.train.images.dtype == np.float32
    assert (source.mean.item(), source.std.item()) == (0, 1)


def test_the_version_of_own_arrays_is_their_content(tmp_path):
    contents = arrays()
    first = load(tmp_path, contents).version
    assert load(tmp_path, contents).version == first
    contents["images"][3, 0, 0, 0] ^= 1
    assert load(tmp_path, contents).version != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "but no labels"),
        ({"images": np.zeros((40, 6), np.uint8)}, r"must be \[n, H, W\].*\(40, 6\)"),
        ({"images": np.zeros((0, 6, 5, 1), np.uint8)}, "not empty"),
        ({"images": np.zeros((40, 6, 5, 1), np.int64)}, "uint8 .* or float .*int64"),
        (
            {"images": np.where(np.arange(40)[:, None, None] == 7, np.nan, 1.0) * np.ones((40, 6, 5))},
            r"NaN.*1 images.*\[7\]",
        ),
        ({"labels": np.arange(40) % 4 - 1}, "count classes from 0, but row 0 is -1"),
        ({"labels": np.arange(40) % 4 * 2}, "no training image has label 1"),
        ({"labels": (np.arange(40) % 4).astype(float)}, r"\[40\] integers"),
        ({"labels": np.arange(30) % 4}, r"\[40\] integers, one an image, but is \(30,\)"),
        ({"ids": np.array(["same"] * 40)}, r"unique, but \['same'\] recur"),
        ({"ids": np.array([f"a\nb{row}" for row in range(40)])}, "line breaks"),
        ({"ids": np.array(["x", "y"])}, r"ids must be \[40\]"),
        ({"test_images": np.zeros((4, 6, 5, 3), np.uint8)}, "test_images, but no test_labels"),
        ({"test_images": np.zeros((4, 9, 9, 3), np.uint8), "test_labels": np.arange(4)}, "one shape and dtype"),
    ],
)
def test_malformed_arrays_are_told(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, arrays(**changes))


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_arrays_are_refused_and_run_nothing(tmp_path):
    sprung = tmp_path / "sprung"
    with pytest.raises(ValueError, match="Python objects are refused"):
        load(tmp_path, arrays(ids=np.array([Trap(sprung)] * 40, dtype=object)))
    assert not sprung.exists()


def test_a_missing_or_truncated_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz does not exist; write one with"):
        load_source(Data(str(tmp_path / "nothing.npz")))
    load(tmp_path, arrays())
    path = tmp_path / "mine.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read as plain arrays"):
        load_source(Data(str(path)))


def test_arrays_larger_than_the_memory_they_may_take_are_refused_before_they_are_read(tmp_path):
    load(tmp_path, arrays())
    with pytest.raises(
        ValueError, match=r"mine.npz takes 0.00 GB in memory, more than the 1e-07 GB it may.*--data.memory-gb"
    ):
        load_source(Data(str(tmp_path / "mine.npz"), memory_gb=1e-7))


def test_a_tfds_data_set_larger_than_memory_is_refused_before_it_is_read(tfds_data_dir):
    message = r"data set 'cifar10' takes 0.18 GB in memory, more than the 0.1 GB it may.*--data.limit.*folder of images"
    with pytest.raises(ValueError, match=message):
        load_source(Data("cifar10", tfds_data_dir, memory_gb=0.1))
    load_source(Data("cifar10", tfds_data_dir, limit=10, memory_gb=0.1))


@pytest.mark.parametrize(
    "changes", [{"label_noise": 1.0}, {"label_noise": -0.1}, {"limit": 0}, {"image_size": 0}, {"memory_gb": -1.0}]
)
def test_impossible_data_settings_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Data(**changes)


def test_a_tfds_data_set_is_read_with_its_normalisation(tfds_data_dir):
    source = load_source(Data("fashion_mnist", tfds_data_dir, limit=50))
    assert source.train.images.shape == (50, 28, 28, 1)
    assert source.train.ids[[0, -1]].tolist() == ["train_00000", "train_00049"]
    assert (len(source.test), source.version, source.class_names[5]) == (10_000, "3.0.1", "Sandal")
    np.testing.assert_allclose([source.mean.item(), source.std.item()], [0.2860, 0.3530])


def test_ids_of_a_tfds_data_set_are_its_own(tfds_data_dir):
    source = load_source(Data("cifar10", tfds_data_dir, limit=20))
    assert source.train.images.shape == (20, 32, 32, 3)
    assert len(set(source.train.ids)) == 20
    assert all(name.startswith("train_") for name in source.train.ids)
    assert source.train.ids.tolist() != sorted(source.train.ids)
    np.testing.assert_allclose(source.mean, (0.4914, 0.4822, 0.4465))


def test_reading_tfds_needs_no_tensorflow(tfds_data_dir):
    code = (
        "import sys\n"
        "from cujax.data.sources import Data, load_source\n"
        f"print(len(load_source(Data('fashion_mnist', {tfds_data_dir!r}, limit=5)).train), 'tensorflow' in sys.modules)"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.stdout.split() == ["5", "False"], finished.stderr


def test_a_data_set_that_is_not_there_is_told_with_the_way_to_prepare_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not in [\s\S]*--data.data-dir[\s\S]*prepare_data.py mnist"):
        load_source(Data("mnist", str(tmp_path)))


def test_a_tfrecord_directory_is_told(tfds_data_dir, tmp_path):
    origin = Path(tfds_data_dir) / "fashion_mnist" / "3.0.1"
    target = tmp_path / "fashion_mnist" / "3.0.1"
    target.mkdir(parents=True)
    for path in origin.glob("*.[jt]*"):
        shutil.copyfile(path, target / path.name)
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"prepared as tfrecord[\s\S]*array_record[\s\S]*prepare_data.py fashion_mnist"):
        load_source(Data("fashion_mnist", str(tmp_path)))
