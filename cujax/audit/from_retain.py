"""Whether fine-tuning on the retain set alone restores the forget set, and whether a model is still close to the original.

After Relearning from retained data (arXiv:2505.22310): fine-tuning that never sees the forget set restores what many
methods only suppressed. Distances and the straight line to the original show why: such a model never moved away.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cujax.audit.evidence import Evidence, Line, RetainCourse
from cujax.audit.intervals import Estimate, NotAvailable, share
from cujax.audit.metric import Metric, MetricContext, not_looked_at_closely
from cujax.audit.recalibration import recalibrate
from cujax.data.batches import ImageSet, batches_of_all, preprocess
from cujax.model import Model, Variables
from cujax.step import UnlearnState
from cujax.training.loop import NotFiniteError, Phase, Stepper
from cujax.training.predict import accuracy, correct, predict
from cujax.training.supervised import Training, make_train_step

EPOCHS = 2
MOST_STEPS = 400
_SHARE_OF_RATE = 0.1
_POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def tune_on_retain(
    model: Model, variables: Variables, images: ImageSet, retain: np.ndarray, recipe: Training
) -> Variables | None:
    """Fine-tunes on the retain set with the original's recipe at a tenth of its rate, for 2 epochs, at most 400 steps.

    Args:
        model: The network.
        variables: Its arrays; not changed.
        images: The training images.
        retain: `[n]` rows of the retain set.
        recipe: The original's training recipe.

    Returns:
        None if the loss became non-finite.
    """
    size = min(recipe.batch_size, len(retain))
    key = jax.random.key(0)
    batches = [rows for epoch in range(EPOCHS) for rows in batches_of_all(retain, size, jax.random.fold_in(key, epoch))]
    batches = batches[:MOST_STEPS]
    tx = replace(recipe, learning_rate=_SHARE_OF_RATE * recipe.learning_rate).make_optimizer(len(batches))
    stepper = Stepper(replace(images, augmentation=recipe.augmentation), log=lambda record: None)
    state = UnlearnState.create(*variables, tx, key)
    try:
        state = stepper.run(state, Phase(make_train_step(model, tx), preprocess, batches))
    except NotFiniteError:
        return None
    return Variables(state.params, state.model_state)


def straight_line(
    model: Model, variables: Variables, original: Variables, images: ImageSet, forget: np.ndarray, retain: np.ndarray
) -> Line:
    """The distance of a model from the original, and accuracies at five points on the straight line between them.

    Batch statistics are recomputed at each point.

    Args:
        model: The network of both.
        variables: The model's arrays.
        original: The original's arrays.
        images: The training images.
        forget: Rows of forget samples.
        retain: Rows of retained samples, on which statistics are also computed.
    """
    leaves = zip(jax.tree.leaves(variables.params), jax.tree.leaves(original.params), strict=True)
    squares = [np.sum((np.asarray(here, np.float64) - np.asarray(there, np.float64)) ** 2) for here, there in leaves]
    found: dict[str, list[float]] = {"forget": [], "retain": []}
    for at in _POINTS:

        def between(here: jax.Array, there: jax.Array, at: float = at) -> jax.Array:
            mixed = (1 - at) * jnp.asarray(here) + at * jnp.asarray(there)
            return mixed.astype(jnp.asarray(here).dtype)

        point = Variables(
            jax.tree.map(between, variables.params, original.params),
            jax.tree.map(between, variables.model_state, original.model_state),
        )
        point = recalibrate(model, point, images, retain) or point
        for name, rows in (("forget", forget), ("retain", retain)):
            found[name].append(accuracy(predict(model, point, images, rows, embeddings=False)))
    return Line(float(np.sqrt(sum(squares))), _POINTS, tuple(found["forget"]), tuple(found["retain"]))


def look_from_retain(
    model: Model, variables: Variables, images: ImageSet, forget: np.ndarray, retain: np.ndarray, recipe: Training
) -> RetainCourse:
    """A model's answers on the forget set after fine-tuning on the retain set; takes the arguments of `tune_on_retain`."""
    tuned = tune_on_retain(model, variables, images, retain, recipe)
    if tuned is None:
        return RetainCourse((), diverged=True)
    return RetainCourse(tuple(correct(predict(model, tuned, images, forget, embeddings=False)).tolist()))


def _after_retain(context: MetricContext, model: Evidence) -> Estimate:
    del context
    if model.from_retain is None:
        raise not_looked_at_closely()
    if model.from_retain.diverged:
        raise NotAvailable("fine-tuning on the retain set diverged")
    return share(np.array(model.from_retain.right, bool))


def _line(model: Evidence) -> Line:
    if model.line is None:
        raise not_looked_at_closely()
    return model.line


def _distance(context: MetricContext, model: Evidence) -> Estimate:
    others = [other.line.distance for other in context.others(model) if other.line is not None]
    own = _line(model).distance
    if not others or not np.mean(others):
        raise NotAvailable("the parameters of retrained models equal those of the original")
    return Estimate(own / float(np.mean(others)))


def _barrier(context: MetricContext, model: Evidence) -> Estimate:
    del context
    line = _line(model)
    at, retain = np.array(line.points), np.array(line.retain)
    return Estimate(float(np.max((1 - at) * retain[0] + at * retain[-1] - retain)))


def _halfway(context: MetricContext, model: Evidence) -> Estimate:
    del context
    line = _line(model)
    return Estimate(line.forget[line.points.index(0.5)])


def metrics(depths: Sequence[str]) -> list[Metric]:
    """The metrics of this family."""
    del depths
    family: Callable[..., Metric] = partial(Metric, family="from retained data")
    return [
        family(
            key="accuracy_from_retain",
            heading="forget, after retain alone",
            question=(
                f"How often is the model right on the forget set after {EPOCHS} epochs of training on the retain set alone?"
            ),
            compute=_after_retain,
        ),
        family(
            key="distance_to_original",
            heading="distance to original",
            question="How far are the parameters from the original's, relative to the distance of retrained models?",
            compute=_distance,
        ),
        family(
            key="line_barrier",
            heading="barrier to original",
            question="How far does accuracy on retained data fall on the straight line to the original? 0: not at all.",
            compute=_barrier,
        ),
        family(
            key="line_forget_halfway",
            heading="forget, halfway to original",
            question="How often is a network halfway between the model and the original right on the forget set?",
            compute=_halfway,
        ),
    ]
