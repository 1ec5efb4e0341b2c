"""UNDO against NumPy float64: what the student is pulled towards, and where it starts."""

import dataclasses

import chex
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
    backward,
    combine,
    cross_entropy_gradient,
    float64,
    forward,
    log_softmax,
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


def answers(params, split, temperature):
    """Probabilities of the retain set at a temperature; the forgotten classes have none."""
    logits = forward(float64(params), X[split.retain.indices])[1] / temperature
    logits[:, list(split.forgotten_classes)] = -np.inf
    return np.exp(log_softmax(logits))


def expected(split, *, shrink, teacher_weight, temperature, epochs):
    """Heavy-ball descent with a cosine schedule on the two terms, in float64."""
    rows = split.retain.indices
    teacher = answers(ORIGINAL.params, split, temperature)
    params, trace = start(shrink, split), None
    for step in range(epochs):
        pull = temperature * (answers(params, split, temperature) - teacher) / len(rows)
        likeness = backward(params, X[rows], pull)
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


@pytest.mark.parametrize("split", [SPLIT, CLASS_SPLIT], ids=["samples", "class"])
def test_the_original_itself_already_answers_like_its_teacher(split):
    found = run(Undo(shrink=1.0, teacher_weight=1.0, share=1.0, training=RECIPE), split).params
    chex.assert_trees_all_close(found, ORIGINAL.params, rtol=1e-5, atol=1e-6)


def test_labels_alone_decide_on_a_forgotten_class():
    long = dataclasses.replace(RECIPE, epochs=60)
    found = run(Undo(share=1.0, training=long), CLASS_SPLIT)
    assert (forward(float64(ORIGINAL.params), X)[1].argmax(1) == 0).any()
    assert not (forward(float64(found.params), X)[1].argmax(1) == 0).any()
    unlabelled = run(Undo(shrink=0.2, teacher_weight=1.0, share=1.0, training=long), CLASS_SPLIT).params
    np.testing.assert_array_equal(
        np.asarray(unlabelled["head"]["kernel"])[:, 0], start(0.2, CLASS_SPLIT)["head"]["kernel"][:, 0]
    )


def test_it_asks_for_the_recipe_and_for_numbers_in_range():
    with pytest.raises(ValueError, match="Undo needs the recipe"):
        run(Undo())
    for field, value in {"shrink": 1.5, "share": 0.0, "teacher_weight": -0.1, "temperature": 0.0}.items():
        with pytest.raises(ValueError, match=field):
            Undo(**{field: value})
