"""What models are judged on, and the models: arrays and a split, from a run's folder or from a caller."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cujax.audit.evidence import Answers
from cujax.data.batches import ImageSet
from cujax.data.requests import Part, Split
from cujax.model import Model, Variables
from cujax.progress import Progress, silent
from cujax.storage.records import Kind
from cujax.training.predict import Predictions, predict
from cujax.training.supervised import Training

# Returns the stored result for a description, or computes it: `keep(kind, description, compute)`.
Keep = Callable[[Kind, dict[str, Any], Callable[[], Any]], Any]


def keep_nothing(kind: Kind, asked: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """Computes without storing anything."""
    del kind, asked
    return compute()


class Candidate(NamedTuple):
    """A model to be inspected.

    Attributes:
        variables: Its arrays.
        masked_classes: Classes whose logits count as minus infinity.
        digest: Digest of its checkpoint; empty if it has none.
    """

    variables: Variables
    masked_classes: tuple[int, ...] = ()
    digest: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """What the models of a split are judged on.

    Attributes:
        model: The network.
        split: The forget set, the retain set, and the held-out sets.
        train_images: The training samples.
        test_images: The test samples; empty if there is no test part.
        recipe: How models are trained; None if unknown, in which case no model is fine-tuned on the retain set.
        has_label_noise: Whether training labels carry noise that test labels do not.
        described: Identifies the network and its training, for stored results.
        progress: Shows progress.
    """

    model: Model
    split: Split
    train_images: ImageSet
    test_images: ImageSet
    recipe: Training | None = None
    has_label_noise: bool = False
    described: dict[str, Any] = field(default_factory=dict)
    progress: Progress = silent

    def answers(self, candidate: Candidate) -> Answers:
        """A model's answers on each part of the split."""
        return Answers(
            forget=self.predictions(candidate, self.split.forget),
            # No metric or figure reads where the network puts retained training samples, and they are the most.
            retain=self._predictions(candidate, self.train_images, self.split.retain, embeddings=False),
            validation=self.predictions(candidate, self.split.validation),
            test=self._predictions(candidate, self.test_images, self.split.test),
        )

    def predictions(self, candidate: Candidate, part: Part) -> Predictions:
        """A model's answers on some training samples."""
        return self._predictions(candidate, self.train_images, part)

    def labels(self, *, train: bool) -> np.ndarray:
        """Labels `[n]` int32 of the training or the test samples."""
        return np.asarray((self.train_images if train else self.test_images).labels)

    def _predictions(self, candidate: Candidate, images: ImageSet, part: Part, *, embeddings: bool = True) -> Predictions:
        predictions = predict(self.model, candidate.variables, images, part.indices, embeddings=embeddings)
        return predictions.masked(candidate.masked_classes) if candidate.masked_classes else predictions
