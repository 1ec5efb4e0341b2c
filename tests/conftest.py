"""Eight CPU devices, rank promotion raises, warnings are errors (pyproject.toml), compilations are kept between runs."""

import os
from pathlib import Path

# Before NumPy starts: two workers share the cores, and the scripts that they run find the modules compiled.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# XLA ends the process if one of the eight devices is 40 s late, as on a machine with much else to do.
os.environ["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=900"

import hypothesis
import jax
import jaxtyping
import pytest

# Shapes and dtypes are checked in every call.
jaxtyping.install_import_hook(["cujax.losses", "cujax.step"], "shape_checks.checked")
# No test fails because the machine is slow; one that draws at random says so itself.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Of this process, and of those that tests start. Tests mostly compile: XLA leaves out most optimisations, which halves their
# time, but for the modules below.
COMPILATIONS = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".jax_cache"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_disable_most_optimizations": True,
}
for name, value in COMPILATIONS.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
# They train for long; the last compares bits of programs that only optimisation makes equal.
OPTIMISED = {
    "experiments/test_audit",
    "experiments/test_reproductions",
    "methods/test_base",
    "networks/test_torch_weights",
    "tests/test_labels",
}


# Modules that take longest. They begin first, so that no worker waits for another at the end.
LONGEST = {
    "test_docs",
    "test_freezing",
    "test_networks",
    "test_calls",
    "test_compare",
    "test_division",
    "test_guards",
    "test_linen_as_people_have_it",
    "test_losses",
    "test_model",
    "test_embedding_queue",
    "test_tune",
    "test_run",
    "test_run_report",
    "test_resume",
    "test_package",
    "test_parts",
    "test_pmap",
    "test_reproductions",
    "test_sharding",
}
# Whole scripts in processes of their own, several hosts, whole audits.
SLOW = {"test_audit", "test_campaign", "test_division", "test_multihost", "test_scripts", "test_torture"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.stem not in LONGEST | SLOW)


def _mappings() -> int:
    """Mappings of this process's memory. Linux allows 65,530; each compiled program takes some; beyond them XLA crashes."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def _optimise(request):
    if f"{request.path.parent.name}/{request.path.stem}" in OPTIMISED:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()  # of programs that other modules compiled
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    if _mappings() > 45_000:
        jax.clear_caches()


@pytest.fixture
def shapes_unchecked():
    """For tests of the errors that the package itself raises for wrong shapes and dtypes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tfds_data_dir() -> str:
    """A folder of TFDS data sets in array_record format."""
    directory = os.environ.get("TFDS_DATA_DIR")
    if directory is None:
        pytest.skip("TFDS_DATA_DIR is not set: no prepared TFDS data to read")
    return directory


# Whole runs: on one device, since eight on two cores take longer (tests/test_sharding.py compares them), and with fewer
# points in the pictures of embeddings, which would take most of a report's time.
WHOLE_RUNS = {"experiments", "reports", "scripts", "storage"}


@pytest.fixture(scope="module", autouse=True)
def _small_runs(request):
    if request.path.parent.name not in WHOLE_RUNS or request.path.stem == "test_figures":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cujax.experiments.run.data_mesh", lambda: None)
        patch.setattr("cujax.reports.figures._MAX_FORGET", 40)
        patch.setattr("cujax.reports.figures._MAX_KEPT", 80)
        yield
