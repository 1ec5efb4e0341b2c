"""What importing the package costs, what it offers, and what is in the wheel."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cujax

CHECK = """
import sys
import cujax
assert "jax" not in sys.modules
import jax, flax, flax.linen
from flax import nnx
import jax._src.xla_bridge as bridge
heavy = {"tensorflow", "tensorflow_datasets", "orbax.checkpoint", "matplotlib", "sklearn.base", "scipy.stats", "tyro"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert all(getattr(cujax, name) is not None for name in cujax.__all__)
assert not bridge.backends_are_initialized()
"""


def test_importing_starts_no_device_and_loads_nothing_heavy():
    finished = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


FLAGS = """
import contextlib, io, sys
from cujax.commands import COMMANDS, run
for command in COMMANDS:
    for flags in (["--help"], ["--no-such-flag", "1"]):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                run(command, flags)
            except SystemExit:
                pass
    heavy = {"tensorflow_datasets", "orbax.checkpoint", "grain", "matplotlib", "sklearn.base", "scipy.stats", "jinja2"}
    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))
"""


def test_flags_are_read_before_anything_heavy_is_loaded():
    finished = subprocess.run([sys.executable, "-c", FLAGS], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_fixed_names_are_public():
    assert {
        "Batch", "ContrastiveUnlearning", "Examples", "Model", "Outputs", "UnlearnState", "compute_embeddings",
        "contrastive_unlearning_loss", "from_function", "from_linen", "from_nnx", "load_checkpoint", "make_unlearn_step",
        "save_checkpoint", "unlearn_loss", "unlearn_step",
    } <= set(cujax.__all__)  # fmt: skip


def test_the_lock_names_all_that_the_package_and_its_tests_need():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["test"]
    locked = set(re.findall(r"^([\w.-]+)==", (root / "requirements.lock").read_text("utf-8"), re.MULTILINE))
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in asked}
    assert names <= locked, "uv export ...: see A release in CONTRIBUTING.md"


COMMANDS = (
    "unlearn",
    "audit",
    "compare",
    "tune",
    "train",
    "import",
    "export",
    "lineage",
    "purge",
    "prepare-data",
    "benchmark",
)


@pytest.mark.slow
def test_the_wheel_has_all_that_its_command_needs(tmp_path):
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed: nothing to build the wheel with")
    root = Path(__file__).parents[1]
    built = subprocess.run(["uv", "build", "--wheel", "--out-dir", tmp_path, root], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        assert not [name for name in archive.namelist() if name.startswith(("tests", "scripts", "configs"))]
    (points,) = (tmp_path / "installed").glob("*.dist-info/entry_points.txt")
    assert "cujax = cujax.commands:main" in points.read_text()
    (tmp_path / "empty").mkdir()

    def command(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [sys.executable, "-m", "cujax", *arguments],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
        )

    overview = command("--help")
    assert overview.returncode == 0
    assert all(f"  {name} " in overview.stdout for name in COMMANDS)
    assert command("forget").returncode == 2
    quick = ["--data.limit", "300", "--training.epochs", "1", "--method.max-passes", "1", "--retrained", "1"]
    main_job = command("unlearn", *quick, "--audit", "quick")
    assert main_job.returncode in (0, 3), main_job.stderr
    assert (tmp_path / "empty" / "runs" / "digits_class" / "report.html").is_file()
