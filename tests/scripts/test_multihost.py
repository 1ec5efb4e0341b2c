"""Two processes with four devices each: the step, the script, and what happens when they were started differently."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
from many_devices import assert_same, on_one_device

from cujax import load_checkpoint
from cujax.cli import parse
from cujax.experiments.run import prepare
from cujax.reports.run_report import report_on
from cujax.sharding import MultihostError, start_multihost

ROOT = Path(__file__).parents[2]
# SGD: Adam divides by gradients near zero, which turns their rounding into steps of full size. Even so a whole run is
# compared more loosely than its first steps: sooner or later rounding decides on which side of zero a ReLU lies.
QUICK = [
    "--training.optimizer", "sgd", "--training.learning-rate", "0.05", "--training.epochs", "3",
    "--data.limit", "400", "--method.max-passes", "2", "--retrained", "0", "--audit", "quick",
]  # fmt: skip


def start(command, *, folder, devices, process=None, n_processes=2, port=None):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    environment["PYTHONPATH"] = str(ROOT)
    if process is not None:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(n_processes)}
        environment |= {"JAX_PROCESS_ID": str(process)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(processes):
    """`(status, stdout, stderr)` of each."""
    try:
        ended = [(*process.communicate(timeout=900), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(status, out, err) for out, err, status in ended]


def together(folder, *commands):
    """Runs one command on each of several processes of four devices."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return finish([
        start(command, folder=folder, devices=4, process=number, n_processes=len(commands), port=port)
        for number, command in enumerate(commands)
    ])  # fmt: skip


def unlearn(*arguments):
    return [str(ROOT / "scripts" / "unlearn.py"), *QUICK, *arguments]


def test_two_processes_of_four_devices_equal_one_device(tmp_path):
    policies = ("joint", "retain_only")
    command = [str(ROOT / "tests" / "many_devices.py"), "result.npz", *policies]
    for status, _, stderr in together(tmp_path, command, command):
        assert status == 0, stderr
    named = np.load(tmp_path / "result.npz")
    for policy in policies:
        found = {name.removeprefix(f"{policy}:"): named[name] for name in named if name.startswith(f"{policy}:")}
        assert_same(on_one_device(policy), found)


def test_the_script_on_two_hosts_does_what_it_does_on_one(tmp_path):
    arguments = [*QUICK, "--workdir", str(tmp_path / "alone")]
    run_alone = prepare(parse(arguments, configs=ROOT / "configs", description=""))
    report_on(run_alone, run_alone.original(), [], run_alone.unlearned(), run_alone.workdir)
    command = unlearn("--workdir", "together", "--multihost")
    first, second = together(tmp_path, command, command)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "report.html" in first[1]
    # Nothing but what the library that connects processes on CPUs announces.
    assert "Checkpoints" not in second[1]
    assert "original" not in second[1]
    alone, both = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("alone", "together"))
    assert (alone["stop"]["rule"], alone["stop"]["step"]) == (both["stop"]["rule"], both["stop"]["step"])
    assert alone["stop"]["step"] > 0
    assert alone["split"] == both["split"]
    for name, row in alone["rows"].items():
        for key, value in row.items():
            if isinstance(value, float):
                assert both["rows"][name][key] == pytest.approx(value, abs=0.02), (name, key)
    for name in ("original", "unlearned"):
        one, other = (load_checkpoint(tmp_path / run / "checkpoints" / name) for run in ("alone", "together"))
        chex.assert_trees_all_close(one.variables, other.variables, rtol=0.02, atol=0.02)
    steps = [
        [json.loads(line) for line in (tmp_path / name / "metrics" / "original.jsonl").read_text().splitlines()]
        for name in ("alone", "together")
    ]
    assert len(steps[0]) == len(steps[1])
    for one, other in zip(steps[0][:5], steps[1][:5], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    command[0] = str(ROOT / "scripts" / "train.py")
    first, second = together(tmp_path, command, command)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert f"test {both['rows']['original']['test_accuracy']:.4f}" in first[1], "from the checkpoint"


def test_hosts_that_were_started_differently_refuse_to_run(tmp_path):
    both = ("--workdir", "run", "--multihost")
    for status, stdout, stderr in together(tmp_path, unlearn(*both), unlearn(*both, "--method.temperature", "0.5")):
        assert status == 2, stderr
        assert "host 1 has another configuration than host 0" in stderr
        assert "Traceback" not in stderr
        assert "Checkpoints" not in stdout
    assert not (tmp_path / "run").exists()


def test_a_host_that_cannot_start_stops_the_others(tmp_path):
    """The same command, but other data beneath it."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "ids.txt").write_text("digits-0\n")
    command = unlearn("--workdir", str(tmp_path / "run"), "--multihost", "forget:ids", "--forget.path", "ids.txt")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    ended = finish([
        start(command, folder=tmp_path / name, devices=4, process=number, port=port)
        for number, name in enumerate(("here", "there"))
    ])  # fmt: skip
    assert [status for status, _, _ in ended] == [2, 2], ended
    assert "ids.txt does not exist" in ended[1][2]


def test_half_an_address_is_told(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(MultihostError, match="JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES must be set, as JAX_PROCESS_ID is"):
        start_multihost()
