"""Unlearning in the last layers only: EU-k and CF-k (Goel et al., arXiv:2201.06640)."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from cujax._ranges import Count
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.fine_tune import FineTune
from cujax.methods.layers import as_mask, in_layers, named_layers, redrawn
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables


@dataclass(frozen=True)
class CatastrophicForgetLastK(FineTune):
    """CF-k: trains only the last layers on the retain set; the others do not change. A pass is a pass over the retain set.

    Batch statistics are updated in all layers, as in published code.

    Attributes:
        last_layers: How many of `Model.layers` are trained (k), counted from the head. In networks with the paper's head, 4
            covers the last stage and the head.
    """

    last_layers: Count = 4

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.3), adamw=LogUniform(1e-4, 1e-2)),
        "last_layers": LogUniform(1, 4),
        "max_passes": LogUniform(5, 40),
    }

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used.

        Raises:
            ValueError: if the network does not name its layers, or has fewer.
        """
        return self.tune(model, original, split, key=key, loop=loop, mask=self._mask(model, original.params))

    def check_network(self, model: Model, params: PyTree, split: Split) -> None:
        """Raises ValueError if the network does not name its layers, or has fewer."""
        del split
        self.moving(model, params)

    def _mask(self, model: Model, params: PyTree) -> PyTree:
        return as_mask(in_layers(params, self.moving(model, params)), params)

    def moving(self, model: Model, params: PyTree) -> tuple[str, ...]:
        """The layers that are trained.

        Raises:
            ValueError: if the network does not name its layers, or has fewer.
        """
        layers = named_layers(model, params, type(self).__name__)
        if self.last_layers > len(layers):
            raise ValueError(
                f"last_layers is {self.last_layers}, but the network has {len(layers)}: {', '.join(layers)}; "
                f"make it at most {len(layers)}."
            )
        return layers[-self.last_layers :]


@dataclass(frozen=True)
class ExactUnlearnLastK(CatastrophicForgetLastK):
    """EU-k: as CF-k, but from a fresh initialisation of the last layers, so that these never saw the forget set.

    It runs all its passes, since the new layers know nothing before them. What the earlier layers have learned from the
    forget set is not changed.
    """

    reproduction: ClassVar[Reproduction] = {"class": {"learning_rate": 0.04, "last_layers": 3, "max_passes": 5}}

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used.

        Raises:
            ValueError: if the network does not name its layers, or has fewer.
        """
        key, fresh_key = jax.random.split(key)
        start = redrawn(model, original, self.moving(model, original.params), loop.images, fresh_key)
        mask = self._mask(model, original.params)
        return self.tune(model, start, split, key=key, loop=loop, mask=mask, all_passes=True, original=original)
