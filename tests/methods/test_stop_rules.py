"""Stop rules: what they decide by, and that one which holds from the start is not taken for success."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.special import log_softmax
from tiny import CLASS_SPLIT, IMAGES, KEY, MODEL, ORIGINAL, SPLIT

from cujax.methods import FineTune, GradientAscent
from cujax.methods.base import Loop
from cujax.methods.stop_rules import (
    STOP_RULES,
    AccuracyRule,
    Check,
    LossRule,
    NoRule,
    Observation,
    rule_that_can_tell,
)
from cujax.training.predict import Predictions

CLASSES = 3


def predictions(n, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return Predictions(scale * rng.normal(size=(n, CLASSES)), np.zeros((n, 1)), rng.integers(0, CLASSES, n))


def observation(forget, held_out, accuracy=0.5, target=0.5):
    return Observation(Check(0, accuracy, target, 1.0), forget, held_out)


def area(forget, held_out):
    """The share of pairs in which the forget sample has the lower loss, pair by pair."""
    losses = [-log_softmax(part.logits, axis=1)[np.arange(len(part.labels)), part.labels] for part in (forget, held_out)]
    pairs = np.sign(losses[1][None, :] - losses[0][:, None])
    return np.mean((pairs + 1) / 2)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9), (7, 4), (40, 60)])
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_rule_holds_where_an_attacker_does_no_better_than_chance(sizes, seed):
    forget, held_out = predictions(sizes[0], seed, scale=1 + seed), predictions(sizes[1], seed + 10)
    expected = area(forget, held_out)
    found = LossRule().holds(observation(forget, held_out))
    assert (found is None) == (expected > 0.5)
    if found:
        assert f"AUC {expected:.3f}" in found


def test_ties_count_half():
    same = predictions(6, 0)
    assert "AUC 0.500" in LossRule().holds(observation(same, same))


def test_without_a_held_out_sample_the_loss_rule_does_not_hold():
    assert LossRule().holds(observation(predictions(4, 0), predictions(0, 0))) is None


@pytest.mark.parametrize(("accuracy", "holds"), [(0.4, True), (0.5, True), (0.51, False)])
def test_the_accuracy_rule_holds_at_its_target(accuracy, holds):
    found = AccuracyRule().holds(observation(predictions(4, 0), predictions(4, 1), accuracy))
    assert (found is not None) == holds


MEMORISED = Predictions(np.eye(CLASSES)[[0, 1, 2]] * 9, np.zeros((3, 1)), np.array([0, 1, 2]))
UNSEEN = Predictions(np.eye(CLASSES)[[0, 1, 2]], np.zeros((3, 1)), np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("forget", "held_out", "accuracy", "class_task", "expected"),
    [
        (MEMORISED, UNSEEN, 1.0, False, AccuracyRule()),  # it does not hold yet
        (MEMORISED, UNSEEN, 0.5, False, LossRule()),  # the loss can still move
        (UNSEEN, MEMORISED, 0.5, False, NoRule()),  # the loss rule holds, too
        (MEMORISED, predictions(0, 0), 0.5, False, NoRule()),  # nothing to compare with
        (MEMORISED, UNSEEN, 0.5, True, NoRule()),  # a class
    ],
)
def test_a_rule_that_holds_before_the_first_step_gives_way_to_one_that_can_tell(
    forget, held_out, accuracy, class_task, expected
):
    before = observation(forget, held_out, accuracy)
    assert rule_that_can_tell(AccuracyRule(), before, class_task=class_task) == expected


@dataclass(frozen=True)
class Always:
    def holds(self, observation):
        return "it is Monday"


@pytest.mark.parametrize("split", [SPLIT, CLASS_SPLIT], ids=["samples", "class"])
def test_a_run_whose_rule_holds_from_the_start_says_so_and_goes_on(split):
    loop = Loop(IMAGES, retain_tolerance=1.0, stop_rule=Always())
    history = FineTune(max_passes=3, batch_size=4)(MODEL, ORIGINAL, split, key=KEY, loop=loop).history
    assert history.checks[0].reason == "it is Monday"
    if history.stop_rule == "max_passes":
        assert len(history.checks) == 4
        assert "held before the first step" in history.stop_reason
    else:
        assert split is SPLIT
        assert "no lower than held-out samples" in history.stop_reason
        assert "before the first step" in history.stop_reason
    assert history.cost.steps > 0


@dataclass(frozen=True)
class AfterTwo:
    def holds(self, observation):
        return "enough" if observation.check.step >= 2 else None


def test_a_run_that_holds_later_ends_there():
    method, loop = GradientAscent(max_passes=9, batch_size=4), Loop(IMAGES, retain_tolerance=1.0, stop_rule=AfterTwo())
    history = method(MODEL, ORIGINAL, SPLIT, key=KEY, loop=loop).history
    assert (history.stop_rule, history.stop_reason, history.step) == ("stop_rule", "enough", 2)
    everything = replace(loop, stop_early=False)
    assert len(method(MODEL, ORIGINAL, SPLIT, key=KEY, loop=everything).history.checks) == 10


def test_rules_are_found_by_name():
    assert [STOP_RULES.find(name)() for name in ("accuracy", "loss", "none")] == [AccuracyRule(), LossRule(), NoRule()]
