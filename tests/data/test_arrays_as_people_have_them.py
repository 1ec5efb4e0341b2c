"""Arrays in an .npz file as people hold them: read where their meaning is plain, else refused with the way out."""

import hypothesis
import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import numpy as np
import pytest

from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetRandom, make_split
from cujax.data.sources import load_source

RNG = np.random.default_rng(0)
N, CLASSES = 60, 4
LABELS = np.arange(N) % CLASSES
PIXELS = RNG.integers(0, 256, (N, 8, 9, 1), dtype=np.uint8)


def load(folder, options=None, **contents):
    path = folder / "mine.npz"
    np.savez(path, **{"images": PIXELS, "labels": LABELS} | contents)
    return load_source(Data(str(path), **options or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_before_height_and_width_are_refused_and_read_when_told(tmp_path, channels):
    images = RNG.integers(0, 256, (N, channels, 24, 28), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"looks like \[n, C, H, W\].*--data.layout nchw.*transpose\(0, 2, 3, 1\)"):
        load(tmp_path, images=images)
    source = load(tmp_path, {"layout": "nchw"}, images=images)
    told = load(tmp_path, images=images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(source.train.images, told.train.images)
    assert source.train.images.shape[1:] == (24, 28, channels)
    with pytest.raises(ValueError, match=r"looks like \[n, H, W, C\]"):
        load(tmp_path, {"layout": "nchw"}, images=images.transpose(0, 2, 3, 1))


TEST = {"test_images": PIXELS[:8] ^ 1, "test_labels": LABELS[:8]}


@pytest.mark.parametrize(
    ("more", "renamed"),
    [
        ({"images_test": PIXELS[:8], "labels_test": LABELS[:8]}, "images_test to test_images, labels_test to test_labels"),
        ({"x_test": PIXELS[:8]}, "x_test to test_images"),
        ({"X_test": PIXELS[:8]}, "X_test to test_images"),
        ({"TestImages": PIXELS[:8]}, "TestImages to test_images"),
        ({"y_test": LABELS[:8]}, "y_test to test_labels"),
        ({"image_ids": np.arange(N)}, "image_ids to ids"),
        ({"id": np.arange(N)}, "id to ids"),
        ({"Ids": np.arange(N)}, "Ids to ids"),
        (TEST | {"ids_test": np.arange(8)}, "ids_test to test_ids"),
        ({"subject": np.arange(N)}, "subject to subjects"),
    ],
)
def test_an_array_with_almost_the_name_of_one_that_is_read_is_refused_with_that_name(tmp_path, more, renamed):
    with pytest.raises(
        ValueError, match=rf"mine.npz contains {next(name for name in more if name in renamed)}.*rename {renamed}"
    ):
        load(tmp_path, **more)


@pytest.mark.parametrize(
    ("contents", "renamed"),
    [
        ({"x_train": PIXELS, "y_train": LABELS}, "x_train to images, y_train to labels"),
        ({"Images": PIXELS, "Label": LABELS}, "Images to images, Label to labels"),
        ({"data": PIXELS, "target": LABELS}, "data to images, target to labels"),
        ({"inputs": PIXELS[:, 0, :, 0], "labels": LABELS, "x_test": PIXELS[:4, 0, :, 0]}, "x_test to test_inputs"),
    ],
)
def test_images_and_labels_by_other_names_are_refused_with_the_names_to_give(tmp_path, contents, renamed):
    np.savez(tmp_path / "mine.npz", **contents)
    with pytest.raises(ValueError, match=f"rename {renamed}"):
        load_source(Data(str(tmp_path / "mine.npz")))


@pytest.mark.parametrize("name", ["mean", "names", "class_names", "val_images", "x", "train_images"])
def test_arrays_that_are_not_read_are_told(tmp_path, name):
    before, source = load(tmp_path), load(tmp_path, **{name: np.arange(CLASSES)})
    assert source.version == before.version
    assert not before.skipped
    (sentence,) = source.skipped
    assert sentence.startswith(f"{name} in {tmp_path}")
    assert ("class_names[labels]" in sentence) == (name == "class_names")


@pytest.mark.parametrize("name", ["test_labels", "test_ids", "test_subjects"])
def test_arrays_of_a_test_part_without_images_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"holds {name}, but no test_images; give both, or neither"):
        load(tmp_path, **{name: LABELS})


@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 4, 17), (3, 20, 100), (3, 100, 20), (4, 2, 40)])
def test_more_channels_than_images_have_are_refused_with_the_transposition(tmp_path, shape):
    images = RNG.integers(0, 256, (N, *shape), dtype=np.uint8)
    message = rf"read as images of {shape[2]} channels. Give --data.layout nchw, or .*transpose\(0, 2, 3, 1\); if .* inputs"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, images=images)
    source = load(tmp_path, {"layout": "nchw"}, images=images, ids=np.arange(N))
    np.testing.assert_array_equal(source.train.images[0], images[int(source.train.ids[0])].transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(8, 8, 20), (4, 40, 6), (2, 40, 3), (64, 2, 32)])
def test_images_of_several_channels_are_read(tmp_path, shape):
    images = RNG.integers(0, 256, (N, *shape), dtype=np.uint8)
    assert load(tmp_path, images=images).train.images.shape[1:] == shape


def test_images_whose_last_axis_counts_them_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"last axis counts the 60 labels; give np.moveaxis"):
        load(tmp_path, images=np.moveaxis(PIXELS, 0, -1))


def test_rows_of_pixels_are_refused_with_the_shape_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"images.reshape\(-1, 8, 8\)"):
        load(tmp_path, images=RNG.integers(0, 256, (N, 64), dtype=np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x / 16,
        lambda x: -x / 255 * 80,
        lambda x: x * 256.0,
        lambda x: x / 1e6,
        lambda x: x * 0 + 0.5,
    ],
)
def test_float_images_far_from_a_normalisation_are_refused(tmp_path, change):
    images = np.asarray(change(PIXELS.astype(np.float64)), np.float32)
    with pytest.raises(ValueError, match=r"preprocessed, but their values go from .* Store pixels of 0 to 255 as uint8"):
        load(tmp_path, images=images)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("normalise", [lambda x: x / 255, lambda x: (x / 255 - 0.13) / 0.31, lambda x: x / 127.5 - 1])
def test_usual_normalisations_are_read(tmp_path, normalise, dtype):
    images = normalise(PIXELS.astype(np.float64)).astype(dtype)
    source = load(tmp_path, images=images)
    assert source.train.images.dtype == np.float32
    np.testing.assert_array_equal(source.train.images[0], images[0].astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_float32_cannot_hold_are_refused_with_their_row(tmp_path, value):
    images = PIXELS / 255.0
    images[7, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"1 images, the first at rows \[7\]"):
        load(tmp_path, images=images)


@pytest.mark.parametrize(
    ("images", "way_out"),
    [
        (PIXELS.astype(np.int64), r"images.astype\(np.uint8\).*largest value is"),
        (PIXELS.astype(np.uint16) * 257, r"// 257\).astype\(np.uint8\)"),
        (PIXELS > 100, r"astype\(np.uint8\) \* 255"),
    ],
)
def test_other_dtypes_are_refused_with_the_conversion(tmp_path, images, way_out):
    with pytest.raises(ValueError, match=way_out):
        load(tmp_path, images=images)


@pytest.mark.parametrize(
    "images",
    [
        PIXELS * 0,
        np.broadcast_to(PIXELS[:, :1, :1], PIXELS.shape),
        np.broadcast_to(RNG.integers(0, 256, (N, 1, 1, 3), dtype=np.uint8), (N, 8, 9, 3)),
        np.where(np.arange(N)[:, None, None, None] % 3 == 0, PIXELS, 7),
        np.broadcast_to(RNG.normal(size=(N, 1, 1)), (N, 8, 9)),
    ],
    ids=["zeros", "grey", "colour", "two_thirds", "float"],
)
def test_images_of_one_colour_each_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match=r"mine.npz: images: \d+ of 48 training images have only one colour each"):
        load(tmp_path, images=images)


@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_images_that_are_all_the_same_are_refused(tmp_path, scale):
    same = np.broadcast_to(PIXELS[:1], PIXELS.shape)
    with pytest.raises(ValueError, match="all 48 training images have the same pixels"):
        load(tmp_path, images=same if scale == 1 else same * scale)
    other = np.concatenate([PIXELS[1:2], same[1:]])
    assert len(load(tmp_path, images=other).train) == 48


def test_some_images_of_one_colour_are_read(tmp_path):
    images = np.where(np.arange(N)[:, None, None, None] % 3 == 0, 7, PIXELS).astype(np.uint8)
    assert len(load(tmp_path, images=images).train) == 48


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, bool])
def test_one_hot_labels_are_read(tmp_path, dtype):
    source = load(tmp_path, labels=np.eye(CLASSES)[LABELS].astype(dtype))
    np.testing.assert_array_equal(source.train.labels, load(tmp_path).train.labels)


def test_whole_numbers_stored_as_floats_and_two_classes_as_booleans_are_read(tmp_path):
    np.testing.assert_array_equal(load(tmp_path, labels=LABELS.astype(float)).train.labels, load(tmp_path).train.labels)
    source = load(tmp_path, labels=LABELS % 2 == 1)
    np.testing.assert_array_equal(source.train.labels, load(tmp_path, labels=LABELS % 2).train.labels)


@pytest.mark.parametrize("names", [["ant", "bee", "cat", "dog"], ["2", "10", "9", "1"], ["pé", "b", "c", "日"]])
@pytest.mark.parametrize("encode", [False, True])
def test_classes_by_name_are_read_and_keep_their_names(tmp_path, names, encode):
    texts = [names[label] for label in LABELS]
    labels = np.array([text.encode() for text in texts]) if encode else np.array(texts)
    source = load(tmp_path, labels=labels, ids=np.arange(N))
    expected = sorted(names, key=int) if names[0].isdecimal() else sorted(names)
    assert source.class_names == tuple(expected)
    for name, label in zip(source.train.ids.tolist(), source.train.labels, strict=True):
        assert source.class_names[label] == texts[int(name)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:, None], r"but is \(60, 1\) int64; give labels\[:, 0\]"),
        (LABELS + 1, "no training image has label 0.*return_inverse"),
        (LABELS * 2, "no training image has label 1"),
        (LABELS - 1, "row 0 is -1"),
        (LABELS + 0.5, r"row 0 is 0.5"),
        (np.eye(CLASSES)[LABELS] * 0.5, r"must be \[60\] integers"),
        (np.where(LABELS == 2, np.nan, LABELS), "must be integers"),
    ],
)
def test_labels_whose_meaning_is_not_plain_are_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, labels=labels)


def test_test_labels_are_of_the_same_classes(tmp_path):
    names = np.array(["a", "b", "c", "d"])[LABELS]
    test = {"test_images": PIXELS[:4], "test_ids": np.array(list("wxyz"))}
    assert load(tmp_path, labels=names, test_labels=np.array(["d", "a", "b", "c"]), **test).test.labels.tolist() == [
        3,
        0,
        1,
        2,
    ]
    with pytest.raises(ValueError, match=r"test_labels contains \['e'\]"):
        load(tmp_path, labels=names, test_labels=np.array(["d", "a", "b", "e"]), **test)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.arange(N), "7"),
        (np.arange(N).astype(float), "7"),
        (np.array([f"peré-{n}".encode() for n in range(N)]), "peré-7"),
        (np.array([f"a\u2028{n}" for n in range(N)]), "a\u20287"),
    ],
)
def test_ids_are_read_as_text(tmp_path, ids, expected):
    source = load(tmp_path, ids=ids)
    assert expected in {*source.train.ids.tolist(), *source.test.ids.tolist()}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(N) + 1e16, "not a whole number below"),
        (np.where(np.arange(N) == 3, np.nan, np.arange(N)), "row 3 is nan"),
        (np.arange(N) + 0.5, "row 0 is 0.5"),
        (
            np.array([f"per\u00e9-{n}".encode("latin-1") for n in range(N)]),
            "mine.npz: ids contains bytes that are not UTF",
        ),
        (np.arange(N)[:, None], r"ids must be \[60\]"),
        (np.array([f"a\r{n}" for n in range(N)]), "line breaks"),
    ],
)
def test_ids_that_may_be_mistaken_are_refused(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, ids=ids)


def test_the_same_ids_in_both_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"4 ids are in both ids and test_ids, such as \['0', '1', '2', '3'\]"):
        load(tmp_path, ids=np.arange(N), test_images=PIXELS[:4], test_labels=LABELS[:4], test_ids=np.arange(4))


def test_classes_that_a_limit_leaves_without_images_are_told(tmp_path):
    order = np.argsort(LABELS, kind="stable")
    told = load(tmp_path, {"limit": 20}, images=PIXELS[order], labels=LABELS[order]).skipped
    assert any("2 ('2'), 3 ('3'): none is among the first 20" in sentence for sentence in told)
    assert not load(tmp_path, {"limit": 20}).skipped


_LABELS = st.one_of(
    arrays_of.arrays(st.sampled_from([np.int64, np.uint8, np.float32, bool]), st.integers(0, 30)),
    arrays_of.arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 3)),
    st.lists(st.sampled_from(["a", "b", "10", ""]), max_size=30).map(np.array),
)
_IMAGES = arrays_of.arrays(
    st.sampled_from([np.uint8, np.uint8, np.float32, np.float64, np.int16, bool]),
    st.one_of(
        st.tuples(st.integers(0, 30), st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(0, 30), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
        st.tuples(st.integers(0, 30), st.integers(1, 9)),
    ),
)
_IDS = st.one_of(
    st.none(),
    arrays_of.arrays(st.sampled_from([np.int64, np.float64]), st.integers(0, 30)),
    st.lists(st.text(max_size=3), max_size=30).map(np.array),
    st.lists(st.binary(max_size=3), max_size=30).map(np.array),
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy")
@hypothesis.given(
    images=_IMAGES,
    labels=_LABELS,
    ids=_IDS,
    request=st.sampled_from([ForgetClass(0), ForgetRandom(count=1), ForgetClass("a")]),
)
@hypothesis.settings(max_examples=150, derandomize=False, database=None)
def test_whatever_a_file_holds_it_is_read_whole_or_refused_with_a_sentence(tmp_path_factory, images, labels, ids, request):
    path = tmp_path_factory.mktemp("drawn") / "mine.npz"
    contents = {"images": images, "labels": labels} | ({} if ids is None else {"ids": ids})
    if any(array.dtype == object for array in contents.values()):
        return
    np.savez(path, **contents)
    try:
        source = load_source(Data(str(path)))
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert len(source.train) + len(source.test) == len(images) == len({*source.train.ids, *source.test.ids})
    try:
        split = make_split(source, request)
    except ValueError as error:
        assert source.name in str(error) or "nothing would be retained" in str(error) or "--forget.copies" in str(error)
        return
    parts = [split.forget, split.retain, split.validation]
    together = np.concatenate([part.ids for part in parts])
    assert sorted(together.tolist()) == sorted(source.train.ids.tolist())
