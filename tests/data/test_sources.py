"""Where images come from: embedded digits, TFDS directories, a user's own arrays; and what is refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared_tfds import write_tfds
from sklearn.datasets import load_digits

from cujax.data.images import Data, Images, Reader, Source
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


def with_label(row, label, dtype):
    labels = (np.arange(40) % 4).astype(dtype)
    labels[row] = label
    return labels


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
        ({"labels": with_label(3, 1.5, float)}, "labels must be integers, but is float64; row 3 is 1.5"),
        ({"labels": with_label(3, 2**63, np.uint64)}, "labels must number .* but row 3 is 9223372036854775808"),
        ({"labels": with_label(3, 2**32 + 1, np.int64)}, "labels must number .* but row 3 is 4294967297"),
        ({"labels": with_label(3, 2**31, np.uint32)}, "labels must number .* but row 3 is 2147483648"),
        ({"labels": with_label(3, -1, np.int8)}, "labels must count classes from 0, but row 3 is -1"),
        ({"labels": with_label(3, 2**31 - 2, np.int64)}, "no training image has label 4"),
        ({"labels": np.arange(30) % 4}, r"\[40\] integers, one for each image, but is \(30,\)"),
        ({"ids": np.array(["same"] * 40)}, r"unique, but \['same'\] occur more than once"),
        ({"ids": np.array([f"a\nb{row}" for row in range(40)])}, "line breaks"),
        ({"ids": np.array(["x", "y"])}, r"ids must be \[40\]"),
        ({"test_images": np.zeros((4, 6, 5, 3), np.uint8)}, "test_images, but no test_labels"),
        ({"test_images": np.zeros((4, 9, 9, 3), np.uint8), "test_labels": np.arange(4)}, "the same shape and dtype"),
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
    with pytest.raises(ValueError, match="Python objects are rejected"):
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
        ValueError, match=r"mine.npz takes 0.00 GB in memory, more than the 1e-07 GB allowed.*--data.memory-gb"
    ):
        load_source(Data(str(tmp_path / "mine.npz"), memory_gb=1e-7))


def test_a_tfds_data_set_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    write_tfds(tmp_path, "things", n=(200, 10))  # 6,300 bytes, 600 with a limit of 10
    message = r"data set 'things' takes 0.00 GB in memory, more than the 5e-06 GB allowed.*--data.limit.*folder of images"
    with pytest.raises(ValueError, match=message):
        load_source(Data("things", str(tmp_path), memory_gb=5e-6))
    assert len(load_source(Data("things", str(tmp_path), limit=10, memory_gb=5e-6)).train) == 10


@pytest.mark.parametrize("label", [-1, 3, 2**32 + 1, 2**63])
@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_that_are_no_class_are_refused_whoever_read_them(part, label, monkeypatch):
    labels = {"train": np.arange(12, dtype=np.uint64 if label > 0 else int) % 3, "test": np.arange(6) % 3}
    labels[part] = labels[part].astype(np.uint64 if label > 0 else int)
    labels[part][4] = label
    images = {
        name: Images(
            np.zeros((len(found), 2, 2, 1), np.uint8), found, np.array([f"{name} {row}" for row in range(len(found))])
        )
        for name, found in labels.items()
    }
    source = Source("theirs", "1", images["train"], images["test"], ("a", "b", "c"), np.zeros(1), np.ones(1))
    reader = Reader(lambda data: True, lambda data, progress: source)
    monkeypatch.setattr("cujax.data.sources._readers", lambda: iter([reader]))
    with pytest.raises(ValueError, match=rf"theirs: {part}\w* labels must .* row 4 is {label}"):
        load_source(Data("theirs"))


@pytest.mark.parametrize(
    "changes", [{"label_noise": 1.0}, {"label_noise": -0.1}, {"limit": 0}, {"image_size": 0}, {"memory_gb": -1.0}]
)
def test_impossible_data_settings_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Data(**changes)


def test_a_tfds_data_set_is_read_with_its_normalisation(tmp_path):
    written = write_tfds(tmp_path, "fashion_mnist", version="3.0.1", n=(60, 10))
    source = load_source(Data("fashion_mnist", str(tmp_path), limit=50))
    np.testing.assert_array_equal(source.train.images, written["train"][0][:50])
    np.testing.assert_array_equal(source.train.labels, written["train"][1][:50])
    np.testing.assert_array_equal(source.test.images, written["test"][0])
    assert source.train.ids[[0, -1]].tolist() == ["train_00000", "train_00049"]
    assert (source.name, source.version, source.class_names) == ("fashion_mnist", "3.0.1", ("a", "b", "c"))
    np.testing.assert_allclose([source.mean.item(), source.std.item()], [0.2860, 0.3530])


def test_pixels_of_an_unknown_tfds_data_set_are_normalised_by_their_own_statistics(tmp_path):
    pixels = write_tfds(tmp_path, "things", shape=(6, 5, 3))["train"][0].reshape(-1, 3) / 255
    source = load_source(Data("things", str(tmp_path)))
    np.testing.assert_allclose([source.mean, source.std], [pixels.mean(0), pixels.std(0)], rtol=1e-5)


def test_ids_of_a_tfds_data_set_are_its_own(tmp_path):
    written = write_tfds(tmp_path, "things", ids=True)
    source = load_source(Data("things", str(tmp_path), limit=15))
    assert source.train.ids.tolist() == written["train"][2][:15] != sorted(written["train"][2][:15])
    assert source.test.ids.tolist() == written["test"][2]


def test_the_newest_version_of_a_tfds_data_set_is_read(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.9.9"):
        write_tfds(tmp_path, "things", version=version)
    assert load_source(Data("things", str(tmp_path))).version == "10.0.0"


def test_a_configuration_of_a_tfds_data_set_is_named_or_the_only_one(tmp_path, monkeypatch):
    first = write_tfds(tmp_path, "things", config="large", seed=1)["train"][0]
    np.testing.assert_array_equal(load_source(Data("things", str(tmp_path))).train.images, first)
    second = write_tfds(tmp_path, "things", config="small", seed=2)["train"][0]
    with pytest.raises(ValueError, match=r"'things' has the configurations large, small; .*--data.source things/large"):
        load_source(Data("things", str(tmp_path)))
    sources = [load_source(Data(f"things/{config}", str(tmp_path))) for config in ("large", "small")]
    for source, images in zip(sources, (first, second), strict=True):
        np.testing.assert_array_equal(source.train.images, images)
    assert [source.name for source in sources] == ["things/large", "things/small"]
    assert sources[0].version != sources[1].version
    with pytest.raises(FileNotFoundError, match=r"things/absent does not exist.*NAME/CONFIG"):
        load_source(Data("things/absent", str(tmp_path)))


def test_a_folder_that_exists_is_not_taken_for_a_configuration(tmp_path, monkeypatch):
    write_tfds(tmp_path / "prepared", "things", config="large")
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "things" / "large" / label).mkdir(parents=True)
        for number in range(2):
            Image.linear_gradient("L").resize((6, 5)).rotate(180 * number).save(
                tmp_path / "things" / "large" / label / f"{number}.png"
            )
    assert load_source(Data("things/large", str(tmp_path / "prepared"))).class_names == ("a", "b")


def test_reading_tfds_needs_no_tensorflow(tmp_path):
    write_tfds(tmp_path, "things")
    code = (
        "import sys\n"
        "from cujax.data.sources import Data, load_source\n"
        f"print(len(load_source(Data('things', {str(tmp_path)!r}, limit=5)).train), 'tensorflow' in sys.modules)"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.stdout.split() == ["5", "False"], finished.stderr


def test_a_data_set_that_is_not_there_is_told_with_the_way_to_prepare_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not in [\s\S]*--data.data-dir[\s\S]*cujax prepare-data mnist"):
        load_source(Data("mnist", str(tmp_path)))


def test_a_tfrecord_directory_is_told(tmp_path):
    write_tfds(tmp_path, "things")
    path = tmp_path / "things" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"prepared as tfrecord[\s\S]*array_record[\s\S]*cujax prepare-data things"):
        load_source(Data("things", str(tmp_path)))


@pytest.mark.parametrize("n", range(1, 13))
def test_every_class_of_two_or_more_images_has_one_to_test_with(tmp_path, n):
    """Beside a class of 20, whose every fifth image is for testing, as of all classes of five or more."""
    labels = np.concatenate([np.zeros(20, int), np.ones(n, int)])
    ids = np.array([f"{label} {row}" for label, row in zip(labels, [*range(20), *range(n)], strict=True)])
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    test = set(load(tmp_path, {"images": images, "labels": labels, "ids": ids}).test.ids.tolist())
    few = {1: [], 2: [1], 3: [2], 4: [3]}
    expected = few[n] if n < 5 else [row for row in range(n) if row % 5 == 4]
    assert test == {f"0 {row}" for row in (4, 9, 14, 19)} | {f"1 {row}" for row in expected}


def write_images(root, classes=("a", "b"), n=20, bad=0):
    rng = np.random.default_rng(len(root.name))
    for label in classes:
        (root / label).mkdir(parents=True)
        for number in range(n):
            path = root / label / f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8)).save(path)
            if number < bad:
                path.write_bytes(path.read_bytes()[:30])


def as_folder(path):
    write_images(path / "pets")
    return Data(f"{path}/pets")


def as_folder_with_damage(path):
    write_images(path / "pets", bad=4)
    return Data(f"{path}/pets", skip_bad=True)


def as_folder_with_test_part(path):
    write_images(path / "pets" / "train", bad=4)
    write_images(path / "pets" / "test", n=5)
    return Data(f"{path}/pets", skip_bad=True)


def as_arrays(path):
    np.savez(path / "mine.npz", **arrays())
    return Data(f"{path}/mine.npz")


def as_arrays_with_test_part(path):
    np.savez(path / "mine.npz", **arrays(), test_images=arrays(8)["images"], test_labels=np.arange(8) % 4)
    return Data(f"{path}/mine.npz")


def as_tfds(path):
    write_tfds(path, "things")
    return Data("things", str(path))


def as_digits(path):
    return Data()


KINDS = [as_folder, as_folder_with_damage, as_folder_with_test_part, as_arrays, as_arrays_with_test_part, as_tfds, as_digits]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_limit_counts_training_images_after_the_test_images_are_held_out(tmp_path, kind):
    data = kind(tmp_path)
    whole = load_source(data)
    for limit in (1, 11, 10_000):
        limited = load_source(dataclasses.replace(data, limit=limit))
        n = min(limit, len(whole.train))
        assert len(limited.train) == n
        for part, expected in ((limited.train, whole.train.take(np.arange(n))), (limited.test, whole.test)):
            np.testing.assert_array_equal(part.ids, expected.ids)
            np.testing.assert_array_equal(part.labels, expected.labels)
            np.testing.assert_array_equal(part.images, expected.images)
