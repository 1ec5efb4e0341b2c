"""Stored results: nothing damaged becomes a reported value, and what older code computed is computed anew."""

import json

import pytest
from etils.epath import Path

from cujax.storage.records import Kind, RecordError, kept_record, read_record, write_record

KIND = Kind("evidence", schema=2, computed_by=3)
CONTENT = {"shares": [0.25, 0.5], "reason": "", "nested": {"steps": 12}}


@pytest.fixture
def path(tmp_path):
    return write_record(Path(tmp_path) / "evidence" / "one.json", KIND, CONTENT)


def test_content_comes_back(path):
    assert read_record(path, KIND) == CONTENT
    assert kept_record(path, KIND, lambda: pytest.fail("it was there")) == CONTENT


def test_every_damaged_byte_is_refused_or_changes_nothing(path):
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for replacement in (b"7", b" ", b"x"):
            path.write_bytes(whole[:position] + replacement + whole[position + 1 :])
            try:
                found = read_record(path, KIND)
            except RecordError as error:
                assert str(path) in str(error)
                refused += 1
            else:
                assert found in (CONTENT, None)  # white space; or it says that other code computed it
    assert refused > 2 * len(whole)


@pytest.mark.parametrize("text", ["", "{}", "null", "[1]", "7.0", '{"content": 1}', '{"cujax": null, "content": 1}', "{"])
def test_what_is_no_record_is_refused_with_the_file_and_the_way_out(path, text):
    path.write_text(text)
    with pytest.raises(RecordError, match=rf"{path}.*delete {path} and run the same command again"):
        kept_record(path, KIND, lambda: pytest.fail("not before somebody has looked"))


def test_a_truncated_file_is_refused(path):
    whole = path.read_text()
    for length in range(0, len(whole) - 2, 7):
        path.write_text(whole[:length])
        with pytest.raises(RecordError):
            read_record(path, KIND)


def test_a_file_of_another_kind_is_refused(path):
    with pytest.raises(RecordError, match="holds 'evidence', not 'cell'"):
        read_record(path, Kind("cell", schema=2, computed_by=3))


@pytest.mark.parametrize("newer", [Kind("evidence", 3, 3), Kind("evidence", 2, 4)])
def test_what_other_code_computed_is_computed_anew(path, newer):
    assert kept_record(path, newer, lambda: {"shares": []}) == {"shares": []}
    assert read_record(path, newer) == {"shares": []}


def test_what_json_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_record(Path(tmp_path) / "one.json", KIND, {"share": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_whole_or_not_at_all(path, monkeypatch):
    def full(self, text, encoding=None):
        type(self).write_bytes(self, text[:10].encode(encoding))
        raise OSError(28, "No space left on device")

    before = path.read_text()
    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(path, KIND, {"shares": [1.0]})
    assert path.read_text() == before
    assert json.loads(before)["content"] == CONTENT
