"""Folders of images as people hold them: read as a viewer shows them, or refused with the way out."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetClasses, make_split
from cujax.data.sources import load_source

RNG = np.random.default_rng(0)


def picture(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (6, 5), dtype=np.uint8) if pixels is None else pixels
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return np.asarray(image)


def classes(root, names, count=5):
    for name in names:
        for number in range(count):
            picture(root / name / f"{number}.png")
    return root


def load(root, **options):
    return load_source(Data(f"{root}/", **options))


def ids_of(source):
    return {*source.train.ids.tolist(), *source.test.ids.tolist()}


def everything(source):
    """Pixels by id."""
    parts = (source.train, source.test)
    return {name: image for part in parts for name, image in zip(part.ids.tolist(), part.images, strict=True)}


@pytest.mark.parametrize("names", [[str(n) for n in range(12)], [f"{n:02d}" for n in range(12)], ["9", "100", "20"]])
def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path, names):
    source = load(classes(tmp_path, names))
    assert source.class_names == tuple(sorted(names, key=int))
    for label, name in enumerate(source.class_names):
        of_class = {name for name, number in zip(source.train.ids, source.train.labels, strict=True) if number == label}
        assert {path.split("/")[0] for path in of_class} == {name}


def test_names_that_are_not_all_numbers_are_in_the_order_of_the_alphabet(tmp_path):
    assert load(classes(tmp_path, ["b", "10", "9"])).class_names == ("10", "9", "b")


@pytest.mark.parametrize(
    ("names", "label", "expected"),
    [
        (["cat", "dog", "eel"], "dog", 1),
        (["cat", "dog", "eel"], "EEL", 2),
        (["cat", "dog", "eel"], 1, 1),
        (["0", "1", "2"], 2, 2),
        (["00", "01", "02"], 2, 2),
        (["1", "2", "3"], "name:2", 1),
        (["1", "2", "3"], "label:2", 2),
        (["1", "2", "3"], 0, 0),
        (["1", "2", "3"], 3, 2),
    ],
)
def test_a_class_is_named_by_number_or_by_name(tmp_path, names, label, expected):
    source = load(classes(tmp_path, names))
    for request in (ForgetClass(label), ForgetClasses((label,))):
        split = make_split(source, request)
        assert split.forgotten_classes == (expected,)
        assert {name.split("/")[0] for name in split.forget.ids} == {source.class_names[expected]}


def test_a_number_that_may_mean_two_classes_is_refused_with_both(tmp_path):
    source = load(classes(tmp_path, ["1", "2", "3"]))
    with pytest.raises(ValueError, match=r"class 2 .* named '3', or the one named '2', which has number 1; .*name:2"):
        make_split(source, ForgetClass(2))


@pytest.mark.parametrize("label", ["bird", 3, "label:3", "name:bird", "ca"])
def test_a_class_that_does_not_exist_is_told_with_those_that_do(tmp_path, label):
    source = load(classes(tmp_path, ["cat", "dog", "eel"]))
    with pytest.raises(ValueError, match=r"does not exist: .* 0 \(cat\), 1 \(dog\), 2 \(eel\)"):
        make_split(source, ForgetClass(label))


def ink(alpha, colour=0):
    pixels = np.full((*alpha.shape, 4), colour, np.uint8)
    pixels[..., 3] = alpha
    return pixels


@pytest.mark.parametrize("background", ["white", "#808080", "black"])
def test_transparent_images_are_laid_on_the_background(tmp_path, background):
    level = {"white": 255, "#808080": 128, "black": 0}[background]
    colour = 0 if level else 255
    alphas = {}
    for name in ("a", "b"):
        for number in range(5):
            alphas[f"{name}/{number}.png"] = alpha = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
            picture(tmp_path / name / f"{number}.png", ink(alpha, colour))
    for memory_gb in (1.0, 0.0):
        source = load(tmp_path, background=background, memory_gb=memory_gb)
        for part in (source.train, source.test):
            images = part.images if memory_gb else part.images.read(np.arange(len(part)))
            for name, image in zip(part.ids.tolist(), images, strict=True):
                share = alphas[name].astype(np.float64) / 255
                seen = share * colour + (1 - share) * level
                np.testing.assert_allclose(image, np.repeat(seen[..., None], 3, axis=2), atol=1)


def test_transparent_grey_and_palette_images_too(tmp_path):
    mask = {}
    for name in ("a", "b"):
        for number in range(5):
            mask[f"{name}/{number}.png"] = drawn = RNG.integers(0, 2, (6, 5), dtype=np.uint8)
            image = Image.fromarray(drawn, "P")
            image.putpalette([0, 0, 0] * 2)
            picture(tmp_path / "palette" / name / f"{number}.png", image, transparency=0)
            grey = Image.fromarray(np.stack([np.zeros_like(drawn), drawn * 255], axis=-1), "LA")
            picture(tmp_path / "grey" / name / f"{number}.png", grey)
    for kind, channels in (("palette", 3), ("grey", 1)):
        for name, image in everything(load(tmp_path / kind)).items():
            assert image.shape == (6, 5, channels)
            np.testing.assert_array_equal(image[..., 0], np.where(mask[name], 0, 255))


def test_a_background_that_hides_the_drawing_is_told_with_the_other_one(tmp_path):
    for name in ("a", "b"):
        for number in range(5):
            picture(tmp_path / name / f"{number}.png", ink(RNG.integers(0, 256, (6, 5), dtype=np.uint8), colour=255))
    with pytest.raises(ValueError, match=r"10 of 10 training images .* only one colour each.*--data.background black"):
        load(tmp_path)
    assert len(ids_of(load(tmp_path, background="black"))) == 10


def test_images_that_are_all_the_same_are_refused(tmp_path):
    same = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
    for name in ("a", "b"):
        for number in range(5):
            picture(tmp_path / name / f"{number}.png", same)
    with pytest.raises(ValueError, match=r"all 10 training images .* have the same pixels"):
        load(tmp_path)


def test_a_background_that_is_no_colour_is_refused():
    with pytest.raises(ValueError, match=r"background must be a colour .*'whitish'"):
        Data("x/", background="whitish")


def test_photographs_are_turned_as_their_camera_says(tmp_path):
    gradient = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[:, None], 16, axis=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn by 90 degrees clockwise to view
    for name in ("a", "b"):
        for number in range(5):
            shifted = np.roll(gradient, number, axis=0)
            picture(tmp_path / name / f"{number}.jpg", shifted, exif=exif, quality=95)
    image = everything(load(tmp_path))["a/0.jpg"]
    assert image.shape == (16, 24, 1)
    np.testing.assert_allclose(image[8, :, 0], gradient[::-1, 0], atol=6)


def test_grey_of_16_bits_is_scaled_and_other_colour_spaces_become_rgb(tmp_path):
    for name in ("a", "b"):
        for number in range(5):
            deep = RNG.integers(0, 2**16, (6, 5), dtype=np.uint16)
            picture(tmp_path / "deep" / name / f"{number}.png", deep)
            if (name, number) == ("a", 0):
                first = deep
            cmyk = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert("CMYK")
            picture(tmp_path / "print" / name / f"{number}.jpg", cmyk)
    image = everything(load(tmp_path / "deep"))["a/0.png"]
    np.testing.assert_allclose(image[..., 0], first.astype(np.float64) / 65_535 * 255, atol=0.51)
    assert load(tmp_path / "print").train.images.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize(
    "litter",
    [
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/._0.png",
        "a/deep/.hidden/0.png",
        "__MACOSX/a/0.png",
        ".git/a/0.png",
        "a/__MACOSX/0.png",
        "a/@eaDir/0.png",
        "a/.DS_Store",
        ".Trash/0.png",
    ],
)
def test_files_that_are_not_data_are_left_out_and_told(tmp_path, litter):
    root = classes(tmp_path / "pets", ["a", "b"])
    before = load(root)
    (root / litter).parent.mkdir(parents=True, exist_ok=True)
    (root / litter).write_bytes((root / "a" / "0.png").read_bytes())
    after = load(root)
    assert ids_of(after) == ids_of(before)
    assert after.version == before.version
    assert not before.skipped
    (sentence,) = after.skipped
    assert "hidden, or left by" in sentence


def test_everything_left_out_is_counted_with_its_reason(tmp_path):
    root = classes(tmp_path / "pets", ["a", "b"])
    (root / "a" / "notes.txt").write_text("no image")
    (root / "b" / "old.webp").write_bytes(b"")
    (root / "b" / "older.webp").write_bytes(b"")
    picture(root / "loose.png")
    told = load(root).skipped
    assert any("a/notes.txt: a .txt file" in sentence for sentence in told)
    assert any("2 files or folders, such as b/old.webp: a .webp file" in sentence for sentence in told)
    assert any("loose.png: in no class folder" in sentence for sentence in told)


def test_links_are_followed_once_and_those_to_what_is_read_anyway_are_named(tmp_path):
    root = classes(tmp_path / "pets", ["a", "b"])
    elsewhere = tmp_path / "store"
    picture(elsewhere / "new.png")
    picture(elsewhere / "c" / "new.png")
    (root / "a" / "linked.png").symlink_to(elsewhere / "new.png")
    (root / "b" / "folder").symlink_to(elsewhere / "c")
    (root / "b" / "again.png").symlink_to(root / "a" / "0.png")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "also_a").symlink_to(root / "a")
    source = load(root)
    assert source.class_names == ("a", "b")
    assert len(ids_of(source)) == 12
    assert {"a/linked.png", "b/folder/new.png"} <= ids_of(source)
    told = "\n".join(source.skipped)
    assert all(name in told for name in ("also_a", "a/loop"))


@pytest.mark.parametrize(
    ("links", "kept"),
    [
        ({"a/x.png": "0.png", "b/x.png": "0.png"}, {"a/x.png"}),
        ({"a/x.png": "0.png", "a/y.png": "0.png"}, {"a/x.png"}),
        ({"a/all": "", "b/x.png": "1.png"}, {f"a/all/{number}.png" for number in range(3)}),
        ({"a/all": "", "b/all": ""}, {f"a/all/{number}.png" for number in range(3)}),
        ({"a/x.png": "0.png", "b/x.png": "1.png"}, {"a/x.png", "b/x.png"}),
    ],
)
@pytest.mark.parametrize("place", ["store", "pets/.store"])
def test_a_file_that_several_links_lead_to_is_read_once_and_the_others_are_told(tmp_path, place, links, kept):
    root = classes(tmp_path / "pets", ["a", "b"])
    for number in range(3):
        picture(tmp_path / place / f"{number}.png")
    before = ids_of(load(root))
    for name, target in links.items():
        (root / name).symlink_to(tmp_path / place / target)
    source = load(root)
    assert ids_of(source) == before | kept
    told = [sentence for sentence in source.skipped if "through another link" in sentence]
    assert len(told) == (set(links) != kept)


def test_a_file_is_not_both_trained_on_and_tested_with_by_two_links(tmp_path):
    for part in ("train", "test"):
        classes(tmp_path / "pets" / part, ["a", "b"])
        picture(tmp_path / "one.png")
        (tmp_path / "pets" / part / "a" / "one.png").symlink_to(tmp_path / "one.png")
    source = load(tmp_path / "pets")
    assert "train/a/one.png" in source.train.ids
    assert "test/a/one.png" not in source.test.ids
    assert any(
        sentence.startswith("test/a/one.png: a link to a file that is read through another link")
        for sentence in source.skipped
    )


def test_images_kept_in_a_hidden_store_and_linked_to_are_read(tmp_path):
    root = tmp_path / "pets"
    for name in ("a", "b"):
        for number in range(5):
            picture(root / ".store" / f"{name}{number}.png")
            (root / name).mkdir(exist_ok=True)
            (root / name / f"{number}.png").symlink_to(root / ".store" / f"{name}{number}.png")
    assert len(ids_of(load(root))) == 10


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("training", "testing"),
        ("Train", "Test"),
        ("TRAIN", "val"),
        ("train", "validation"),
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("mnist-train", "mnist-test"),
        ("TrainImages", "TestImages"),
        ("PetsTRAINSet", "PetsTESTSet"),
        ("trainimages", "testimages"),
        ("train", "holdout"),
        ("train", "HoldOut"),
        ("train", "held_out"),
        ("train", "heldout_2"),
    ],
)
def test_parts_are_known_by_their_usual_names(tmp_path, train, test):
    classes(tmp_path / train, ["a", "b"], 4)
    classes(tmp_path / test, ["a", "b"], 2)
    source = load(tmp_path)
    assert source.class_names == ("a", "b")
    assert (len(source.train), len(source.test)) == (8, 4)
    assert {name.split("/")[0] for name in source.train.ids} == {train}
    assert {name.split("/")[0] for name in source.test.ids} == {test}


def test_a_third_part_is_left_out_and_told(tmp_path):
    for part in ("train", "test", "val"):
        classes(tmp_path / part, ["a", "b"])
    source = load(tmp_path)
    assert {name.split("/")[0] for name in source.test.ids} == {"test"}
    assert any("val/" in sentence for sentence in source.skipped)


@pytest.mark.parametrize("parts", [("learn", "check"), ("part1", "part2"), ("A", "B"), ("fold_1", "fold_2", "fold_3")])
def test_parts_by_other_names_are_not_taken_for_classes(tmp_path, parts):
    for part in parts:
        classes(tmp_path / part, ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"look like parts of a data set, not like classes. Name the parts train"):
        load(tmp_path)


@pytest.mark.parametrize(
    "parts", [("learn", "check"), ("part1", "part2"), ("fold_1", "fold_2", "fold_3"), ("Seen", "Unseen")]
)
def test_parts_of_two_classes_by_other_names_are_not_taken_for_classes(tmp_path, parts):
    for part in parts:
        classes(tmp_path / part, ["a", "b"])
    with pytest.raises(ValueError, match=r"look like parts of a data set, not like classes. Name the parts train"):
        load(tmp_path)


@pytest.mark.parametrize(
    "parts", [("train", "test"), ("Training", "Validation"), ("TrainImages", "TestImages"), ("train", "val", "test")]
)
def test_parts_without_class_folders_are_not_taken_for_classes(tmp_path, parts):
    classes(tmp_path, parts)
    with pytest.raises(
        ValueError, match=r"names of parts, .* put the images of each class into a folder of its own: train/CLASS/IMAGE"
    ):
        load(tmp_path)


def test_a_training_part_without_class_folders_beside_a_test_part_with_them_is_refused(tmp_path):
    classes(tmp_path, ["train"])
    classes(tmp_path / "test", ["a", "b"])
    with pytest.raises(ValueError, match="put the images of each class into a folder of its own"):
        load(tmp_path)


def test_of_three_parts_the_one_named_test_is_tested_with_then_the_held_out_one(tmp_path):
    for part in ("train", "val", "holdout"):
        classes(tmp_path / part, ["a", "b"])
    assert {name.split("/")[0] for name in load(tmp_path).test.ids} == {"holdout"}
    classes(tmp_path / "test", ["a", "b"])
    assert {name.split("/")[0] for name in load(tmp_path).test.ids} == {"test"}


def test_held_out_parts_without_a_training_part_are_refused(tmp_path):
    for part in ("test", "val"):
        classes(tmp_path / part, ["a", "b"])
    with pytest.raises(ValueError, match="no folder of training images; the expected names are train"):
        load(tmp_path)


def test_two_training_parts_are_refused(tmp_path):
    for part in ("train_1", "train_2", "test"):
        classes(tmp_path / part, ["a", "b"])
    with pytest.raises(ValueError, match="several folders of train images: train_1, train_2"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    assert load(classes(tmp_path, ["train", "test", "plane"])).class_names == ("plane", "test", "train")


@pytest.mark.parametrize("name", ["train_station", "TrainStation", "model train"])
def test_a_class_with_folders_that_is_named_like_a_training_part_is_refused(tmp_path, name):
    for folder in (name, "airport"):
        classes(tmp_path / folder, ["day", "night"])
    with pytest.raises(
        ValueError, match=rf"has the folder {name}, which is named like .* and airport with the same.*classes, rename {name}"
    ):
        load(tmp_path)


@pytest.mark.parametrize(("train", "beside"), [("train", "masks"), ("seg_train", "seg_other")])
def test_a_training_part_alone_is_read_and_what_lies_beside_it_is_told(tmp_path, train, beside):
    classes(tmp_path / train, ["a", "b"])
    classes(tmp_path / beside, ["a", "b"] if train == "train" else ["c", "d"])
    source = load(tmp_path)
    assert source.class_names == ("a", "b")
    assert any(sentence.startswith(f"{beside}/: a folder next to {train}") for sentence in source.skipped)


def test_classes_may_be_called_after_the_same_part(tmp_path):
    assert load(classes(tmp_path, ["test_positive", "test_negative"])).class_names == ("test_negative", "test_positive")


def test_classes_may_have_folders_inside(tmp_path):
    for name in ("dog", "cat"):
        classes(tmp_path / name, ["male", "female"])
    source = load(tmp_path)
    assert source.class_names == ("cat", "dog")
    (told,) = source.skipped
    assert told.startswith("4 files or folders, such as cat/female: not read as a class")


def test_one_folder_too_deep_or_too_shallow_is_told_with_the_right_one(tmp_path):
    root = classes(tmp_path / "download" / "pets", ["a", "b"])
    with pytest.raises(ValueError, match=r"one class folder, 'pets'.* give .*download/pets/"):
        load(root.parent)
    with pytest.raises(ValueError, match=r"no class folders.*contains 5 images itself; .*give the folder above"):
        load(root / "a")


def test_test_images_without_class_folders_are_refused(tmp_path):
    classes(tmp_path / "train", ["a", "b"])
    picture(tmp_path / "test" / "0.png")
    with pytest.raises(ValueError, match="test has no class folders"):
        load(tmp_path)


def test_a_class_folder_of_another_unicode_form_is_the_same_class(tmp_path):
    classes(tmp_path / "train", ["pe\u0301", "b"])
    classes(tmp_path / "test", ["p\u00e9", "b"])
    source = load(tmp_path)
    assert set(source.test.labels.tolist()) == {0, 1}


FOLDERS = ("train", "Test", "val", "cat", "dog", "3", "10", ".hidden", "__MACOSX", "a b", "é", "images", "testing")
FILES = {
    "photo.png": lambda path, rng: picture(path, rng.integers(0, 256, (6, 5), dtype=np.uint8)),
    "IMG_1.JPG": lambda path, rng: picture(path, rng.integers(0, 256, (6, 5, 3), dtype=np.uint8), format="JPEG"),
    "._photo.png": lambda path, rng: path.write_bytes(b"\0" * 20),
    "broken.png": lambda path, rng: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20)),
    "notes.txt": lambda path, rng: path.write_text("none"),
    "wide.png": lambda path, rng: picture(path, rng.integers(0, 256, (6, 9), dtype=np.uint8)),
}


@hypothesis.given(
    places=st.lists(
        st.tuples(st.lists(st.sampled_from(FOLDERS), min_size=0, max_size=3), st.sampled_from([*FILES, "photo.png"])),
        max_size=8,
    ),
    copies=st.integers(1, 6),
    options=st.sampled_from([{}, {"skip_bad": True}, {"image_size": 8}]),
)
@hypothesis.settings(max_examples=120)
def test_whatever_a_folder_holds_it_is_read_whole_or_refused_with_a_sentence(tmp_path_factory, places, copies, options):
    root, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    for folders, name in places:
        for number in range(copies):
            path = root.joinpath(*folders, f"{number}{name}" if not name.startswith(".") else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            FILES[name](path, rng)
    try:
        source = load(root, **options)
    except (ValueError, FileNotFoundError) as error:
        assert str(root) in str(error)
        return
    ids = source.train.ids.tolist() + source.test.ids.tolist()
    assert len(ids) == len(set(ids))
    for part in (source.train, source.test):
        assert len(part.images) == len(part.labels) == len(part.ids)
        assert part.labels.max(initial=0) < len(source.class_names)
    assert not any(word.startswith((".", "__MACOSX")) for name in ids for word in name.split("/"))
    unread = {
        name
        for path in root.rglob("*.*")
        if path.is_file() and path.suffix.lower() in (".png", ".jpg") and (name := path.relative_to(root).as_posix())
        if not any(word.startswith((".", "__MACOSX")) for word in name.split("/"))
        if name not in ids
    }
    assert not unread or source.skipped, f"left out without a word: {unread}"
