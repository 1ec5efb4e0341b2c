"""UNDO: distils an original that no longer answers with the forgotten classes into a network that starts nearly fresh."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import optax

from cujax._ranges import Positive, Proportion, ProportionAboveZero, check_fields
from cujax.batch import Examples
from cujax.data.requests import Split
from cujax.losses import cross_entropy, distillation
from cujax.methods.base import Loop, Unlearned
from cujax.methods.mask_logit import MaskedModel
from cujax.methods.retrain import shortened_recipe, train_on_retain_set
from cujax.methods.search_space import LogUniform, SearchSpace
from cujax.methods.shrink_perturb import mixture
from cujax.model import Model, PyTree, Variables
from cujax.step import Metrics, Step, UnlearnState, accuracy, update
from cujax.training.loop import Cost
from cujax.training.supervised import Training


@dataclass(frozen=True)
class Undo:
    """Trains `shrink · original + (1 - shrink) · fresh` on the retain set, to answer like the original and like the labels.

    Minimises `teacher_weight · T² · KL(teacher ‖ student) + (1 - teacher_weight) · CE` at temperature T. The teacher is
    the original; if classes are to be forgotten, their logits are masked. Lee et al. ("Distillation Robustifies
    Unlearning", arXiv:2506.06278) found that a student that starts nearly fresh takes over what an unlearned teacher
    answers, but not what its features still contain. There, the teacher is unlearned by another method, and only its
    answers are used; here, masking takes the place of unlearning, and the labels are used as well. The start is that of
    `ShrinkPerturb`, and the learning rate schedule is compressed as in `RetrainShort`. The teacher's forward pass adds
    about a third to the operations of a step.

    Attributes:
        shrink: Share of the original in the weights with which training starts.
        share: The part of the recipe's epochs for which the student is trained; at least one epoch.
        teacher_weight: Weight of the teacher's answers; the labels have the rest.
        temperature: Temperature of distillation (T).
        training: The recipe to shorten; None for that of the original.
    """

    shrink: Proportion = 0.2
    share: ProportionAboveZero = 0.2
    teacher_weight: Proportion = 0.9
    temperature: Positive = 4.0
    training: Training | None = None

    search_space: ClassVar[SearchSpace] = {
        "shrink": LogUniform(0.05, 0.8),
        "share": LogUniform(0.1, 0.6),
        "teacher_weight": LogUniform(0.3, 1.0),
        "temperature": LogUniform(1.0, 8.0),
    }

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used.

        Raises:
            ValueError: if there is no recipe, or its batch is larger than the retain set.
            FloatingPointError: if training diverges.
        """
        recipe = shortened_recipe(self.training, self.share, "Undo")
        teacher = model if split.task == "samples" else MaskedModel.of(model, split.forgotten_classes)
        terms = _Terms(original, self.teacher_weight, self.temperature)

        def make_step(model: Model, tx: optax.GradientTransformation) -> Step:
            return jax.tree_util.Partial(_Step(model, teacher, tx), terms)

        def make() -> tuple[Variables, Cost]:
            start = mixture(original, self.shrink)
            return train_on_retain_set(recipe, model, original, split, key=key, loop=loop, start=start, make_step=make_step)

        return loop.once(model, original, make, split, forgotten_accuracy=None)


class _Terms(NamedTuple):
    original: Variables
    teacher_weight: float | jax.Array
    temperature: float | jax.Array


@dataclass(frozen=True)
class _Step:
    """The static part of the step; equal values share one compilation."""

    model: Model
    teacher: Model
    tx: optax.GradientTransformation

    def __call__(self, terms: _Terms, state: UnlearnState, examples: Examples) -> tuple[UnlearnState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        teacher, _ = self.teacher.apply(*terms.original, examples.inputs, train=False)

        def objective(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            student, model_state = self.model.apply(params, state.model_state, examples.inputs, train=True, key=key)
            likeness = distillation(student.logits, teacher.logits, examples.mask, temperature=terms.temperature)
            labels = cross_entropy(student.logits, examples.labels, examples.mask)
            loss = terms.teacher_weight * likeness + (1.0 - terms.teacher_weight) * labels
            return loss, (model_state, {"loss": loss, "accuracy": accuracy(student.logits, examples)})

        gradients, (model_state, metrics) = jax.grad(objective, has_aux=True)(state.params)
        return update(self.tx, state, gradients, model_state, metrics, model=self.model)
