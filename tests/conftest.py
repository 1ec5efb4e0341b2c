"""Eight CPU devices, rank promotion raises, warnings are errors (pyproject.toml), compilations are kept between runs.

XLA leaves out most optimisations, which halves the time of tests that mostly compile; scripts run in processes of their own
and with all of them, as users run them.
"""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="session")
def tfds_data_dir() -> str:
    """A folder of TFDS data sets in array_record format."""
    directory = os.environ.get("TFDS_DATA_DIR")
    if directory is None:
        pytest.skip("TFDS_DATA_DIR is not set: no prepared TFDS data to read")
    return directory
