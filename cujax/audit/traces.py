"""Traces of the forget set that a model shows beyond its answers, measured without test images or retrained models."""

from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from cujax.audit.membership import loss_attack_auc
from cujax.audit.representation import divide_for_probes, linear_probe
from cujax.data.batches import ImageSet
from cujax.data.requests import Split
from cujax.model import Model, Variables
from cujax.training.predict import Predictions, predict, sample_losses
from cujax.training.supervised import fresh_variables

_LEARNED, _ASKED, _UNTRAINED = 4000, 1000, 4


@dataclass
class Traces:
    """Looks for traces of a forget set.

    Features show something about a class even if a network never saw it, and only retrained models show how much. What a
    probe reads from networks with random weights is a bound that needs no training, since it is in the images. Anything
    above this bound was learned.

    Attributes:
        model: The network.
        split: The split of the request.
        images: The training images.
    """

    model: Model
    split: Split
    images: ImageSet

    def of(self, variables: Variables, forget: Predictions, held_out: Predictions) -> dict[str, float]:
        """Each trace, by name; all are 0 if there is nothing to see, and at most 1.

        "loss": The distance from 0.5, on either side, of the area under the ROC curve of the loss, for forget samples
        against validation samples of the same classes: a model that saw neither cannot distinguish them.
        "features": The result of linear probes, mean over depths. Classes: how much more often a probe trained on half of
        the forget set recognises the other half and validation samples of the class than with untrained networks.
        Samples: how much more often a probe trained on the retain set is right on them than on validation samples, on
        either side.

        Args:
            variables: The arrays of the network.
            forget: Its answers on the forget set.
            held_out: Its answers on validation images of the same classes.

        Raises:
            ValueError: if there are no such validation images.
        """
        area = loss_attack_auc(sample_losses(forget), sample_losses(held_out))
        learned, asked = self._rows
        if self.split.is_class_task:
            found = self._probe(variables, learned, asked)
            traces = [max(np.mean(right) - self._given_away[depth], 0.0) for depth, right in found.items()]
        else:
            found = self._probe(variables, learned, np.concatenate([asked, self._held_out]))
            traces = [abs(np.mean(right[: len(asked)]) - np.mean(right[len(asked) :])) for right in found.values()]
        return {"loss": abs(area - 0.5), "features": float(np.mean(traces))}

    @cached_property
    def _held_out(self) -> np.ndarray:
        """Validation images of the classes of the forget set."""
        labels, validation = np.asarray(self.images.labels), self.split.validation.indices
        return validation[np.isin(labels[validation], labels[self.split.forget.indices])]

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Images on which probes are trained, and those on which they are evaluated."""
        rng = np.random.default_rng(0)
        learned, asked = divide_for_probes(self.split, rng)
        if self.split.is_class_task:
            asked = np.concatenate([asked, self._held_out])
        return (
            rng.choice(learned, min(_LEARNED, len(learned)), replace=False),
            rng.choice(asked, min(_ASKED, len(asked)), replace=False),
        )

    @cached_property
    def _given_away(self) -> dict[str, float]:
        """By depth, how often a probe recognises the class from the features of untrained networks: the mean."""
        untrained = [
            fresh_variables(self.model, self.images, key) for key in jax.random.split(jax.random.key(0), _UNTRAINED)
        ]
        found = [self._probe(variables, *self._rows) for variables in untrained]
        return {depth: float(np.mean([one[depth] for one in found])) for depth in found[0]}

    def _probe(self, variables: Variables, learned: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
        """By depth, whether a probe trained on some images is right on others, `[m]` bool."""
        known, unknown = (predict(self.model, variables, self.images, rows, taps=True) for rows in (learned, asked))
        return {
            depth: linear_probe(features, known.labels, unknown.features[depth], unknown.labels)
            for depth, features in known.features.items()
        }
