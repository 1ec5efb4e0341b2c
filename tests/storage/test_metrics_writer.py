"""Metrics on disk."""

import json

import pytest

from cujax.storage.metrics_writer import MetricsWriter


def test_each_record_is_a_line_and_reopening_starts_anew(tmp_path):
    path = tmp_path / "metrics" / "original.jsonl"
    for loss in (2.0, 1.0):
        with MetricsWriter(path) as log:
            log({"step": 1, "loss": loss, "finite": True})
            log({"check": 1, "forget_accuracy": 0.5})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [{"step": 1, "loss": 1.0, "finite": True}, {"check": 1, "forget_accuracy": 0.5}]


def test_what_a_run_goes_on_from_is_kept_and_the_rest_cut_off(tmp_path):
    path = tmp_path / "original.jsonl"
    with MetricsWriter(path) as log:
        log({"step": 1, "loss": 2.0})
        kept = path.stat().st_size
        log({"step": 2, "loss": 1.0})
    with MetricsWriter(path, keep=kept) as log:
        log({"step": 2, "loss": 0.5})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [2.0, 0.5]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboardX")
def test_tensorboard_events_are_written_where_asked_for(tmp_path):
    with MetricsWriter(tmp_path / "unlearned.jsonl", tensorboard=True) as log:
        log({"step": 1, "loss": 2.0})
    (events,) = (tmp_path / "unlearned").iterdir()
    assert b"step/loss" in events.read_bytes()


def test_what_is_kept_is_in_the_file_before_the_first_new_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    with MetricsWriter(path, keep=len('{"step": 1}\n')) as log:
        assert path.read_text() == '{"step": 1}\n'
        log({"step": 2, "loss": 0.5})
        assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": 0.5}\n'


def test_going_on_never_writes_again_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    before, opened = path.stat().st_ino, []
    open_as_before = type(path).open

    def recorded(self, mode="r", **options):
        opened.append(mode)
        return open_as_before(self, mode, **options)

    monkeypatch.setattr(type(path), "open", recorded)
    with MetricsWriter(path, keep=len('{"step": 1}\n')) as log:
        log({"step": 2})
    assert "w" not in opened
    assert path.stat().st_ino == before
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_json_cannot_hold_is_null(tmp_path, value):
    with MetricsWriter(tmp_path / "metrics.jsonl") as log:
        log({"step": 1, "loss": value, "retain_loss": 0.5})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "retain_loss": 0.5}
