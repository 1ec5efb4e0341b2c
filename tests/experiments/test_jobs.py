"""Units that processes divide: each computed once, failures apart, and what a killed process leaves."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from cujax import commands
from cujax.data.images import Data
from cujax.experiments.audit import Audit
from cujax.experiments.config import Experiment
from cujax.experiments.division import check_division, is_divided
from cujax.experiments.jobs import Unit, failures, settle, work_through
from cujax.experiments.run import prepare
from cujax.experiments.units import audit_units, run_units
from cujax.experiments.workers import once_each, shares
from cujax.methods import FineTune
from cujax.storage.checkpoints import load_checkpoint
from cujax.storage.locks import alone_now, read_note, write_note
from cujax.storage.workdir import claim, lock
from cujax.training.supervised import Trainer

HOLD = "import sys; from cujax.storage.locks import alone_now; held = alone_now(sys.argv[1], sys.argv[2]); "
HOLD += "print(held is not None, flush=True); sys.stdin.read()"


class Folder:
    """Units that write a file each, and the order they were computed in."""

    def __init__(self, path):
        self.path, self.order, self.told = epath.Path(path), [], []

    def unit(self, name, *needs, compute=None):
        def write():
            self.order.append(name)
            (compute or (lambda: None))()
            (self.path / name).touch()

        return Unit(f"the {name}", self.path, name, (self.path / name).exists, write, needs)

    def work(self, *units, since=0.0):
        work_through(units, since, self.told.append)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def fail():
    raise ValueError("no such layer")


def hold(folder, name):
    """Another process that has the lock of a unit."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    return process


def end(process):
    process.kill()
    process.communicate()


def test_units_are_computed_once_in_their_order(folder):
    first, other = folder.unit("first"), folder.unit("other")
    second = folder.unit("second", first)
    folder.work(first, second, other)
    folder.work(first, second, other)
    assert folder.order == ["first", "second", "other"]
    assert folder.told == []
    assert not list(folder.path.glob(".jobs/*.json"))


def test_what_fails_is_listed_with_what_needs_it_and_the_others_go_on(folder):
    first, other = folder.unit("first", compute=fail), folder.unit("other")
    second = folder.unit("second", first)
    folder.work(first, second, other)
    assert folder.order == ["first", "other"]
    assert folder.told == ["FAILED the first: ValueError: no such layer"]
    assert failures([first, second, other], 0.0) == [
        "the first: ValueError: no such layer",
        "the second: the first failed: ValueError: no such layer",
    ]


def test_a_failure_of_an_earlier_command_is_tried_again(folder):
    folder.work(folder.unit("first", compute=fail))
    unit = folder.unit("first")
    folder.work(unit, since=time.time())
    assert unit.is_complete
    assert failures([unit], 0.0) == []


def test_a_unit_that_another_process_computes_is_come_back_to(folder):
    process = hold(folder, "first")
    first = folder.unit("first")
    second, other = folder.unit("second", first), folder.unit("other")
    assert not settle(first, 0.0, folder.told.append)
    threading.Timer(1.0, process.kill).start()
    folder.work(first, second, other)
    assert folder.order == ["other", "first", "second"]
    assert folder.told == ["Waiting for other processes; tasks left: 2, the next is the first."]
    end(process)


def test_the_lock_of_a_killed_process_is_free_and_one_process_may_take_it_again(folder):
    process = hold(folder, "first")
    assert alone_now(folder.path, "first") is None
    with alone_now(folder.path, "second"):
        assert alone_now(folder.path, "second") is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    with alone_now(folder.path, "first") as held:
        assert held is not None
    end(process)


def test_a_unit_whose_process_was_killed_twice_has_failed_until_the_next_command(folder):
    unit = folder.unit("first")
    write_note(folder.path, "first", begun=1)
    folder.work(unit)
    assert unit.is_complete, "killed once, it is begun once more"
    (folder.path / "first").unlink()
    write_note(folder.path, "first", begun=2)
    since = time.time()
    folder.work(unit, since=since)
    assert "its process was killed 2 times, perhaps because the memory was full" in failures([unit], since)[0]
    folder.work(unit, since=time.time())
    assert unit.is_complete


def test_a_unit_says_that_it_was_begun_while_it_is_computed_and_not_once_it_is_interrupted(folder):
    def interrupted():
        assert read_note(folder.path, "first").begun == 1
        assert f"process {os.getpid()} on " in read_note(folder.path, "first").by
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.work(folder.unit("first", compute=interrupted))
    assert read_note(folder.path, "first").begun == 0
    folder.work(folder.unit("first"))
    assert (folder.path / "first").exists()


def test_a_folder_that_is_shared_is_claimed_by_several_and_refused_to_one_alone(folder):
    assert claim(folder.path / "run", {"seed": 1}, {}, shared=True) is None
    assert claim(folder.path / "run", {"seed": 1}, {}, shared=True) is None
    with pytest.raises(FileExistsError, match="seed: 1 there, 2 now"):
        claim(folder.path / "run", {"seed": 2}, {}, shared=True)
    inside = Folder(folder.path / "run")
    process = hold(inside, "retrained_0")
    write_note(inside.path, "retrained_0", begun=1)
    leftover = inside.path / "checkpoints" / "retrained_0.orbax-checkpoint-tmp-1"
    leftover.mkdir(parents=True)
    with pytest.raises(BlockingIOError, match=r"in use by process \d+ on "):
        lock(inside.path)
    claim(inside.path, {"seed": 1}, {}, shared=True)
    assert leftover.exists(), "another process is writing it"
    end(process)
    assert claim(inside.path, {"seed": 1}, {}) is not None
    assert not leftover.exists()


def test_cores_are_shared_and_sentences_shown_once():
    assert [len(share) for share in shares(range(16), 5)] == [4, 3, 3, 3, 3]
    assert [core for share in shares(range(16), 5) for core in share] == list(range(16))
    shown = []
    show = once_each(shown.append)
    for sentence in ("left out: a", "left out: a", "", "left out: b"):
        show(sentence)
    assert shown == ["left out: a", "left out: b"]


def test_the_models_of_a_run_are_units_and_need_no_more_than_the_original(tmp_path):
    run = prepare(Experiment(data=Data(limit=200), retrained=3, workdir=str(tmp_path / "run")))
    units = run_units(run, unlearned=True)
    assert [unit.name for unit in units] == ["original", "retrained_0", "retrained_1", "retrained_2", "unlearned"]
    assert [len(unit.needs) for unit in units] == [0, 0, 0, 0, 1]
    assert not any(unit.is_complete for unit in units)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"cluster": " "}, "cluster is empty"),
        (
            {"cluster": "tcp://a:1", "worker": True},
            "cluster is tcp://a:1, so its workers compute everything; leave out",
        ),
        ({"cluster": "tcp://a:1", "jobs": 2}, "leave out --worker and --jobs"),
        ({"jobs": 2, "profile": "p"}, "profile is possible only if this process computes alone; leave out --jobs"),
        (
            {"worker": True, "multihost": True},
            "multihost is possible only if this process computes alone",
        ),
    ],
)
def test_who_computes_is_said_without_contradiction(changes, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**changes)


SMALL = ("--data.limit", "200", "--training.epochs", "1", "--training.batch-size", "32")


def test_a_worker_makes_the_models_of_a_run_and_leaves_the_report_to_the_command(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    arguments = [*SMALL, "--retrained", "2", "--workdir", str(run), "--method.max-passes", "1", "--audit", "quick"]
    assert commands.run("unlearn", ["--worker", *arguments]) == 0
    assert "For tables and reports, run the same command without --worker." in capsys.readouterr().err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "original", "retrained_0", "retrained_1", "unlearned",
    ]  # fmt: skip
    assert not (run / "report.json").exists()
    described = load_checkpoint(run / "checkpoints" / "original").metadata.config
    assert not {"worker", "jobs", "cluster"} & described.keys()
    monkeypatch.setattr(Trainer, "train", lambda *arguments, **options: 1 / 0)
    assert commands.run("unlearn", arguments) in (0, 3)
    assert (run / "report.json").exists()


def test_a_worker_tunes_and_leaves_the_settings_to_the_command(tmp_path, capsys):
    arguments = [*SMALL, "--workdir", str(tmp_path / "run"), "--trials", "2", "--methods", "selective_synaptic_dampening"]
    assert commands.run("tune", ["--worker", *arguments]) == 0
    assert "For tables and reports" in capsys.readouterr().err
    (folder,) = (tmp_path / "run" / "tuning" / "class-5").glob("seed_0-*")
    assert (folder / "selective_synaptic_dampening-halton.json").exists()
    assert not (folder / "settings.json").exists()
    assert commands.run("tune", arguments) == 0
    assert (folder / "settings.json").exists()


def test_a_model_that_fails_in_a_worker_is_listed_and_its_status_is_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *arguments, **options: 1 / 0)
    arguments = ["--worker", *SMALL, "--retrained", "1", "--workdir", str(tmp_path / "run")]
    assert commands.run("train", arguments) == 1
    said = capsys.readouterr().err
    assert "FAILED run/original: ZeroDivisionError" in said
    assert "2 failed: run/original: ZeroDivisionError: division by zero; run/retrained_0: " in said


def test_an_audit_divides_the_models_that_it_trains(tmp_path):
    run = prepare(Experiment(data=Data(limit=200), workdir=str(tmp_path / "run")))
    assert audit_units(Audit(run, "quick"), None) == []
    assert len(audit_units(Audit(run, "standard", epath.Path(tmp_path / "shared")), None)) == 8
    units = audit_units(Audit(run, "full", epath.Path(tmp_path / "shared")), FineTune())
    assert len(units) == 16 + 16 + 16
    assert all([need.name for need in unit.needs] == [unit.name] for unit in units if unit.needs)
    assert sum(bool(unit.needs) for unit in units) == 16


def test_one_job_is_no_division():
    assert not is_divided(Experiment(jobs=1, profile="p"))
    assert is_divided(Experiment(jobs=2))


def test_a_bucket_is_not_divided_by_locks_and_a_cluster_needs_an_address():
    unit = Unit("the first", epath.Path("gs://bucket/run"), "first", bool, bool)
    for setup in (Experiment(jobs=2), Experiment(worker=True)):
        with pytest.raises(ValueError, match=r"is in a bucket, which has no locks.*Dask cluster with --cluster tcp://"):
            check_division(setup, [unit])
    with pytest.raises(ValueError, match=r"must be the address of a scheduler, such as tcp://|needs Dask"):
        check_division(Experiment(cluster="here"), [unit])
