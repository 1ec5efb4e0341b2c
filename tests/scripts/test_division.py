"""A comparison by one process, by workers that are killed, by two commands and by a Dask cluster: the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from cujax.storage.orbax import read_stored

pytest.importorskip("distributed")
ARGUMENTS = [
    "--data.limit", "300", "--training.epochs", "3", "--training.batch-size", "32", "--retrained", "1", "--controls",
    "--methods", "fine_tune", "selective_synaptic_dampening", "--seeds", "0", "1", "--save-steps", "5",
]  # fmt: skip
N_MODELS = 2 + 2 + 4
CACHE = str(Path(__file__).parents[2] / ".jax_cache")


def start(*arguments, cwd, **options):
    """A process of this Python."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": CACHE}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, **options
    )


def compare(cwd, workdir, *arguments):
    arguments = ("cujax", "compare", *ARGUMENTS, "--workdir", workdir, *arguments)
    return start(*arguments, cwd=cwd, stdout=subprocess.DEVNULL)


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
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def workers_of(process):
    """The processes that a command started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in listed]
    return [int(pid) for pid, parent, *words in rows if int(parent) == process.pid and "--worker" in " ".join(words)]


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
    process = compare(folder, "run")
    assert process.communicate()[1] and process.returncode == 0
    assert len(models(folder / "run")) == N_MODELS
    return found(folder / "run")


def test_workers_and_their_command_are_killed_and_nothing_is_lost(alone, tmp_path):
    run = tmp_path / "run"
    first = compare(tmp_path, "run", "--jobs", "2")
    wait_for_models(run, 1, first)
    os.kill(workers_of(first)[0], signal.SIGKILL)
    wait_for_models(run, 3, first)
    workers = workers_of(first)
    first.terminate()
    _, said = first.communicate()
    assert first.returncode == 143, said
    assert "was killed (signal 9); what it computed is begun once more" in said
    assert said.count("Run the same command again to continue") == 1
    assert are_gone(workers)
    complete = set(models(run))
    second = compare(tmp_path, "run", "--jobs", "2")
    wait_for_models(run, len(complete) + 1, second)
    workers = workers_of(second)
    second.kill()
    second.communicate()
    assert are_gone(workers), "workers end with the command that started them"
    third = compare(tmp_path, "run", "--jobs", "2")
    _, said = third.communicate()
    assert third.returncode == 0, said
    assert found(run) == alone


def test_two_commands_and_a_worker_divide_one_folder(alone, tmp_path):
    processes = [compare(tmp_path, "run"), compare(tmp_path, "run"), compare(tmp_path, "run", "--worker")]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert "Nothing is left to compute here. Tables and reports: the same command without --worker." in said[2]
    assert sum(text.count("/4] class:5") for text in said) == 4, "each cell is computed once"
    assert found(tmp_path / "run") == alone


def test_a_dask_cluster_computes_the_same_though_a_worker_is_killed(alone, tmp_path):
    scheduler = start("distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", cwd=tmp_path)
    address = next(word for line in scheduler.stderr if "Scheduler at:" in line for word in line.split() if "tcp://" in word)
    arguments = ("distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
    workers = [start(*arguments, cwd=tmp_path) for _ in range(2)]
    others = [scheduler, *workers]
    for process in others:
        process.stderr_reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    try:
        process = compare(tmp_path, "run", "--cluster", address)
        wait_for_models(tmp_path / "run", 2, process)
        workers[0].kill()
        _, said = process.communicate()
        assert process.returncode == 0, said
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert found(tmp_path / "run") == alone


def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path):
    process = compare(tmp_path, "run", "--cluster", "tcp://127.0.0.1:1")
    _, said = process.communicate()
    assert process.returncode == 1
    assert "cluster tcp://127.0.0.1:1 is not reached" in said
    assert "Traceback" not in said
