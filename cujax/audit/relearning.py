"""How quickly a model relearns the forget set: what was only hidden returns in a few steps."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np
import optax

from cujax.audit.evidence import Evidence, Relearning
from cujax.audit.intervals import Estimate, NotAvailable
from cujax.audit.metric import Metric, MetricContext, not_looked_at
from cujax.data.batches import ImageSet, batches_of_all, preprocess
from cujax.model import Model, Variables
from cujax.step import UnlearnState
from cujax.training.loop import NotFiniteError, Phase, Stepper
from cujax.training.predict import accuracy, predict
from cujax.training.supervised import make_optimizer, make_train_step

SHARE_TO_REGAIN = 0.95
MOST_STEPS = 300
_BATCH_SIZE = 64
_LEARNING_RATE = 0.01


@functools.cache
def _optimizer() -> optax.GradientTransformation:
    return make_optimizer("sgd", _LEARNING_RATE)


def relearn(
    model: Model, variables: Variables, images: ImageSet, indices: np.ndarray, target: float, *, at_most: int = MOST_STEPS
) -> Relearning:
    """Fine-tunes on the forget set until the accuracy on it is regained, or for a maximum number of steps.

    Uses SGD with momentum 0.9, learning rate 0.01 and batch size 64, in an order that is the same for every model. Accuracy
    is measured after each of the first 20 steps, every 5 steps until 100, and every 20 steps from there.

    Args:
        model: The network.
        variables: Its arrays; not changed.
        images: The training images.
        indices: Indices of the forget set.
        target: The accuracy at which the forget set counts as relearned.
        at_most: The maximum number of steps.
    """
    images = replace(images, augmentation="none")

    def look(variables: Variables) -> float:
        return accuracy(predict(model, variables, images, indices))

    key = jax.random.key(0)
    state = UnlearnState.create(*variables, _optimizer(), key)
    step = make_train_step(model, _optimizer())
    size = min(_BATCH_SIZE, len(indices))
    batches = itertools.chain.from_iterable(
        batches_of_all(indices, size, jax.random.fold_in(key, epoch)) for epoch in itertools.count()
    )
    stepper = Stepper(images, log=lambda record: None)
    steps, accuracies = [0], [look(variables)]
    for stop in _looks(at_most):
        if accuracies[-1] >= target:
            break
        try:
            state = stepper.run(state, Phase(step, preprocess, list(itertools.islice(batches, stop - steps[-1]))))
        except NotFiniteError:
            return Relearning(tuple(steps), tuple(accuracies), target, diverged=True)
        steps.append(stop)
        accuracies.append(look(Variables(state.params, state.model_state)))
    return Relearning(tuple(steps), tuple(accuracies), target)


def _looks(at_most: int) -> Iterator[int]:
    stops = {*range(1, 20), *range(20, 100, 5), *range(100, at_most, 20), at_most}
    yield from sorted(at for at in stops if 1 <= at <= at_most)


def _relearning_steps(context: MetricContext, model: Evidence) -> Estimate:
    del context
    if model.relearning is None:
        raise not_looked_at()
    if model.relearning.diverged:
        raise NotAvailable(f"fine-tuning diverged after {model.relearning.steps[-1]} steps")
    return Estimate(float(model.relearning.steps_to_regain))


def _relearning(context: MetricContext, model: Evidence) -> Estimate:
    if model.relearning is None:
        raise not_looked_at()
    if model.relearning.diverged:
        raise NotAvailable(f"fine-tuning diverged after {model.relearning.steps[-1]} steps")
    courses = [other.relearning for other in context.others(model) if other.relearning is not None]
    steps = [course.steps_to_regain for course in courses if not course.diverged]
    if not any(steps):
        raise NotAvailable("retrained models have nothing to relearn: they answer as the original did")
    return Estimate(model.relearning.steps_to_regain / float(np.mean(steps)))


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family."""
    del depths
    return [
        Metric(
            "relearning_steps",
            "relearning",
            "steps to relearn",
            f"In how many steps of fine-tuning is the forget set relearned? The search ends at {MOST_STEPS}.",
            _relearning_steps,
        ),
        Metric(
            "relearning_ratio",
            "relearning",
            "relearning",
            (
                "Number of steps until the forget set is relearned, relative to retrained models. Below 1: it is relearned "
                "faster."
            ),
            _relearning,
        ),
    ]
