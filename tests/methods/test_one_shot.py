"""Methods that make no passes: dampening, masking, retraining."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    CLASS_SPLIT,
    IMAGES,
    KEY,
    LOOP,
    MODEL,
    MODES,
    ORIGINAL,
    SPLIT,
    X,
    Y,
    assert_close,
    combine,
    cross_entropy_gradient,
    float64,
    leaves,
)

from cujax.data.batches import batches_of_all
from cujax.methods import MaskLogit, Retrain, SelectiveSynapticDampening
from cujax.training.supervised import Trainer, Training

ANYTHING = dataclasses.replace(LOOP, retain_tolerance=1.0)
START = float64(ORIGINAL.params)
EVERYTHING = np.sort(np.concatenate([SPLIT.forget.indices, SPLIT.retain.indices]))


def importance(batches):
    """The mean over batches of the square of their mean gradient."""
    squares = [jax.tree.map(np.square, cross_entropy_gradient(START, X[rows], Y[rows])) for rows in batches]
    return combine(*((1 / len(squares), square) for square in squares))


def dampened(of_forget, of_all, alpha, dampening):
    def shrink(weight, forget, everything):
        factor = np.minimum(dampening * everything / np.maximum(forget, 1e-300), 1.0)
        return np.where(forget > alpha * everything, weight * factor, weight)

    return jax.tree.map(shrink, START, of_forget, of_all)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_dampening_by_per_sample_gradients_does_not_depend_on_the_batch_size(batch_size):
    method = SelectiveSynapticDampening(alpha=1.0, dampening=0.6, per_sample=True, batch_size=batch_size)
    result = method(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)
    expected = dampened(
        importance([[row] for row in SPLIT.forget.indices]), importance([[row] for row in EVERYTHING]), 1, 0.6
    )
    assert_close(result.params, expected)
    changed = np.concatenate([(new != old).ravel() for new, old in zip(*map(leaves, (expected, START)), strict=True)])
    assert 0.1 < changed.mean() < 0.9


@pytest.mark.parametrize("batch_size", [2, 4])
def test_dampening_by_batches_as_the_published_code_depends_on_it(batch_size):
    method = SelectiveSynapticDampening(alpha=1.0, dampening=0.6, per_sample=False, batch_size=batch_size)
    result = method(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)

    def split(rows):
        return [batch.indices[batch.mask] for batch in batches_of_all(rows, min(batch_size, len(rows)))]

    assert_close(result.params, dampened(importance(split(SPLIT.forget.indices)), importance(split(EVERYTHING)), 1, 0.6))
    exact = SelectiveSynapticDampening(alpha=1.0, dampening=0.6)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)
    assert not np.allclose(result.params["head"]["kernel"], exact.params["head"]["kernel"], rtol=1e-3)


def test_dampening_never_enlarges_and_leaves_unselected_weights_to_the_bit():
    result = SelectiveSynapticDampening(alpha=0.5, dampening=1.0)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)
    for new, old in zip(leaves(result.params), leaves(ORIGINAL.params), strict=True):
        assert (np.abs(new) <= np.abs(old)).all()
    none = SelectiveSynapticDampening(alpha=1e6)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING)
    chex.assert_trees_all_equal(none.params, ORIGINAL.params)


def test_dampening_is_accounted_for_and_computed_in_eval_mode():
    MODES.clear()
    jax.clear_caches()
    method = SelectiveSynapticDampening(alpha=1.0, batch_size=4)
    history = method(MODEL, ORIGINAL, SPLIT, key=KEY, loop=ANYTHING).history
    assert True not in MODES
    assert history.cost.samples == 3 + 12
    assert history.cost.flops > 0
    assert history.cost.seconds > 0
    assert history.cost.steps == history.step == 1
    assert [check.step for check in history.checks] == [0, 1]


def test_a_result_outside_the_tolerance_is_not_returned():
    trained = (
        Trainer(Training(epochs=60, batch_size=4, learning_rate=0.05), IMAGES).train(MODEL, np.arange(12), KEY).variables
    )
    method = SelectiveSynapticDampening(alpha=1e-3, dampening=0.0)
    strict = dataclasses.replace(LOOP, retain_tolerance=0.01)
    result = method(MODEL, trained, SPLIT, key=KEY, loop=strict)
    assert result.history.stop_rule == "retain_tolerance"
    assert result.history.step == 0
    chex.assert_trees_all_equal(result.params, trained.params)
    assert len(result.history.checks) == 2


def test_an_importance_that_is_not_finite_gives_the_original_back():
    broken = dataclasses.replace(LOOP, images=dataclasses.replace(IMAGES, images=IMAGES.images.at[0].set(jnp.nan)))
    result = SelectiveSynapticDampening()(MODEL, ORIGINAL, SPLIT, key=KEY, loop=broken)
    assert result.history.stop_rule == "not_finite"
    chex.assert_trees_all_equal(result.params, ORIGINAL.params)


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.0), ("dampening", -1.0), ("batch_size", 0)])
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        SelectiveSynapticDampening(**{name: value})


def test_masked_classes_are_never_the_answer_and_nothing_else_changes():
    result = MaskLogit()(MODEL, ORIGINAL, CLASS_SPLIT, key=KEY, loop=LOOP)
    chex.assert_trees_all_equal(result.variables, ORIGINAL)
    before, _ = MODEL.apply(*ORIGINAL, IMAGES.images, train=False)
    after, _ = result.model.apply(*result.variables, IMAGES.images, train=False)
    assert np.isneginf(after.logits[:, 0]).all()
    np.testing.assert_array_equal(after.logits[:, 1:], before.logits[:, 1:])
    np.testing.assert_array_equal(after.embedding, before.embedding)
    assert result.history.stop_rule == "stop_rule"
    assert result.history.checks[-1].forget_accuracy == 0
    assert (result.history.cost.steps, result.history.cost.samples) == (0, 0)
    assert (result.model.num_classes, result.model.layers) == (3, MODEL.layers)
    again = MaskLogit()(MODEL, ORIGINAL, CLASS_SPLIT, key=KEY, loop=LOOP)
    assert again.model == result.model


def test_masking_is_for_whole_classes():
    with pytest.raises(ValueError, match="mask_logit hides whole classes"):
        MaskLogit()(MODEL, ORIGINAL, SPLIT, key=KEY, loop=LOOP)


def test_retraining_is_training_on_what_stays_alone_from_a_fresh_start():
    """Trap: a retrained model that starts from trained weights."""
    recipe = Training(epochs=3, batch_size=4, learning_rate=0.02)
    result = Retrain(recipe)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=LOOP)
    expected = Trainer(recipe, IMAGES).train(MODEL, SPLIT.retain.indices, KEY)
    chex.assert_trees_all_equal(result.variables, expected.variables)
    elsewhere = jax.tree.map(lambda leaf: leaf + 5, ORIGINAL)
    chex.assert_trees_all_equal(Retrain(recipe)(MODEL, elsewhere, SPLIT, key=KEY, loop=LOOP).params, result.params)
    still = Retrain(Training(epochs=1, batch_size=6, learning_rate=1e-30))(MODEL, ORIGINAL, SPLIT, key=KEY, loop=LOOP)
    old, new = (np.asarray(tree["hidden"]["kernel"]).ravel() for tree in (ORIGINAL.params, still.params))
    assert np.abs(old - new).max() > 0.3
    assert result.history.stop_rule == "stop_rule"
    assert result.history.cost.steps == result.history.step == 3 * 2
    assert result.history.cost.samples == 3 * 2 * 4


def test_a_retrained_model_is_returned_whatever_its_accuracy():
    recipe, strict = Training(epochs=1, batch_size=6, learning_rate=1e-30), dataclasses.replace(LOOP, retain_tolerance=1e-9)
    result = Retrain(recipe)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=strict)
    assert result.history.stop_rule == "stop_rule"
    assert np.abs(np.asarray(result.params["head"]["kernel"] - ORIGINAL.params["head"]["kernel"])).max() > 0.1


def test_retraining_without_a_recipe_is_refused():
    with pytest.raises(ValueError, match=r"Retrain needs the recipe.*Retrain\(Training"):
        Retrain()(MODEL, ORIGINAL, SPLIT, key=KEY, loop=LOOP)
