"""Contrastive unlearning (Lee et al., arXiv:2401.10458, IJCAI 2025)."""

import functools
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import jax
import optax

from cujax._ranges import Count, CountOrZero, NotNegative, Positive, ProportionBelowOne, check_fields
from cujax.data.batches import check_retain_batch_size, gather, input_shapes, paired_batches
from cujax.data.requests import Split
from cujax.embedding_queue import keep_embeddings
from cujax.losses import Denominator
from cujax.methods.base import Loop, Unlearned
from cujax.methods.search_space import OPTIMIZERS, ByOptimizer, LogUniform, Reproduction, SearchSpace
from cujax.model import Model, Variables, abstract_outputs
from cujax.step import BatchNorm, UnlearnState, make_unlearn_step
from cujax.training.loop import Phase
from cujax.training.supervised import OptimizerName, optimizer_name


@dataclass(frozen=True)
class ContrastiveUnlearning:
    """Pushes the embeddings of forget samples out of their class and towards others, while training on retain samples.

    The defaults work on digits and Fashion-MNIST, for whole classes and for random samples; `official` returns the
    published settings. A smaller weight with more passes forgets as well, at a lower cost to the retained data.

    Attributes:
        learning_rate: Learning rate of the optimiser.
        momentum: Momentum of "sgd".
        optimizer_name: "sgd" with momentum, as in the paper, or "adamw" ("adam" is an alias).
        unlearn_weight: Weight of the contrastive loss (lambda_UL).
        retain_weight: Weight of the retain batch's cross-entropy (lambda_CE).
        temperature: Temperature of the contrastive loss (tau).
        denominator: "paper" for the paper's equations, "official" for what the authors' code computes.
        batch_norm: How batch statistics are used. With "joint", forget and retain rows are normalised as one batch and
            update the running statistics. With "retain_only", they are normalised separately, and only retain rows update
            the running statistics. With "frozen", the running statistics are used and do not change.
        retain_draws: Number of retain batches, and so of steps, for each forget batch (omega).
        forget_batch_size: Rows of a forget batch; a smaller forget set forms one batch.
        retain_batch_size: Rows of a retain batch.
        queue_size: Number of past retain embeddings with which forget samples are contrasted, in addition to the retain
            batch; 0 for none. This helps if there are many classes: a forget sample (anchor) without retain samples of its
            own class (positives) is only pulled towards other classes, and not pushed out of its own. With 100 equally
            frequent classes, 27 % of anchors have none in a batch of 128; with a queue of 256 it is 2.2 %, with 512
            0.3 % (in batches of 64: 53, 4 and 0.5 %). Counted over one pass with 5,000 forget and 45,000 retain samples, and
            a queue that starts empty.
        max_passes: The maximum number of passes over the forget set.
        forgotten_accuracy: If whole classes are to be forgotten, the run ends when accuracy on them is at most this. None:
            one divided by the number of classes.
    """

    learning_rate: Positive = 0.02
    momentum: ProportionBelowOne = 0.9
    unlearn_weight: NotNegative = 0.3
    retain_weight: NotNegative = 1.0
    temperature: Positive = 0.7
    denominator: Denominator = "paper"
    batch_norm: BatchNorm = "joint"
    retain_draws: Count = 4
    forget_batch_size: Count = 64
    retain_batch_size: Count = 64
    queue_size: CountOrZero = 0
    max_passes: Count = 100
    forgotten_accuracy: ProportionBelowOne | None = 0.01
    optimizer_name: OptimizerName = field(default="sgd", metadata={"since": "0.2"})

    search_space: ClassVar[SearchSpace] = {
        "optimizer_name": OPTIMIZERS,
        "learning_rate": ByOptimizer(sgd=LogUniform(0.001, 0.1), adamw=LogUniform(1e-4, 1e-2)),
        "unlearn_weight": LogUniform(0.03, 3.0),
        "retain_draws": LogUniform(1, 5),
        "max_passes": LogUniform(5, 40),
    }
    reproduction: ClassVar[Reproduction] = {
        "class": {"optimizer_name": "adamw", "learning_rate": 1e-3, "unlearn_weight": 1.0, "max_passes": 1},
    }

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer_name", optimizer_name(self.optimizer_name))
        check_fields(self)

    def check(self, split: Split) -> None:
        """Raises ValueError if the retain batch is larger than the retain set."""
        check_retain_batch_size(self.retain_batch_size, len(split.retain))

    @classmethod
    def official(cls, task: Literal["class", "samples"] = "class") -> Self:
        """The settings of the authors' code for forgetting a class or samples."""
        batch_size = 64 if task == "class" else 128
        return cls(
            learning_rate=1e-3,
            unlearn_weight=3.0,
            denominator="official",
            forget_batch_size=batch_size,
            retain_batch_size=batch_size,
            max_passes=1 if task == "class" else 30,
            forgotten_accuracy=None,
        )

    def optimizer(self, embedding_width: int | None = None) -> optax.GradientTransformation:
        """SGD with momentum, or Adam; returns the same object for equal settings, so that jit does not compile again.

        The learning rate is in the state (`opt_state.hyperparams["learning_rate"]`), where a schedule can change it. With
        a queue, that state is the second of a chain of two; the first contains the queue (`cujax.embedding_queue`).

        Args:
            embedding_width: Width of the network's embeddings; needed with a queue.

        Raises:
            ValueError: if a queue is used and the width is not given.
        """
        if not self.queue_size:
            return _descent(self.optimizer_name, self.learning_rate, self.momentum)
        if embedding_width is None:
            raise ValueError(
                f"queue_size is {self.queue_size}, so the optimiser keeps embeddings; give their width: "
                "optimizer(embedding_width=...)."
            )
        return _with_queue(self.optimizer_name, self.learning_rate, self.momentum, self.queue_size, embedding_width)

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`: Algorithm 1 of the paper, with its stop rule on validation data.

        Raises:
            ValueError: if the retain batch is larger than the retain set.
        """
        width = None
        if self.queue_size:
            width = abstract_outputs(model, original, input_shapes(loop.images)).embedding.shape[1]
        tx = self.optimizer(width)
        state_key, batch_key = jax.random.split(key)
        state = UnlearnState.create(*original, tx, state_key)
        step = make_unlearn_step(model, tx, self)

        def phases(forget_pass: int) -> list[Phase]:
            batches = paired_batches(
                split.forget.indices,
                split.retain.indices,
                forget_batch_size=self.forget_batch_size,
                retain_batch_size=self.retain_batch_size,
                retain_draws=self.retain_draws,
                forget_pass=forget_pass,
                key=batch_key,
            )
            return [Phase(step, gather, batches)]

        return loop.run(model, state, phases, split, max_passes=self.max_passes, forgotten_accuracy=self.forgotten_accuracy)


@functools.cache
def _descent(name: OptimizerName, learning_rate: float, momentum: float) -> optax.GradientTransformation:
    if name == "sgd":
        return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate, momentum=momentum or None)
    return optax.inject_hyperparams(optax.adam)(learning_rate=learning_rate)


@functools.cache
def _with_queue(
    name: OptimizerName, learning_rate: float, momentum: float, size: int, width: int
) -> optax.GradientTransformation:
    return optax.chain(keep_embeddings(size, width), _descent(name, learning_rate, momentum))
