"""Subjects: all samples of one go, and none is in two parts."""

import numpy as np
import pytest

import cujax
from cujax.experiments.request_words import parse_request, request_in_words, request_title

RNG = np.random.default_rng(0)
N = 120
SUBJECTS = np.array([f"person-{number % 24}" for number in range(N)])
ROWS, LABELS = RNG.normal(size=(N, 3)), RNG.permutation(N) % 3


def load(tmp_path, **more):
    np.savez(tmp_path / "own.npz", **({"inputs": ROWS, "labels": LABELS, "subjects": SUBJECTS} | more))
    return cujax.load_source(cujax.Data(str(tmp_path / "own.npz")))


def test_all_samples_of_a_subject_go_and_no_subject_is_in_two_parts(tmp_path):
    source = load(tmp_path)
    held_out = set(source.train.subjects[cujax.make_split(source, cujax.ForgetClass(0)).validation.indices].tolist())
    subject = next(name for name in source.train.subjects.tolist() if name not in held_out)
    split = cujax.make_split(source, cujax.ForgetSubject(subject))
    names = [set(source.train.subjects[part.indices].tolist()) for part in (split.forget, split.retain, split.validation)]
    names.append(set(source.test.subjects.tolist()))
    assert names[0] == {subject}
    assert len(split.forget) == 5
    assert sum(map(len, names)) == len(set().union(*names)) == 24
    assert 15 <= len(source.test) <= 24
    assert 5 <= len(split.validation) <= 10
    with pytest.raises(ValueError, match="validation samples"):
        cujax.make_split(source, cujax.ForgetSubject(min(held_out)))


def test_what_cannot_be_meant_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no training sample of subject 'nobody'"):
        cujax.make_split(load(tmp_path), cujax.ForgetSubject("nobody"))
    with pytest.raises(ValueError, match=r"subjects must be \[120\]"):
        load(tmp_path, subjects=SUBJECTS[:-1])
    with pytest.raises(ValueError, match="are in both subjects and test_subjects"):
        load(tmp_path, test_inputs=ROWS[:6] + 1, test_labels=LABELS[:6], test_subjects=SUBJECTS[:6])
    np.savez(tmp_path / "bare.npz", inputs=ROWS, labels=LABELS)
    bare = cujax.load_source(cujax.Data(str(tmp_path / "bare.npz")))
    with pytest.raises(ValueError, match="does not name the subject"):
        cujax.make_split(bare, cujax.ForgetSubject("person-1"))


def test_a_request_for_a_subject_is_written_and_read():
    request = cujax.ForgetSubject("person-7")
    assert request_title(request, []) == "forget all training samples of subject 'person-7'"
    assert parse_request(request_in_words(request)) == request
