"""A run's folder: one configuration, one process, and progress that is intact, recent and out of the way."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.storage import progress_checkpoints
from cujax.storage.checkpoints import CheckpointError, load_checkpoint
from cujax.storage.preemption import Interruption, Preempted
from cujax.storage.progress_checkpoints import ProgressCheckpointer
from cujax.storage.workdir import claim, lock

pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOLD = "import sys, time; from pathlib import Path; from cujax.storage.workdir import lock; held = lock(Path(sys.argv[1])); "
HOLD += "print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path):
    """Another process that uses the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_another_process_in_the_same_folder_is_refused_and_named_until_it_dies(holder, tmp_path):
    with pytest.raises(BlockingIOError, match=rf"in use by process {holder.pid} on .*--workdir"):
        claim(tmp_path, {}, {})
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert claim(tmp_path, {"seed": 1}, {"notes.txt": "x"}) is not None
    assert (tmp_path / ".lock-holder").read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / "notes.txt").read_text() == "x"


def test_runs_of_one_process_take_turns_in_a_folder(tmp_path):
    first = lock(tmp_path)
    assert lock(tmp_path) is first
    del first
    descriptors = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        lock(tmp_path)
    assert len(list(Path("/dev/fd").iterdir())) == descriptors


def test_a_folder_claimed_and_killed_before_the_configuration_was_written_is_still_ours(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "config.json.tmp").write_text('{"se')
    claim(tmp_path / "run", {"seed": 1}, {})
    with pytest.raises(FileExistsError, match="seed: 1 there, 2 now"):
        claim(tmp_path / "run", {"seed": 2}, {})


def test_what_was_half_written_is_removed_and_the_rest_stays(tmp_path):
    for name in ("checkpoints/a", "checkpoints/b.orbax-checkpoint-tmp-1", "progress/c/000000001.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".lock").touch()
    claim(tmp_path, {}, {})
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir())
    assert found == [".jobs", "checkpoints", "checkpoints/a", "progress", "progress/c"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def denied(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(OSError, match=r"workdir .*run cannot be written \(.*Permission denied.*--workdir"):
        claim(tmp_path / "run", {}, {})


def tree(value):
    return {"state": {"w": jnp.full((3, 2), float(value)), "key": jax.random.key(value)}, "good": [jnp.arange(3) * value]}


class Folder:
    """A progress folder and what was said about it."""

    def __init__(self, path):
        self.path, self.said, self.interruption = path, [], Interruption()
        self.metrics = path / "metrics.jsonl"
        self.metrics.write_text("x" * 100)

    def open(self, steps=None, seconds=None, identity="mine"):
        return ProgressCheckpointer(
            self.path / "progress" / "original",
            self.metrics,
            identity,
            steps=steps,
            seconds=seconds,
            interruption=self.interruption,
            notify=self.said.append,
        )

    def keep(self, *values):
        """Keeps a state at each of these steps, and waits until it is written."""
        with self.open(steps=1) as progress:
            progress.resume(tree(1))
            for value in values:
                while not progress.due(value):
                    time.sleep(0.01)
                progress.keep(tree(value), {"value": value})

    def states(self):
        return [int(path.name) for path in sorted((self.path / "progress" / "original").iterdir())]

    def found(self, **options):
        with self.open(**options) as progress:
            resumed = progress.resume(tree(5))
            return None if resumed is None else resumed[1]["value"]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_the_last_two_states_are_kept_and_the_newest_comes_back(folder):
    assert folder.found() is None
    folder.keep(3, 4, 5)
    assert folder.states() == [4, 5]
    with folder.open() as progress:
        assert progress.metrics_bytes == 100
        found, record = progress.resume(tree(5))
    assert record["value"] == 5
    assert jax.tree.structure(found) == jax.tree.structure(tree(5))
    np.testing.assert_array_equal(found["state"]["w"], np.full((3, 2), 5.0))
    assert jax.random.uniform(found["state"]["key"]) == jax.random.uniform(jax.random.key(5))
    assert folder.said == ["original resumes from step 5."]


def damage(path):
    for file in path.rglob("d/*"):
        content = file.read_bytes()
        file.write_bytes(content[:-20] + bytes(20))


@pytest.mark.parametrize(
    "harm", [damage, lambda path: (shutil.rmtree(path), path.mkdir()), lambda path: shutil.rmtree(path / "state")]
)
def test_a_damaged_newest_state_is_told_and_the_one_before_is_used(folder, harm):
    folder.keep(4, 5)
    harm(folder.path / "progress" / "original" / "000000005")
    assert folder.found() != 5
    assert "progress at step 5 cannot be used and is skipped" in folder.said[0]
    folder.keep(5)
    assert folder.states() == [4, 5]


def test_states_of_another_configuration_or_ahead_of_the_metrics_are_not_used(folder):
    folder.keep(4)
    folder.metrics.write_text("x" * 200)
    folder.keep(5)
    folder.metrics.write_text("x" * 150)
    with folder.open() as progress:
        assert progress.metrics_bytes == 100
    assert "ahead of" in folder.said[-1]
    assert folder.found(identity="another") is None
    assert "another configuration" in folder.said[-1]


def test_another_place_is_told(folder, monkeypatch):
    folder.keep(5)
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    assert folder.found() == 5
    assert "was made on 8 devices with cujax" in folder.said[0]
    assert "this run uses 3 devices" in folder.said[0]
    assert "bits may differ" in folder.said[0]


def test_states_are_due_by_steps_or_by_seconds_whichever_comes_first(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_checkpoints.time, "monotonic", lambda: now[0])
    with folder.open(steps=10) as progress:
        assert [progress.due(steps) for steps in (1, 9, 10, 11)] == [False, False, True, True]
    with folder.open(steps=10, seconds=5.0) as progress:
        assert not progress.due(9)
        now[0] = 5.0
        assert progress.due(9)
    with folder.open() as progress:
        now[0] = 1e9
        assert not progress.due(10**9)


def test_the_loop_does_not_wait_for_the_disk(folder, monkeypatch):
    disk, written = threading.Event(), []

    def slow(path, arrays, record):
        assert disk.wait(30)
        written.append((int(path.name), float(arrays["state/w"][0, 0])))

    monkeypatch.setattr(progress_checkpoints, "save_progress", slow)
    with folder.open(steps=1) as progress:
        progress.resume(tree(1))
        assert progress.due(1)
        state = tree(1)
        progress.keep(state, {})
        jax.tree.map(lambda leaf: leaf.delete(), state)  # as donation does
        assert not progress.due(2)
        disk.set()
        while not progress.due(3):
            time.sleep(0.01)
    assert written == [(1, 1.0)]


def test_a_full_disk_is_told_at_the_next_state(folder, monkeypatch):
    folder.keep(4)

    def full(path, arrays, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress_checkpoints, "save_progress", full)
    with pytest.raises(OSError, match="No space left"):
        folder.keep(5, 6)
    monkeypatch.undo()
    assert folder.found() == 4


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_request_to_end_is_granted_after_the_state_is_written(folder, number, error):
    with pytest.raises(error), folder.interruption.handled(), folder.interruption.postponed(), folder.open() as progress:
        progress.resume(tree(1))
        assert not progress.due(6)
        os.kill(os.getpid(), number)
        assert progress.due(7)
        progress.keep(tree(7), {"value": 7})
        raise AssertionError("went on")
    assert folder.found() == 7


def test_of_several_loops_only_the_first_is_kept(folder):
    folder.keep(5)
    with folder.open(steps=1) as progress:
        assert progress.resume(tree(5)) is not None
        assert progress.resume(tree(5)) is None
        assert not progress.due(100)


def test_once_the_model_is_complete_its_progress_is_gone(folder):
    folder.keep(5)
    with folder.open() as progress:
        progress.remove()
    assert not (folder.path / "progress").exists()


def test_the_progress_of_another_model_that_is_begun_stays(folder):
    folder.keep(5)
    other = folder.path / "progress" / "retrained_0" / "000000003"
    other.mkdir(parents=True)
    with folder.open() as progress:
        progress.remove()
    assert not (folder.path / "progress" / "original").exists()
    assert other.is_dir()


def test_the_progress_of_a_run_is_no_model(folder):
    folder.keep(5)
    with pytest.raises(CheckpointError, match="progress of an unfinished run, not a model"):
        load_checkpoint(folder.path / "progress" / "original" / "000000005")
