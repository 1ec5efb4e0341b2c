"""How far unlearning moved the parameters."""

import jax
import numpy as np

from cujax.model import Variables


def is_unchanged(before: Variables, after: Variables) -> bool:
    """Whether all parameters are unchanged, bit for bit."""
    leaves = zip(*map(jax.tree.leaves, (before.params, after.params)), strict=True)
    return all(np.array_equal(np.asarray(old), np.asarray(new)) for old, new in leaves)


def parameter_change(before: Variables, after: Variables) -> float:
    """The relative change of all parameters together: `‖after - before‖ / ‖before‖`."""
    old, new = (
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(variables.params)])
        for variables in (before, after)
    )
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))
