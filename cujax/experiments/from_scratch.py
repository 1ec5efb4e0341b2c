"""Networks that are trained from scratch with an experiment's recipe, one by one or several in one compiled step."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from cujax.data.batches import ImageSet
from cujax.experiments.config import Setup
from cujax.experiments.model_store import ModelStore
from cujax.model import Model, Variables
from cujax.progress import Progress
from cujax.storage.checkpoints import Metadata
from cujax.storage.metrics_writer import MetricsWriter
from cujax.training.loop import Log
from cujax.training.resume import NO_RESUME_POINT, ResumePoint
from cujax.training.supervised import Trained, Trainer


@dataclass(frozen=True)
class FromScratch:
    """Trains networks with the recipe of a setup.

    Attributes:
        setup: The setup.
        model: The network.
        images: Returns the training images.
        frozen: The arrays that frozen parameters are taken from, if the network freezes some.
        progress: Shows progress.
    """

    setup: Setup
    model: Model
    images: Callable[[], ImageSet]
    frozen: Variables | None
    progress: Progress

    def train(
        self, name: str, indices: np.ndarray, key: jax.Array, log: MetricsWriter, resume_point: ResumePoint
    ) -> Trained:
        """A network trained on some training images."""
        trainer = self._trainer(log, resume_point)
        return trainer.train(self.model, indices, key, description=f"training {name}", frozen=self.frozen)

    def train_together(
        self,
        store: ModelStore,
        keys: Mapping[str, jax.Array],
        indices: np.ndarray,
        metadata_of: Callable[[dict[str, Any]], Metadata],
    ) -> None:
        """Trains the missing ones of some models, several in one compiled step, if the setup and the device allow it.

        Args:
            store: Where they are stored.
            keys: The key of each, by its name there.
            indices: Training images.
            metadata_of: The metadata of a model with this record.
        """
        fresh = store.not_begun(keys)
        if len(fresh) < 2:
            return

        def make(names: Sequence[str], log: MetricsWriter, resume_point: ResumePoint) -> list[tuple[Variables, Metadata]]:
            trainer = self._trainer(lambda record: log(_by_model(record, names)), resume_point)
            trained = trainer.train_together(
                self.model,
                indices,
                [keys[name] for name in names],
                description=f"training {names[0]} to {names[-1]}",
                frozen=self.frozen,
            )
            return [(one.variables, metadata_of({"cost": asdict(one.cost)})) for one in trained]

        for group in itertools.batched(fresh, self._at_once):
            if len(group) > 1:
                store.together(group, make)

    @cached_property
    def _at_once(self) -> int:
        if self.setup.models_at_once is not None:
            return self.setup.models_at_once
        return self._trainer(lambda record: None, NO_RESUME_POINT).models_at_once(self.model, self.frozen)

    def _trainer(self, log: Log, resume_point: ResumePoint) -> Trainer:
        setup = self.setup
        return Trainer(setup.training, self.images(), self.progress, log, setup.steps_per_call, resume_point)


def _by_model(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A record of several models with a name for each value."""
    values = {metric: each for metric, each in record.items() if metric != "step"}
    named = {f"{name}/{metric}": each[number] for metric, each in values.items() for number, name in enumerate(names)}
    return {"step": record["step"], **named}
