"""UNDO against NumPy float64: what the student is pulled towards, and where it starts."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from tiny import (
    CLASS_SPLIT,
    KEY,
    LOOP,
    MODEL,
    ORIGINAL,
    SPLIT,
    X,
    Y,
    assert_close,
    combine,
    cross_entropy_gradient,
    distillation_gradient,
    float64,
    forward,
)

from cujax.methods import ShrinkPerturb, Undo
from cujax.training.supervised import Training

# One batch has all six retained rows, so their order does not matter.
RECIPE = Training(epochs=4, batch_size=6, optimizer="sgd", learning_rate=0.5)
ANY_RETAIN_ACCURACY = dataclasses.replace(LOOP, retain_tolerance=1.0)


def run(method, split=SPLIT):
    return method(MODEL, ORIGINAL, split, key=KEY, loop=ANY_RETAIN_ACCURACY)


def start(shrink, split=SPLIT):
    """The arrays with which training starts: such small steps leave float32 parameters as they are."""
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-30)
    return float64(run(ShrinkPerturb(shrink=shrink, training=recipe), split).params)


def expected(split, *, shrink, teacher_weight, temperature, epochs):
    """Heavy-ball descent with a cosine schedule on the two terms, in float64."""
    rows = split.retain.indices
    teacher = forward(float64(ORIGINAL.params), X[rows])[1]
    teacher[:, list(split.forgotten_classes)] = -np.inf
    params, trace = start(shrink, split), None
    for step in range(epochs):
        likeness = distillation_gradient(params, X[rows], teacher, temperature)
        gradient = combine(
            (teacher_weight, likeness), (1 - teacher_weight, cross_entropy_gradient(params, X[rows], Y[rows]))
        )
        trace = gradient if trace is None else combine((0.9, trace), (1, gradient))
        rate = RECIPE.learning_rate * 0.5 * (1 + np.cos(np.pi * step / epochs))
        params = combine((1, params), (-rate, trace))
    return params


@pytest.mark.parametrize("split", [SPLIT, CLASS_SPLIT], ids=["samples", "class"])
@pytest.mark.parametrize(
    ("shrink", "teacher_weight", "temperature", "share", "epochs"),
    [(0.2, 0.9, 4.0, 1.0, 4), (0.0, 1.0, 1.0, 0.5, 2), (0.7, 0.3, 2.0, 0.1, 1)],
)
def test_every_step_is_that_of_the_formula(split, shrink, teacher_weight, temperature, share, epochs):
    settings = {"shrink": shrink, "teacher_weight": teacher_weight, "temperature": temperature}
    found = run(Undo(share=share, training=RECIPE, **settings), split)
    assert_close(found.params, expected(split, epochs=epochs, **settings))
    assert found.history.cost.steps == epochs


@pytest.mark.parametrize("split", [SPLIT, CLASS_SPLIT], ids=["samples", "class"])
def test_without_the_teacher_it_is_shrink_and_perturb(split):
    found = run(Undo(teacher_weight=0.0, share=0.5, training=RECIPE), split)
    chex.assert_trees_all_close(
        found.params, run(ShrinkPerturb(share=0.5, training=RECIPE), split).params, rtol=1e-5, atol=1e-6
    )


def test_the_original_itself_already_answers_like_the_teacher_of_samples():
    found = run(Undo(shrink=1.0, teacher_weight=1.0, share=1.0, training=RECIPE)).params
    chex.assert_trees_all_close(found, ORIGINAL.params, rtol=1e-5, atol=1e-6)
    changed = run(Undo(shrink=1.0, teacher_weight=1.0, share=1.0, training=RECIPE), CLASS_SPLIT).params
    assert not np.allclose(jax.tree.leaves(changed)[-1], jax.tree.leaves(ORIGINAL.params)[-1], atol=1e-2)


def test_the_student_does_not_answer_with_a_class_that_the_teacher_masks():
    found = run(Undo(share=1.0, training=dataclasses.replace(RECIPE, epochs=60)), CLASS_SPLIT)
    answers = forward(float64(found.params), X)[1].argmax(1)
    assert (forward(float64(ORIGINAL.params), X)[1].argmax(1) == 0).any()
    assert not (answers == 0).any()


def test_it_asks_for_the_recipe_and_for_numbers_in_range():
    with pytest.raises(ValueError, match="Undo needs the recipe"):
        run(Undo())
    for field, value in {"shrink": 1.5, "share": 0.0, "teacher_weight": -0.1, "temperature": 0.0}.items():
        with pytest.raises(ValueError, match=field):
            Undo(**{field: value})
