"""Scripts that are interrupted in their first second, while they import."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ("audit", "compare", "lineage", "reproduce", "train", "tune", "unlearn")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_during_imports_is_told_in_a_sentence(tmp_path, name, number, status):
    code = (
        "import builtins, os, runpy, sys\n"
        "slow = builtins.__import__\n"
        "def signalled(name, *rest, **more):\n"
        f"    if name == 'jax': os.kill(os.getpid(), {int(number)})\n"
        "    return slow(name, *rest, **more)\n"
        "builtins.__import__ = signalled\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\n"
        f"runpy.run_path({str(SCRIPTS / f'{name}.py')!r}, run_name='__main__')\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == status, finished.stderr
    assert finished.stderr.split("\n")[1:] == ["Interrupted before anything was computed.", ""]
    assert list(tmp_path.iterdir()) == []
