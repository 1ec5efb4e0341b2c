"""What importing the package costs, and what it offers."""

import subprocess
import sys

import cujax

CHECK = """
import sys, jax, flax, flax.linen
from flax import nnx
import cujax
import jax._src.xla_bridge as bridge
heavy = {"tensorflow", "tensorflow_datasets", "orbax.checkpoint", "matplotlib", "sklearn", "tyro"} & set(sys.modules)
assert not heavy, heavy
assert not bridge.backends_are_initialized()
"""


def test_importing_starts_no_device_and_loads_nothing_heavy():
    finished = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_fixed_names_are_public():
    assert {
        "Batch", "ContrastiveUnlearning", "Examples", "Model", "Outputs", "UnlearnState", "compute_embeddings",
        "contrastive_unlearning_loss", "from_function", "from_linen", "from_nnx", "load_checkpoint", "make_unlearn_step",
        "save_checkpoint", "unlearn_step",
    } <= set(cujax.__all__)  # fmt: skip
