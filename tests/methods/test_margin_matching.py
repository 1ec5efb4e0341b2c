"""Margin matching against NumPy float64: margins, targets, one step, and a whole run."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASS_SPLIT, IMAGES, KEY, LOOP, MODEL, ORIGINAL, SPLIT, X, Y, advance, float64, forward, log_softmax, part

from cujax.data.batches import paired_batches
from cujax.methods import MarginMatching, RetrainShort
from cujax.methods.margin_matching import contrastive_margins, targets_at_equal_rank
from cujax.training.supervised import Trainer, Training

RECIPE = Training(epochs=5, batch_size=3, learning_rate=0.01)
METHOD = MarginMatching(
    training=RECIPE,
    batch_size=2,
    retain_batch_size=6,
    retain_draws=2,
    max_passes=2,
    temperature=0.5,
    learning_rate=0.1,
    unlearn_weight=0.7,
)


def margins64(embeddings, labels, retained, retain_labels, temperature, mask=None):
    """Of each sample, one by one; NaN where it has no sample of its class or none of another to be compared with."""
    unit, others = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (embeddings, retained))
    mask = np.ones(len(others), bool) if mask is None else mask
    found = []
    for own, label in zip(unit, labels, strict=True):
        s = np.exp(others @ own / temperature)
        sides = s[mask & (retain_labels == label)], s[mask & (retain_labels != label)]
        found.append(np.log(sides[0].mean()) - np.log(sides[1].mean()) if min(map(len, sides)) else np.nan)
    return np.array(found)


def test_margins_are_differences_of_softmax_means_of_cosines():
    rng = np.random.default_rng(0)
    embeddings, retained = rng.normal(size=(9, 4)), rng.normal(size=(20, 4))
    labels, retain_labels, mask = rng.integers(0, 4, 9), rng.integers(0, 3, 20), rng.random(20) < 0.7
    expected = margins64(embeddings, labels, retained, retain_labels, 0.1, mask)
    found, defined = contrastive_margins(embeddings, labels, retained, retain_labels, temperature=0.1, retain_mask=mask)
    np.testing.assert_array_equal(defined, np.isfinite(expected))
    assert not np.asarray(defined).all()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.asarray(found)[defined], expected[defined], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]], ids=["no other class", "no sample of the class"])
def test_gradients_are_finite_where_a_margin_is_not_defined(labels):
    def total(embeddings):
        margins, defined = contrastive_margins(embeddings, np.array(labels), embeddings, np.zeros(2, int), temperature=0.1)
        return jnp.sum(jnp.where(defined, margins, 0))

    assert np.isfinite(jax.grad(total)(jnp.eye(2, 3))).all()


def test_targets_are_quantiles_of_held_out_margins_at_the_rank_among_held_out_samples():
    rng = np.random.default_rng(1)
    log_odds, labels = rng.normal(size=30), rng.integers(0, 3, 30)
    known, margins, held_out = rng.normal(size=40), rng.normal(size=40), rng.integers(0, 2, 40)  # none of class 2
    found = targets_at_equal_rank(log_odds, labels, known, held_out, margins)
    assert np.isnan(found[labels == 2]).all()
    for row in np.flatnonzero(labels < 2):
        others = held_out == labels[row]
        harder = np.sum(known[others] < log_odds[row])
        expected = np.quantile(margins[others], (harder + 0.5) / (others.sum() + 1))
        assert found[row] == pytest.approx(expected, rel=1e-6)


def test_the_target_of_a_sample_does_not_depend_on_what_else_is_forgotten():
    """Trap: the rank within the forget set, which says nothing of one sample, or of a set of hard ones."""
    rng = np.random.default_rng(2)
    log_odds, labels = rng.normal(size=30), rng.integers(0, 3, 30)
    others = rng.normal(size=60), np.arange(60) % 3, rng.normal(size=60)
    found = targets_at_equal_rank(log_odds, labels, *others)
    for chosen in (np.arange(1), np.argsort(log_odds)[:6], rng.permutation(30)):
        np.testing.assert_array_equal(targets_at_equal_rank(log_odds[chosen], labels[chosen], *others), found[chosen])
    hardest = np.argmin(np.where(labels == 0, log_odds, np.inf))
    assert found[hardest] == found[labels == 0].min()


def recorded(method=METHOD, split=SPLIT):
    """What the method has the loop run: its state, its passes, and how it looks at the network before one."""

    class Recorder(type(LOOP)):
        def run(self, model, state, phases, split, **options):
            seen.update(state=state, phases=phases, options=options)

    seen = {}
    method(MODEL, ORIGINAL, split, key=KEY, loop=Recorder(IMAGES))
    return seen


def test_targets_come_from_a_scout_and_from_the_network_before_the_pass():
    look, like = recorded()["options"]["before_pass"]
    targets, cost = look(ORIGINAL)
    assert targets.shape == like.shape == (3,)
    assert cost.flops > 0
    forget, held_out, retain = (SPLIT.forget.indices, SPLIT.validation.indices, SPLIT.retain.indices)
    embeddings = forward(float64(ORIGINAL.params), X)[0]
    expected = margins64(embeddings[held_out], Y[held_out], embeddings[retain], Y[retain], METHOD.temperature)
    # One sample a class on either side: the target is the margin of the held-out sample of the class.
    np.testing.assert_allclose(targets, [expected[Y[held_out] == label][0] for label in Y[forget]], rtol=1e-4, atol=1e-4)


def test_a_step_is_descent_on_the_loss_in_float64():
    seen = recorded()
    wanted = np.array([0.3, -0.2, 0.9], np.float32)
    (phase,) = seen["phases"](0, wanted)
    rows = next(iter(phase.batches))
    batch = phase.prepare(IMAGES, rows, KEY)
    state, metrics = advance(phase.step, seen["state"], batch)
    forget, retain = np.asarray(rows.forget.indices)[rows.forget.mask], np.asarray(rows.retain.indices)
    targets = np.array([wanted[list(SPLIT.forget.indices).index(row)] for row in forget])
    before = float64(ORIGINAL.params)
    anchors = forward(before, X[retain])[0]  # without gradient

    def loss(params):
        margins = margins64(forward(params, X[forget])[0], Y[forget], anchors, Y[retain], METHOD.temperature)
        apart = np.abs(margins - targets)
        huber = np.where(apart <= 1, apart**2 / 2, apart - 0.5)[np.isfinite(margins)]
        log_p = log_softmax(forward(params, X[retain])[1])
        return METHOD.unlearn_weight * huber.sum() / METHOD.batch_size - log_p[np.arange(len(retain)), Y[retain]].mean()

    assert float(metrics["loss"]) == pytest.approx(loss(before), rel=1e-5)
    for layer in ("hidden", "head"):
        for name, array in before[layer].items():
            gradient = np.zeros_like(array)
            for place in np.ndindex(array.shape):
                moved = [jax.tree.map(np.copy, before) for _ in range(2)]
                for params, by in zip(moved, (1e-6, -1e-6), strict=True):
                    params[layer][name][place] += by
                gradient[place] = (loss(moved[0]) - loss(moved[1])) / 2e-6
            expected = array - METHOD.learning_rate * gradient
            np.testing.assert_allclose(state.params[layer][name], expected, rtol=1e-4, atol=1e-5)


def test_a_sample_has_the_same_weight_alone_and_among_others():
    """Trap: the mean over counted rows, by which one sample alone moves the network as far as a whole batch."""

    def share_of_loss(split, position):
        seen = recorded(dataclasses.replace(METHOD, batch_size=3, retain_batch_size=6, retain_draws=1), split)
        wanted = np.full(len(split.forget), np.nan, np.float32)
        wanted[position] = -5.0
        (phase,) = seen["phases"](0, wanted)
        _, metrics = advance(phase.step, seen["state"], phase.prepare(IMAGES, next(iter(phase.batches)), KEY))
        without = seen["phases"](0, np.full(len(split.forget), np.nan, np.float32))[0]
        _, plain = advance(without.step, seen["state"], without.prepare(IMAGES, next(iter(without.batches)), KEY))
        return float(metrics["loss"]) - float(plain["loss"])

    alone = dataclasses.replace(SPLIT, forget=part([1]))
    assert share_of_loss(alone, 0) == pytest.approx(share_of_loss(SPLIT, 1), rel=1e-4)
    assert share_of_loss(alone, 0) > 0.1


def test_a_run_makes_all_passes_and_pays_for_its_scout():
    result = METHOD(MODEL, ORIGINAL, SPLIT, key=KEY, loop=dataclasses.replace(LOOP, retain_tolerance=1.0))
    scout = Trainer(dataclasses.replace(RECIPE, epochs=1), IMAGES).train(MODEL, SPLIT.retain.indices, KEY).cost
    batches = len(
        list(
            paired_batches(
                SPLIT.forget.indices, SPLIT.retain.indices, forget_batch_size=2, retain_batch_size=6, retain_draws=2,
                forget_pass=0, key=KEY,
            )
        )
    )  # fmt: skip
    assert len(result.history.checks) == 3
    assert result.history.cost.steps == scout.steps + 2 * batches
    assert result.history.cost.samples == scout.samples + 2 * batches * (2 + 6)
    assert result.history.cost.flops > scout.flops
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    again = METHOD(MODEL, ORIGINAL, SPLIT, key=KEY, loop=dataclasses.replace(LOOP, retain_tolerance=1.0))
    chex.assert_trees_all_equal(again.params, result.params)


def test_what_it_cannot_do_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="Choose another method for whole classes"):
        METHOD.check(CLASS_SPLIT)
    with pytest.raises(ValueError, match="leave out --no-validation"):
        METHOD.check(dataclasses.replace(SPLIT, validation=part([])))
    with pytest.raises(ValueError, match="there is no validation sample of class 1"):
        METHOD(MODEL, ORIGINAL, dataclasses.replace(SPLIT, validation=part([9, 11])), key=KEY, loop=LOOP)
    with pytest.raises(ValueError, match="needs the recipe"):
        dataclasses.replace(METHOD, training=None)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=LOOP)


@pytest.mark.parametrize(("share", "epochs"), [(0.01, 1), (0.4, 2), (1.0, 5)])
def test_retraining_cut_short_is_the_recipe_with_fewer_epochs(share, epochs):
    loop = dataclasses.replace(LOOP, retain_tolerance=1.0)
    short = RetrainShort(share, RECIPE)(MODEL, ORIGINAL, SPLIT, key=KEY, loop=loop)
    whole = Trainer(dataclasses.replace(RECIPE, epochs=epochs), IMAGES).train(MODEL, SPLIT.retain.indices, KEY)
    chex.assert_trees_all_equal(short.params, whole.variables.params)
    assert short.history.cost.steps == whole.cost.steps
