"""Twenty unlearning steps with BatchNorm and masked rows unevenly spread, however they are placed.

As a script: the same on the mesh of all processes that JAX_COORDINATOR_ADDRESS and its companions describe; the result of
the first process, for the policies that are named, goes to the file that is given.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cujax import Batch, ContrastiveUnlearning, Examples, UnlearnState, from_linen, unlearn_step
from cujax.networks.resnet import ResNet
from cujax.sharding import data_mesh, replicate, shard, start_multihost

MODEL = from_linen(ResNet(10, stage_sizes=(1,), width=8))
CONFIG = ContrastiveUnlearning(learning_rate=0.05)
POLICIES = ("joint", "retain_only", "frozen")

# Sums in another order differ by about one unit in the last place of float32 (1.2e-7 of the largest term). One step shows
# no more than a few of them; in twenty, momentum 0.9 adds up to ten, and ReLUs and 1 / std of small batches stretch them.
AFTER_ONE_STEP = 2e-6
AFTER_TWENTY = 5e-5


def make_batches(n_steps=20):
    """Batches of 16 and 32 rows; of eight devices two have no forget row that counts, and one only one retain row."""
    rng = np.random.default_rng(0)

    def examples(n, masked):
        images = rng.normal(size=(n, 8, 8, 3)).astype(np.float32)
        return Examples(images, rng.integers(0, 10, n).astype(np.int32), ~np.isin(np.arange(n), masked))

    return [Batch(examples(16, [0, 1, 2, 3, 9]), examples(32, [4, 5, 6, 17, 30])) for _ in range(n_steps)]


def settings(policy):
    return dataclasses.replace(CONFIG, batch_norm=policy)


def start(policy="joint"):
    config = settings(policy)
    return UnlearnState.create(
        *MODEL.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))), config.optimizer(), jax.random.key(1)
    )


def run(policy="joint", *, place=lambda state, batch: (state, batch), step=None, n_steps=20):
    """Parameters, statistics, momentum and losses by name, as numpy arrays; `first...` are those after one step.

    After one step the momentum is the gradient.
    """
    config = settings(policy)
    step = step or (lambda state, batch: unlearn_step(state, batch, model=MODEL, tx=config.optimizer(), config=config))
    state, seen = start(policy), []
    for number, batch in enumerate(make_batches(n_steps)):
        state, metrics = step(*place(state, batch))
        seen.append(metrics)
        if number == 0:
            first = flat("first", state, seen)
    return first | flat("last", state, seen)


def flat(prefix, state, metrics):
    momentum = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    parts = {"params": state.params, "statistics": state.model_state, "momentum": momentum, "metrics": metrics}
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(parts))[0]
    return {f"{prefix}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}


@functools.cache
def on_one_device(policy="joint"):
    return run(policy)


def on_mesh(mesh):
    """Places the state and a batch on a mesh."""
    return lambda state, batch: (replicate(state, mesh), shard(batch, mesh))


def assert_same(one, other):
    """Asserts that two results agree to rounding, absolutely where below 1 and else relatively."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        bound = AFTER_ONE_STEP if name.startswith("first") else AFTER_TWENTY
        np.testing.assert_allclose(other[name].astype(float), value.astype(float), rtol=bound, atol=bound, err_msg=name)


def largest_difference(one, other, part):
    return max(np.abs(other[name].astype(float) - value).max() for name, value in one.items() if name.startswith(part))


if __name__ == "__main__":
    start_multihost()
    results = {policy: run(policy, place=on_mesh(data_mesh())) for policy in sys.argv[2:]}
    if jax.process_index() == 0:
        named = {f"{policy}:{name}": value for policy, result in results.items() for name, value in result.items()}
        np.savez(Path(sys.argv[1]), **named)
