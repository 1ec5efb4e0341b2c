"""Folders of images: what is read, what is refused and with which message, and that streaming gives what memory gives."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from cujax.data.batches import to_device
from cujax.data.decoding import ImageFiles
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, make_split
from cujax.data.sources import load_source

RNG = np.random.default_rng(0)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def random_pixels(shape=(6, 5, 3)):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Ten images of each of three classes, and their pixels by id."""
    pixels = {}
    for name in ("cat", "dog", "eel"):
        for number in range(10):
            image = random_pixels()
            pixels[f"{name}/{number}.png"] = image
            write(tmp_path / "pets" / name / f"{number}.png", image)
    return tmp_path / "pets", pixels


def load(root, **options):
    return load_source(Data(str(root), **options))


def test_every_image_is_read_with_its_class_and_its_path_as_id(folder):
    root, pixels = folder
    source = load(root)
    assert source.class_names == ("cat", "dog", "eel")
    assert (len(source.train), len(source.test)) == (24, 6)
    for part in (source.train, source.test):
        for image, label, name in zip(part.images, part.labels, part.ids, strict=True):
            np.testing.assert_array_equal(image, pixels[name])
            assert source.class_names[label] == name.split("/")[0]
    assert {*source.train.ids, *source.test.ids} == set(pixels)
    np.testing.assert_array_equal(np.bincount(source.test.labels), [2, 2, 2])
    everything = np.stack(list(pixels.values())).astype(np.float64) / 255
    np.testing.assert_allclose(source.mean, everything.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(source.std, everything.std(axis=(0, 1, 2)), rtol=1e-6)


def test_order_comes_from_the_ids_so_that_the_first_images_are_of_all_classes(folder):
    root, _ = folder
    source = load(root)
    digests = [hashlib.sha256(name.encode()).digest() for name in source.train.ids]
    assert digests == sorted(digests)
    assert set(load(root, limit=10).train.labels.tolist()) == {0, 1, 2}


def test_the_version_changes_with_any_content(folder):
    root, _ = folder
    before = load(root)
    assert load(root).version == before.version
    assert load(root, image_size=4).version != before.version
    write(root / "cat" / "0.png", random_pixels())
    assert load(root).version != before.version


def test_train_and_test_folders_are_kept_apart_and_val_will_do(tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            for number in range(count):
                write(tmp_path / part / name / "images" / f"{number}.JPEG", random_pixels())
    source = load(tmp_path)
    assert (len(source.train), len(source.test)) == (8, 4)
    assert all(name.startswith("train/") for name in source.train.ids)
    assert all(name.startswith("val/") for name in source.test.ids)


def test_streamed_images_are_those_in_memory(folder):
    root, _ = folder
    whole, streamed = load(root), load(root, memory_gb=0.0)
    assert isinstance(streamed.train.images, ImageFiles)
    for part, other in ((whole.train, streamed.train), (whole.test, streamed.test)):
        np.testing.assert_array_equal(part.ids, other.ids)
        np.testing.assert_array_equal(part.labels, other.labels)
        assert other.images.shape == part.images.shape
        np.testing.assert_array_equal(other.images.read(np.arange(len(part))), part.images)
    np.testing.assert_array_equal(whole.mean, streamed.mean)
    assert whole.version == streamed.version
    digests = {make_split(source, ForgetClass(1)).digest for source in (whole, streamed)}
    assert len(digests) == 1


def test_images_are_scaled_to_the_shorter_side_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 6:18] = 255  # the middle half is white
    for name in ("a", "b"):
        for number in range(2):
            write(tmp_path / name / f"{number}.png", wide)
            write(tmp_path / name / f"other_{number}.png", random_pixels((8, 24, 3)))
    write(tmp_path / "b" / "tall.png", random_pixels((12, 9, 3)))
    source = load(tmp_path, image_size=4)
    images = np.concatenate([source.train.images, source.test.images])
    assert images.shape[1:] == (4, 4, 3)
    assert (images == 255).all(axis=(1, 2, 3)).sum() == 4


def test_different_sizes_are_told_with_the_flag_that_mends_them(folder):
    root, _ = folder
    write(root / "dog" / "large.png", random_pixels((7, 5, 3)))
    with pytest.raises(ValueError, match=r"most are 6x5, but dog/large.png is 7x5; .*--data.image-size, such as 5"):
        load(root)


def damage(root):
    png = (root / "cat" / "3.png").read_bytes()
    (root / "cat" / "3.png").write_bytes(png[: len(png) // 2])
    (root / "dog" / "4.png").write_bytes(b"no image at all")
    buffer = io.BytesIO()
    Image.fromarray(random_pixels()).save(buffer, "JPEG")
    (root / "dog" / "cut.jpg").write_bytes(buffer.getvalue()[:-20])
    write(root / "eel" / "grey.png", random_pixels((6, 5)))
    write(root / "eel" / "deep.png", RNG.integers(0, 2**16, (6, 5), dtype=np.uint16))
    return ["cat/3.png", "dog/4.png", "dog/cut.jpg", "eel/deep.png", "eel/grey.png"]


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_images_that_cannot_be_used_are_named_or_left_out_and_listed(folder, memory_gb):
    root, pixels = folder
    bad = damage(root)
    with pytest.raises(ValueError) as refused:
        load(root, memory_gb=memory_gb)
    message = str(refused.value)
    assert "5 of 33 images" in message
    assert "--data.skip-bad" in message
    assert all(str(root / name) in message for name in bad)
    assert "greyscale among colour images" in message
    source = load(root, memory_gb=memory_gb, skip_bad=True)
    assert sorted(entry.split(":")[0] for entry in source.skipped) == bad
    assert {*source.train.ids, *source.test.ids} == set(pixels) - set(bad)


def test_a_few_colour_images_among_grey_ones_are_the_odd_ones(tmp_path):
    for name in ("a", "b"):
        for number in range(5):
            write(tmp_path / name / f"{number}.png", random_pixels((6, 5)))
    assert load(tmp_path).train.images.shape[1:] == (6, 5, 1)
    write(tmp_path / "a" / "colour.png", random_pixels())
    with pytest.raises(ValueError, match=r"colour.png: in colour among greyscale images"):
        load(tmp_path)


def test_a_folder_of_nothing_but_damage_is_told(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no image in .* can be read"):
        load(tmp_path, skip_bad=True)


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_with_too_few_images_is_named(folder, left):
    root, _ = folder
    for path in sorted((root / "dog").iterdir())[left:]:
        path.unlink()
    with pytest.raises(ValueError, match=rf"class folder dog of .* has {left} usable images .* at least 2"):
        load(root)


def test_folders_laid_out_otherwise_are_told(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist or is not a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    write(tmp_path / "flat" / "0.png", random_pixels())
    with pytest.raises(ValueError, match="has no class folders; lay the images out as CLASS/IMAGE"):
        load(tmp_path / "flat")
    write(tmp_path / "two" / "train" / "a" / "0.png", random_pixels())
    write(tmp_path / "two" / "test" / "images" / "0.png", random_pixels())
    with pytest.raises(ValueError, match=r"has the class folders \['images'\], which .* does not have"):
        load(tmp_path / "two")


def test_a_file_damaged_during_a_run_is_named(folder):
    root, _ = folder
    source = load(root, memory_gb=0.0)
    files = to_device(source, source.train).files
    (root / source.train.ids[2]).write_bytes(b"gone")
    with pytest.raises(ValueError, match=rf"{source.train.ids[2]} was readable when the run began, but is not readable now"):
        files.read(np.arange(4))
