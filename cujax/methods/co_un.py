"""CoUn: trains on two contrasted views of the retain set (Khalil et al., arXiv:2509.16391, NeurIPS 2025)."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax

from cujax._ranges import Count, NotNegative, Positive
from cujax.batch import Batch, Rows
from cujax.data.batches import Augmentation, DeviceImages, preprocess
from cujax.data.requests import Split
from cujax.losses import cross_entropy, info_nce
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent, shuffled
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.sharding import whole
from cujax.step import apply_to_batch
from cujax.training.loop import Phase


@dataclass(frozen=True)
class CoUn(Descent):
    """Minimises `CE(view 1) + weight · InfoNCE(view 1, view 2)` of two augmented views of the retain set.

    Neighbours in the embedding attract each other: the forget set, although not used, follows similar retain samples into
    their classes. A pass is a pass over the retain set. Normalisation layers see both views as one batch.

    Attributes:
        contrastive_weight: Weight of InfoNCE; published values range from 0.1 to 6.
        temperature: Temperature of InfoNCE.
        augmentation: How the views are made: "crop", or "crop_flip" if a mirrored image belongs to the same class.
            With "none", both views of a sample are equal, and only different samples are contrasted.
    """

    max_passes: Count = 50
    weight_decay: NotNegative = 5e-4
    contrastive_weight: NotNegative = 1.0
    temperature: Positive = 0.1
    augmentation: Augmentation = "crop"

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.003, 0.3), adamw=LogUniform(1e-4, 1e-2)),
        "contrastive_weight": LogUniform(0.1, 6.0),
        "max_passes": LogUniform(5, 40),
    }
    reproduction: ClassVar[Reproduction] = {
        "class": {
            "optimizer": "adamw",
            "learning_rate": 1e-2,
            "weight_decay": 0.0,
            "batch_size": 64,
            "max_passes": 15,
            "contrastive_weight": 0.1,
        }
    }

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used."""
        state_key, batch_key = jax.random.split(key)
        step = self.step(model, _objective, _Terms(self.contrastive_weight, self.temperature))

        def passes(number: int) -> list[Phase]:
            batches = shuffled(split.retain, self.batch_size, batch_key, number)
            return [Phase(step, TwoViews(self.augmentation), batches)]

        return self.run(model, original, split, passes, key=state_key, loop=loop, repairs=True)


@dataclass(frozen=True)
class TwoViews:
    """Prepares two augmented views of each image; the first takes the place of the forget rows of a `Batch`."""

    augmentation: Augmentation

    def __call__(self, arrays: DeviceImages, rows: Rows, key: jax.Array) -> Batch:
        """The views of the rows."""
        augmented = replace(arrays, augmentation=self.augmentation)
        return Batch(*(preprocess(augmented, rows, view_key) for view_key in jax.random.split(key)))


class _Terms(NamedTuple):
    contrastive_weight: float | jax.Array
    temperature: float | jax.Array


def _objective(model: Model, variables: Variables, views: Batch, terms: _Terms, key: jax.Array) -> tuple[jax.Array, PyTree]:
    first, second, model_state = apply_to_batch(model, *variables, views, key, "joint")
    examples = views.forget
    similar = info_nce(first.embedding, whole(second.embedding), examples.mask, temperature=terms.temperature)
    return cross_entropy(first.logits, examples.labels, examples.mask) + terms.contrastive_weight * similar, model_state
