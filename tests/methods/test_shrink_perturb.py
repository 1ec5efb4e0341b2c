"""Shrink and perturb: where training starts, and that it is the recipe with fewer epochs."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from tiny import CLASS_SPLIT, KEY, LOOP, MODEL, ORIGINAL, SPLIT

from cujax.methods import RetrainShort, ShrinkPerturb
from cujax.training.supervised import Training

RECIPE = Training(epochs=5, batch_size=3, learning_rate=0.01)
# Adam's steps are as long as its learning rate, so this one leaves float32 parameters as they are.
AT_THE_START = dataclasses.replace(RECIPE, learning_rate=1e-30)
ANY_RETAIN_ACCURACY = dataclasses.replace(LOOP, retain_tolerance=1.0)


def run(method, split=SPLIT):
    return method(MODEL, ORIGINAL, split, key=KEY, loop=ANY_RETAIN_ACCURACY)


@pytest.mark.parametrize("shrink", [0.2, 0.7, 1.0])
def test_training_starts_from_a_mixture_of_the_original_and_a_fresh_network(shrink):
    fresh = run(ShrinkPerturb(shrink=0.0, training=AT_THE_START)).params
    found = run(ShrinkPerturb(shrink=shrink, training=AT_THE_START)).params
    assert not np.allclose(jax.tree.leaves(fresh)[-1], jax.tree.leaves(ORIGINAL.params)[-1])

    def mixed(old, new):
        return (shrink * np.asarray(old, np.float64) + (1 - shrink) * np.asarray(new, np.float64)).astype(np.float32)

    chex.assert_trees_all_close(found, jax.tree.map(mixed, ORIGINAL.params, fresh), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("split", [SPLIT, CLASS_SPLIT], ids=["samples", "class"])
@pytest.mark.parametrize("share", [0.01, 0.4])
def test_without_the_original_it_is_retraining_cut_short(share, split):
    found = run(ShrinkPerturb(shrink=0.0, share=share, training=RECIPE), split)
    short = run(RetrainShort(share, RECIPE), split)
    chex.assert_trees_all_equal(found.params, short.params)
    assert (found.history.cost.steps, found.history.cost.samples) == (short.history.cost.steps, short.history.cost.samples)


def test_the_original_changes_where_training_ends():
    ends = [jax.tree.leaves(run(ShrinkPerturb(shrink=shrink, training=RECIPE)).params)[0] for shrink in (0.0, 0.2, 0.2)]
    assert not np.array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[1], ends[2])


def test_it_asks_for_the_recipe_and_for_shares():
    with pytest.raises(ValueError, match="ShrinkPerturb needs the recipe"):
        run(ShrinkPerturb())
    with pytest.raises(ValueError, match="shrink"):
        ShrinkPerturb(shrink=1.5)
    with pytest.raises(ValueError, match="share"):
        ShrinkPerturb(share=0.0)
