"""A state that a run may return: the parameters after a pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from cujax.methods.stop_rules import Check
from cujax.model import Variables


@dataclass(frozen=True)
class Snapshot:
    """A copy of the parameters, which the next donated step cannot delete."""

    step: int
    variables: Variables

    @classmethod
    def of(cls, variables: Variables, step: int) -> "Snapshot":
        return cls(step, jax.tree.map(jnp.copy, variables))

    def check(self, checks: Sequence[Check]) -> Check:
        """The check of this state."""
        return next(check for check in checks if check.step == self.step)
