"""Margin matching: contrastive unlearning of samples that stops at the margins of unseen samples. A method of this package.

The paper's loss pushes every forget sample out of its class without limit. But most samples that a network never saw still
lie in their class. So each forget sample gets a target: the margin of an equally hard held-out sample of its class. A scout,
a network trained for a few epochs on the retain set alone, determines how hard a sample is.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cujax._ranges import Count, NotNegative, Positive, ProportionAboveZero
from cujax.batch import Batch, IndexBatch
from cujax.data.batches import DeviceImages, check_retain_batch_size, gather, paired_batches
from cujax.data.requests import Split
from cujax.losses import cosine_similarity, counted_rows, cross_entropy, logsumexp_among
from cujax.methods.base import Loop, Unlearned
from cujax.methods.descent import Descent
from cujax.methods.retrain import shortened_recipe
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.sharding import whole
from cujax.step import apply_to_batch
from cujax.training.loop import Cost, Phase
from cujax.training.predict import cost_of_predicting, predict, sample_losses
from cujax.training.supervised import Trainer, Training


@dataclass(frozen=True)
class MarginMatching(Descent):
    """Minimises `unlearn_weight · Σ Huber(margin - target) / batch_size + CE(retain batch)` for samples of retained classes.

    The margin of a sample is defined by `contrastive_margins`. Before each pass, the margins of the forget set and of the
    validation samples are computed in eval mode against one draw of the retain set. The scout, which saw neither, ranks each
    forget sample among the validation samples of its class; the target is the quantile of their margins at that rank. It
    does not depend on which other samples are forgotten. The loss is two-sided: it also brings back a sample that fell too
    far. All passes are run, since accuracy does not show when to stop.

    A sample has the weight `unlearn_weight / batch_size` in a step, also if it is forgotten alone.

    An interrupted run trains the scout again. Measured in docs/results/samples.md.

    Attributes:
        learning_rate: Learning rate of the optimiser.
        batch_size: Rows of a forget batch.
        max_passes: Passes over the forget set.
        unlearn_weight: Weight of the margins.
        temperature: Temperature of the margins.
        retain_batch_size: Rows of a retain batch.
        retain_draws: Retain batches, and steps, for each forget batch.
        reference_samples: Number of retain samples against which the margins before a pass are computed.
        scout_share: Share of the original's epochs for which the scout is trained.
        training: The recipe of the scout; None for that of the original.
    """

    learning_rate: Positive = 0.05
    batch_size: Count = 64
    max_passes: Count = 10
    unlearn_weight: NotNegative = 0.6
    temperature: Positive = 0.1
    retain_batch_size: Count = 64
    retain_draws: Count = 1
    reference_samples: Count = 500
    scout_share: ProportionAboveZero = 0.2
    training: Training | None = None

    search_space: ClassVar[SearchSpace] = {
        "optimizer": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.002, 0.2), adamw=LogUniform(5e-5, 5e-3)),
        "unlearn_weight": LogUniform(0.05, 2.0),
        "max_passes": LogUniform(5, 30),
    }

    def check(self, split: Split) -> None:
        """Raises ValueError if whole classes are to be forgotten, no samples are held out, or a batch is too large."""
        if split.is_class_task:
            raise ValueError(
                "MarginMatching forgets samples of classes that stay: held-out samples of a class that was trained on "
                "do not show where an unseen class would lie. Choose another method for whole classes."
            )
        if not len(split.validation):
            raise ValueError(
                "MarginMatching takes its targets from validation samples, but none are held out; leave out --no-validation."
            )
        check_retain_batch_size(self.retain_batch_size, len(split.retain))

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`.

        Raises:
            ValueError: as `check`; if there is no recipe for the scout; or if a class has no validation sample.
            FloatingPointError: if the scout diverges.
        """
        self.check(split)
        recipe = shortened_recipe(self.training, self.scout_share, "MarginMatching")
        state_key, batch_key, scout_key, draw_key = jax.random.split(key, 4)
        labels = np.asarray(loop.images.labels)
        forget, held_out = split.forget.indices, split.validation.indices
        missing = np.setdiff1d(labels[forget], labels[held_out])
        if missing.size:
            raise ValueError(
                f"there is no validation sample of class {missing[0]}, so nothing shows where its samples belong."
            )
        drawn = np.asarray(jax.random.permutation(draw_key, split.retain.indices))[: self.reference_samples]
        asked = np.concatenate([forget, held_out])
        log_odds, spent = self._scout(recipe, model, original, split, asked, scout_key, loop)
        per_pass = cost_of_predicting(model, original, loop.images, len(forget) + len(held_out) + len(drawn))

        def targets(variables: Variables) -> tuple[np.ndarray, Cost]:
            started = time.perf_counter()
            of_asked, of_drawn = (predict(model, variables, loop.images, rows).embeddings for rows in (asked, drawn))
            margins, defined = map(
                np.asarray,
                contrastive_margins(of_asked, labels[asked], of_drawn, labels[drawn], temperature=self.temperature),
            )
            among = len(forget) + np.flatnonzero(defined[len(forget) :])
            found = targets_at_equal_rank(
                log_odds[: len(forget)], labels[forget], log_odds[among], labels[asked[among]], margins[among]
            )
            return found, replace(per_pass, seconds=time.perf_counter() - started)

        step = self.step(model, _objective, _Weights(self.unlearn_weight, self.temperature, self.batch_size))
        place = {int(index): position for position, index in enumerate(forget)}

        def batches(number: int, known: np.ndarray) -> Iterator[IndexBatch]:
            for pair in paired_batches(
                forget,
                split.retain.indices,
                forget_batch_size=self.batch_size,
                retain_batch_size=self.retain_batch_size,
                retain_draws=self.retain_draws,
                forget_pass=number,
                key=batch_key,
            ):
                wanted = known[[place[int(index)] for index in pair.forget.indices]]
                yield replace(pair, forget=replace(pair.forget, values=wanted))

        def passes(number: int, known: Any) -> list[Phase]:
            return [Phase(step, _gather, batches(number, np.asarray(known)))]

        return self.run(
            model,
            original,
            split,
            passes,
            key=state_key,
            loop=loop,
            all_passes=True,
            spent=spent,
            before_pass=(targets, jnp.zeros(len(forget), jnp.float32)),
        )

    @staticmethod
    def _scout(
        recipe: Training,
        model: Model,
        original: Variables,
        split: Split,
        asked: np.ndarray,
        key: jax.Array,
        loop: Loop,
    ) -> tuple[np.ndarray, Cost]:
        """How sure a network that was trained on the retain set alone is of the labels (log-odds, `[n]`), and the cost."""
        trainer = Trainer(recipe, loop.images, loop.progress, steps_per_call=loop.steps_per_call)
        scout = trainer.train(model, split.retain.indices, key, description="training a scout", frozen=original)
        losses = sample_losses(predict(model, scout.variables, loop.images, asked, embeddings=False))
        log_odds = -losses - np.log(-np.expm1(-np.maximum(losses, 1e-300)))
        predicting = cost_of_predicting(model, scout.variables, loop.images, len(asked))
        return log_odds, scout.cost + predicting


def contrastive_margins(
    embeddings: ArrayLike,
    labels: ArrayLike,
    retain_embeddings: ArrayLike,
    retain_labels: ArrayLike,
    *,
    temperature: ArrayLike,
    retain_mask: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """How much nearer each sample lies to retain samples of its class than to others, by the softmax mean of the cosines.

    `m_i = [logsumexp_{p∈P_i} s_ip - log|P_i|] - [logsumexp_{a∈N_i} s_ia - log|N_i|]`, where `s` is the cosine over the
    temperature, `P_i` the retain samples of the label of i, and `N_i` the others. It is large for memorised samples.

    Args:
        embeddings: `[B, d]`.
        labels: `[B]` integer.
        retain_embeddings: `[R, d]`.
        retain_labels: `[R]` integer.
        temperature: Above 0.
        retain_mask: `[R]` bool, True for rows that count.

    Returns:
        The margins, `[B]` float32, and where they are defined, `[B]` bool: if there is a retain sample of the class and one
        of another class. They are finite everywhere.
    """
    rows = counted_rows("forget", embeddings, labels, None)
    others = counted_rows("retain", retain_embeddings, retain_labels, retain_mask)
    similarity = cosine_similarity(rows, others, temperature)
    same = rows.labels[:, None] == others.labels[None, :]

    def mean_over(chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        n = (chosen & others.counts[None, :]).sum(axis=1)
        return logsumexp_among(chosen & others.counts[None, :], similarity) - jnp.log(jnp.maximum(n, 1)), n > 0

    (positive, has_own), (negative, has_other) = mean_over(same), mean_over(~same)
    return positive - negative, has_own & has_other


def targets_at_equal_rank(
    log_odds: np.ndarray,
    labels: np.ndarray,
    held_out_log_odds: np.ndarray,
    held_out_labels: np.ndarray,
    held_out_margins: np.ndarray,
) -> np.ndarray:
    """The held-out margin, within the same class, at each sample's rank among the held-out samples, `[n]` float32.

    Of m held-out samples k are harder than a sample: its target is their margin at the quantile (k + 1/2) / (m + 1).

    Args:
        log_odds: `[n]`, log-odds that the scout is right: low for hard samples.
        labels: `[n]`.
        held_out_log_odds: `[m]`, the same of the held-out samples.
        held_out_labels: `[m]`. Where a label of `labels` is not among them, the target is NaN.
        held_out_margins: `[m]`.

    >>> hard, known = np.array([-1.0]), np.array([0.0, 1.0, 2.0])
    >>> targets_at_equal_rank(hard, np.array([0]), known, np.zeros(3, int), np.array([1.0, 2.0, 3.0]))
    array([1.25], dtype=float32)
    """
    found = np.full(len(labels), np.nan, np.float32)
    for label in np.unique(labels):
        rows, others = np.flatnonzero(labels == label), held_out_labels == label
        if others.any():
            harder = np.searchsorted(np.sort(held_out_log_odds[others]), log_odds[rows])
            found[rows] = np.quantile(held_out_margins[others], (harder + 0.5) / (others.sum() + 1))
    return found


class _Weights(NamedTuple):
    unlearn_weight: float | jax.Array
    temperature: float | jax.Array
    batch_size: int | jax.Array


class _Targeted(NamedTuple):
    batch: Batch
    targets: jax.Array


def _gather(arrays: DeviceImages, rows: IndexBatch, key: jax.Array) -> _Targeted:
    assert rows.forget.values is not None
    return _Targeted(gather(arrays, rows, key), jnp.asarray(rows.forget.values))


def _objective(
    model: Model, variables: Variables, targeted: _Targeted, weights: _Weights, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    batch, targets = targeted
    forget, retain, model_state = apply_to_batch(model, *variables, batch, key, "joint")
    margins, defined = contrastive_margins(
        forget.embedding,
        batch.forget.labels,
        jax.lax.stop_gradient(whole(retain.embedding)),
        batch.retain.labels,
        temperature=weights.temperature,
        retain_mask=batch.retain.mask,
    )
    wanted = jnp.isfinite(targets)
    distances = optax.losses.huber_loss(margins, jnp.where(wanted, targets, 0))
    counted = batch.forget.counts & defined & wanted
    # Not the mean over counted rows: in a batch that is mostly filled, a few samples would move the network alone.
    unlearn_loss = jnp.where(counted, distances, 0).sum() / weights.batch_size
    retain_loss = cross_entropy(retain.logits, batch.retain.labels, batch.retain.mask)
    return weights.unlearn_weight * unlearn_loss + retain_loss, model_state
