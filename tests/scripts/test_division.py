"""A comparison by one process, by workers that are killed, by two commands and by a Dask cluster: the same bits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from cujax import commands
from cujax.storage.orbax import read_stored

pytest.importorskip("distributed")
ARGUMENTS = [
    "--data.limit", "300", "--training.epochs", "3", "--training.batch-size", "32", "--retrained", "1", "--controls",
    "--methods", "fine_tune", "selective_synaptic_dampening", "--seeds", "0", "1", "--save-steps", "5",
]  # fmt: skip
N_MODELS = 2 + 2 + 4


class Started:
    """A process of this Python, and what it said."""

    def __init__(self, *arguments, cwd):
        self.stderr = Path(cwd) / f"stderr-{len(list(Path(cwd).glob('stderr-*')))}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=cwd, env=environment, stderr=stderr, stdout=subprocess.DEVNULL
            )

    @property
    def said(self):
        return self.stderr.read_text()

    def end(self):
        """Its exit status."""
        return self.process.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    """Starts processes that end with the test."""
    started = []

    def start(*arguments):
        started.append(Started(*arguments, cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def compare(workdir, *arguments):
    return ("cujax", "compare", *settings(workdir, *arguments))


def settings(workdir, *arguments):
    return (*ARGUMENTS, "--workdir", str(workdir), *arguments)


def models(folder):
    return [path for path in folder.rglob("checkpoints/*") if "." not in path.name]


def found(folder):
    """Digests of the arrays of each model, and what was measured but for the times."""
    arrays = {str(path.relative_to(folder)): read_stored(epath.Path(path))["arrays"] for path in models(folder)}
    task = json.loads((folder / "comparison.json").read_text())["tasks"]["class:5"]
    rows = {name: {seed: cell["row"] for seed, cell in cells.items()} for name, cells in task["cells"].items()}
    return arrays, rows


def wait_for_models(folder, n, process):
    while len(models(folder)) < n:
        assert process.process.poll() is None, process.said
        time.sleep(0.05)


def workers_of(process):
    """The processes that a command started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in listed]
    return [int(pid) for pid, parent, *words in rows if int(parent) == process.process.pid and "--worker" in " ".join(words)]


def are_gone(pids, seconds=60):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(is_running, pids))


def is_running(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    process = Started(*compare("run"), cwd=folder)
    assert process.end() == 0, process.said
    assert len(models(folder / "run")) == N_MODELS
    return found(folder / "run")


def test_workers_and_their_command_are_killed_and_nothing_is_lost(alone, start, tmp_path):
    run = tmp_path / "run"
    first = start(*compare("run", "--jobs", "2"))
    wait_for_models(run, 1, first)
    os.kill(workers_of(first)[0], signal.SIGKILL)
    wait_for_models(run, 3, first)
    workers = workers_of(first)
    first.process.terminate()
    assert first.end() == 143, first.said
    assert "was killed (signal 9); its work is started again" in first.said
    assert first.said.count("Run the same command again to continue") == 1
    assert are_gone(workers)
    complete = models(run)
    second = start(*compare("run", "--jobs", "2"))
    wait_for_models(run, len(complete) + 1, second)
    workers = workers_of(second)
    second.kill()
    assert are_gone(workers), "workers end with the command that started them"
    third = start(*compare("run", "--jobs", "2"))
    assert third.end() == 0, third.said
    assert found(run) == alone


def test_two_commands_and_a_worker_divide_one_folder(alone, start, tmp_path):
    processes = [start(*compare("run")), start(*compare("run")), start(*compare("run", "--worker"))]
    assert [process.end() for process in processes] == [0, 0, 0], [process.said for process in processes]
    said = processes[2].said
    assert "Nothing is left to compute here. For tables and reports, run the same command without --worker." in said
    assert sum(process.said.count("/4] class:5") for process in processes) == 4, "each cell is computed once"
    assert found(tmp_path / "run") == alone


def test_a_dask_cluster_computes_the_same_though_a_worker_is_killed(alone, start, tmp_path):
    scheduler = start("distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard")
    while not (addresses := re.findall(r"Scheduler at: +(tcp://\S+)", scheduler.said)):
        assert scheduler.process.poll() is None, scheduler.said
        time.sleep(0.05)
    arguments = ("distributed.cli.dask_worker", addresses[0], "--nthreads", "1", "--no-nanny", "--no-dashboard")
    killed, _ = start(*arguments), start(*arguments)
    command = start(*compare("run", "--cluster", addresses[0]))
    wait_for_models(tmp_path / "run", 2, command)
    killed.kill()
    assert command.end() == 0, command.said
    assert found(tmp_path / "run") == alone


def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path, capsys):
    assert commands.run("compare", settings(tmp_path / "run", "--cluster", "tcp://127.0.0.1:1")) == 1
    said = capsys.readouterr().err
    assert "cluster tcp://127.0.0.1:1 cannot be reached" in said
    assert "Traceback" not in said
