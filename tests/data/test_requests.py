"""Deletion requests and the splits they make: disjoint, complete, digested; and what is refused."""

import hashlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cujax.data.images import Data, Images, Source
from cujax.data.requests import (
    ForgetClass,
    ForgetClasses,
    ForgetIds,
    ForgetRandom,
    ForgetWhere,
    ids_digest,
    make_split,
)
from cujax.data.sources import load_source


def make_source(n=120, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]).astype(np.int32)
    ids = np.array([f"id-{number:04d}" for number in rng.permutation(n)])
    images = np.zeros((n, 2, 2, 1), np.uint8)
    test = Images(images[:classes], np.arange(classes, dtype=np.int32), np.array([f"test-{c}" for c in range(classes)]))
    names = tuple(map(str, range(classes)))
    return Source("made", "1", Images(images, labels, ids), test, names, np.zeros(1), np.ones(1))


SOURCE = make_source()
REQUESTS = [
    ForgetClass(1),
    ForgetClasses((0, 3)),
    ForgetRandom(count=9),
    ForgetRandom(fraction=0.3, seed=4),
    ForgetWhere(lambda name, label: name.endswith("7") and label != 2),
]


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    n=st.integers(60, 200), classes=st.integers(4, 6), seed=st.integers(0, 10**6), request=st.sampled_from(REQUESTS)
)
def test_splits_are_disjoint_complete_and_match_their_ids(n, classes, seed, request):
    source = make_source(n, classes, seed)
    for previous in ((), make_split(source, ForgetRandom(count=5, seed=seed)).forget.ids.tolist()):
        split = make_split(source, request, previous)
        parts = (split.forget, split.retain, split.validation, split.previously_forgotten)
        together = np.concatenate([part.indices for part in parts])
        assert sorted(together) == list(range(n))
        for part in parts:
            np.testing.assert_array_equal(part.ids, source.train.ids[part.indices])
            assert (np.diff(part.indices) > 0).all()
        np.testing.assert_array_equal(split.test.ids, source.test.ids)
        assert set(split.previously_forgotten.ids) >= set(previous)


def test_the_digest_is_that_of_the_sorted_ids():
    ids = ["b", "ä", "a", "Z"]
    assert ids_digest(ids) == hashlib.sha256("Z\na\nb\nä".encode()).hexdigest()
    assert ids_digest(reversed(ids)) == ids_digest(ids)
    split = make_split(SOURCE, ForgetClass(1))
    assert split.digest == hashlib.sha256("\n".join(sorted(split.forget.ids)).encode()).hexdigest()


def test_validation_is_a_tenth_of_each_class_whatever_the_request_or_the_order():
    splits = [make_split(SOURCE, request) for request in REQUESTS]
    for split in splits:
        np.testing.assert_array_equal(split.validation.ids, splits[0].validation.ids)
    counts = np.bincount(SOURCE.train.labels[splits[0].validation.indices], minlength=4)
    np.testing.assert_array_equal(counts, np.round(0.1 * np.bincount(SOURCE.train.labels)))
    order = np.random.default_rng(1).permutation(120)
    shuffled = Source("made", "1", SOURCE.train.take(order), SOURCE.test, SOURCE.class_names, SOURCE.mean, SOURCE.std)
    assert set(make_split(shuffled, ForgetClass(1)).validation.ids) == set(splits[0].validation.ids)


def test_a_class_request_leaves_no_image_of_the_class_to_retain():
    for label in range(4):
        split = make_split(SOURCE, ForgetClass(label))
        labels = SOURCE.train.labels
        assert set(labels[split.forget.indices]) == {label}
        assert label not in labels[split.retain.indices]
        assert split.forgotten_classes == split.absent_classes == (label,)
        assert split.is_class_task


def test_a_random_request_is_random_seeded_and_exact():
    first, again, other = (make_split(SOURCE, ForgetRandom(count=30, seed=seed)).forget.indices for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    assert len(first) == 30
    available = np.setdiff1d(np.arange(120), make_split(SOURCE, ForgetClass(0)).validation.indices)
    assert set(first) != set(available[:30])
    split = make_split(SOURCE, ForgetRandom(fraction=0.25))
    assert len(split.forget) == round(0.25 * len(available))
    assert not split.is_class_task
    assert split.forgotten_classes == split.absent_classes == ()


def test_ids_are_read_from_a_file(tmp_path):
    wanted = make_split(SOURCE, ForgetRandom(count=6)).forget.ids.tolist()
    path = tmp_path / "ids.txt"
    path.write_text("\n" + "\n\n".join(wanted) + f"\n{wanted[0]}  \n")
    assert set(make_split(SOURCE, ForgetIds(str(path))).forget.ids) == set(wanted)


def test_ids_that_cover_a_class_are_a_class_task(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(make_split(SOURCE, ForgetClass(2)).forget.ids))
    assert make_split(SOURCE, ForgetIds(str(path))).forgotten_classes == (2,)


def test_earlier_requests_stay_forgotten():
    first = make_split(SOURCE, ForgetClass(2))
    second = make_split(SOURCE, ForgetRandom(count=10), first.forget.ids.tolist())
    third = make_split(SOURCE, ForgetClass(0), [*first.forget.ids, *second.forget.ids])
    assert set(first.forget.ids).isdisjoint([*second.forget.ids, *second.retain.ids, *third.forget.ids, *third.retain.ids])
    assert set(second.forget.ids).isdisjoint([*third.forget.ids, *third.retain.ids])
    assert second.absent_classes == (2,)
    assert second.forgotten_classes == ()
    assert (third.absent_classes, third.forgotten_classes) == ((0, 2), (0,))


def test_bad_requests_are_told(tmp_path):
    def ids_file(*names):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
        path.write_text("\n".join(names))
        return ForgetIds(str(path))

    split = make_split(SOURCE, ForgetClass(1))
    held_out, forgotten = split.validation.ids[0], split.forget.ids.tolist()
    for request, previous, message in (
        (ForgetClass(4), (), r"class 4 does not exist: made has the 4 classes 0 \(0\), 1 \(1\)"),
        (ForgetClasses((0, 9)), (), "class 9 does not exist"),
        (ForgetClass(1), forgotten, "nothing to forget"),
        (ForgetClasses((0, 1, 2, 3)), (), "nothing would be retained"),
        (ForgetRandom(count=1000), (), "count is 1000, but only 108"),
        (ForgetWhere(lambda name, label: False), (), "nothing to forget"),
        (ids_file(), (), "contains no ids"),
        (
            ids_file("id-0001", *(f"nobody-{n}" for n in range(7))),
            (),
            r"7 of the 8 ids.*do not exist.*nobody-0.*nobody-4'.*look like",
        ),
        (ids_file(held_out), (), f"validation images.*Remove them from.*{held_out}"),
        (ids_file(forgotten[0]), forgotten, f"forgotten by an earlier request; .*{forgotten[0]}"),
        (ForgetClass(0), ("stranger",), "1 ids that the model forgot earlier are not in made.*stranger"),
    ):
        with pytest.raises(ValueError, match=message):
            make_split(SOURCE, request, previous)
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt does not exist; write one id per line"):
        make_split(SOURCE, ForgetIds(str(tmp_path / "nothing.txt")))


@pytest.mark.parametrize("wrong", [{}, {"count": 1, "fraction": 0.1}, {"count": 0}, {"fraction": 0.0}, {"fraction": 1.0}])
def test_impossible_random_requests_are_refused(wrong):
    with pytest.raises(ValueError, match=r"count|fraction"):
        ForgetRandom(**wrong)


def test_digits_split_as_documented():
    source = load_source(Data())
    split = make_split(source, ForgetClass(5))
    assert [len(part) for part in (split.forget, split.retain, split.validation, split.test)] == [131, 1168, 143, 355]
