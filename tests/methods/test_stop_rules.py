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
    ProbeRule,
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


def embedded(rng, labels, centres):
    return Predictions(np.zeros((len(labels), CLASSES)), centres[labels] + 0.1 * rng.normal(size=(len(labels), 2)), labels)


@pytest.mark.parametrize(("third", "holds"), [([0.0, 5.0], False), ([5.0, 0.0], True)])
def test_the_probe_rule_holds_where_the_nearest_mean_no_longer_finds_the_class(third, holds):
    rng, centres = np.random.default_rng(0), np.array([[0.0, 0.0], [5.0, 0.0], third])
    parts = [embedded(rng, np.array(labels), centres) for labels in ([2] * 30, [2] * 21, [0, 1] * 40)]
    before = Observation(Check(0, 0.0, 0.1, 1.0), *parts)
    means = {0: parts[2].embeddings[::2].mean(0), 1: parts[2].embeddings[1::2].mean(0), 2: parts[0].embeddings.mean(0)}
    nearest = [min(means, key=lambda label: np.sum((means[label] - x) ** 2)) for x in parts[1].embeddings]
    read = np.mean(np.array(nearest) == 2)
    rule = ProbeRule(at_most=0.9)
    assert (read <= 0.9) == holds
    assert (rule.holds(before) is not None) == holds
    if holds:
        assert f"in {read:.3f} of validation samples" in rule.holds(before)
    assert ProbeRule().holds(replace(before, retained=parts[0])) is None, "a class that is retained, too"
    assert ProbeRule().holds(replace(before, retained=None)) is None
    apart = replace(before, held_out=parts[1].take(np.arange(0)))
    assert rule_that_can_tell(AccuracyRule(), apart, class_task=True) == NoRule()
    if not holds:
        assert rule_that_can_tell(AccuracyRule(), before, class_task=True) == ProbeRule()


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
        assert "met before the first step" in history.stop_reason
    else:
        seen = "no lower than that of held-out samples" if split is SPLIT else "the nearest class mean finds the class in"
        assert seen in history.stop_reason
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
