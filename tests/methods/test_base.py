"""The run of a method: forgetting, the stop rule, the guard, and what is returned."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cujax.adapters import from_function, from_linen
from cujax.batch import IndexBatch, Rows
from cujax.data.batches import DeviceImages, gather, to_device
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetRandom, Part, Split, make_split
from cujax.data.sources import load_source
from cujax.methods import ContrastiveUnlearning
from cujax.methods.base import Loop
from cujax.networks.cnn import CNN
from cujax.step import UnlearnState
from cujax.training.loop import Cost, Phase
from cujax.training.predict import accuracy, predict
from cujax.training.supervised import Trainer, Training

MODEL = from_linen(CNN(10, features=(8, 16), hidden_dim=32, embedding_dim=16))
KEY = jax.random.key(9)
METHOD = ContrastiveUnlearning(learning_rate=0.05, unlearn_weight=0.5, max_passes=40)


@dataclasses.dataclass
class Setting:
    images: object
    test_images: object
    split: object
    original: object

    def run(self, method=METHOD, key=KEY, **options):
        return method(MODEL, self.original, self.split, key=key, loop=Loop(self.images, **options))

    def accuracies(self, variables):
        """Forget, validation of the same classes, validation of the retained classes; from scratch."""
        validation = predict(MODEL, variables, self.images, self.split.validation.indices)
        forget = predict(MODEL, variables, self.images, self.split.forget.indices)
        same = np.isin(validation.labels, forget.labels)
        stays = ~np.isin(validation.labels, self.split.absent_classes)
        return accuracy(forget), accuracy(validation.take(same)), accuracy(validation.take(stays))

    def test_accuracies(self, variables):
        found = predict(MODEL, variables, self.test_images, self.split.test.indices)
        of_class = np.isin(found.labels, self.split.forgotten_classes)
        return accuracy(found.take(of_class)), accuracy(found.take(~of_class))


def make_setting(data, request, epochs):
    source = load_source(data)
    split = make_split(source, request)
    images = to_device(source, source.train)
    indices = np.sort(np.concatenate([split.forget.indices, split.retain.indices]))
    original = Trainer(Training(epochs=epochs, learning_rate=5e-3), images).train(MODEL, indices, jax.random.key(0))
    return Setting(images, to_device(source, source.test), split, original.variables)


@pytest.fixture(scope="module")
def class_task():
    return make_setting(Data(), ForgetClass(5), 12)


@pytest.fixture(scope="module")
def sample_task():
    return make_setting(Data(label_noise=0.2), ForgetRandom(fraction=0.1), 40)


def test_a_class_is_forgotten_and_the_rest_kept(class_task):
    before = class_task.test_accuracies(class_task.original)
    untouched = jax.tree.map(np.array, class_task.original)
    result = class_task.run()
    after = class_task.test_accuracies(result.variables)
    assert result.history.stop_rule == "stop_rule"
    assert before[0] > 0.8
    assert after[0] <= 0.06
    assert after[1] >= before[1] - 0.05
    chex.assert_trees_all_equal(class_task.original, untouched)


def test_without_the_contrastive_loss_the_class_stays(class_task):
    method = dataclasses.replace(METHOD, learning_rate=0.01, unlearn_weight=1.0)
    steps = class_task.run(method).history.checks
    without = class_task.run(dataclasses.replace(method, unlearn_weight=0.0, max_passes=len(steps) - 1)).history.checks
    assert steps[-1].forget_accuracy <= 0.01
    assert without[-1].forget_accuracy > 0.8


def test_samples_are_forgotten_down_to_held_out_accuracy(sample_task):
    result = sample_task.run(retain_tolerance=0.3)
    first, last = result.history.checks[0], result.history.checks[-1]
    assert first.forget_accuracy > first.target + 0.1
    assert result.history.stop_rule == "stop_rule"
    forget, same_classes, _ = sample_task.accuracies(result.variables)
    assert (last.forget_accuracy, last.target) == pytest.approx((forget, max(same_classes, first.target)))
    assert forget <= last.target
    assert all(check.forget_accuracy > check.target for check in result.history.checks[:-1])


def test_the_same_key_gives_the_same_bits(class_task):
    method = dataclasses.replace(METHOD, max_passes=2)
    first, again, other = (class_task.run(method, key=jax.random.key(seed)).params for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first["head"]["kernel"], other["head"]["kernel"])


def test_checks_steps_and_costs_are_accounted_for(class_task):
    records, advanced = [], []

    class Recorded:
        def __init__(self, description, total):
            self.total = total

        def __enter__(self):
            return lambda n=1, note="": advanced.append((n, self.total))

        def __exit__(self, *error):
            return None

    method = dataclasses.replace(METHOD, max_passes=3, learning_rate=0.001, retain_draws=2, forget_batch_size=50)
    history = class_task.run(method, log=records.append, progress=Recorded).history
    steps_a_pass = 2 * -(-131 // 50)
    assert [check.step for check in history.checks] == [steps_a_pass * number for number in range(4)]
    assert history.step == history.cost.steps == 3 * steps_a_pass
    assert history.cost.samples == history.cost.steps * (50 + 64)
    assert history.cost.flops > 0
    assert advanced == [(1, 3)] * 3
    assert [record["check"] for record in records if "check" in record] == [check.step for check in history.checks]
    assert [record["step"] for record in records if "step" in record] == list(range(1, history.cost.steps + 1))


def test_without_forgetting_the_last_state_is_returned_and_told(class_task):
    method = dataclasses.replace(METHOD, max_passes=2, learning_rate=0.001)
    result = class_task.run(method)
    assert "all 2 passes were made and the stop rule was not met" in result.history.stop_reason
    last = result.history.checks[-1]
    forget, same, retain = class_task.accuracies(result.variables)
    assert (last.forget_accuracy, last.retain_accuracy) == pytest.approx((max(forget, same), retain))


@dataclasses.dataclass(frozen=True)
class Never:
    """No accuracy counts as forgotten."""

    def holds(self, observation):
        return None


def test_losing_what_stays_ends_the_run_at_the_last_good_state(class_task):
    method = dataclasses.replace(METHOD, learning_rate=1.5, unlearn_weight=30.0)
    result = class_task.run(method, stop_rule=Never())
    history = result.history
    assert history.stop_rule == "retain_tolerance"
    started = history.checks[0].retain_accuracy
    assert history.checks[-1].retain_accuracy < started - 0.05
    assert all(check.retain_accuracy >= started - 0.05 for check in history.checks[:-1])
    assert history.step == history.checks[-2].step
    assert class_task.accuracies(result.variables)[2] == pytest.approx(history.checks[-2].retain_accuracy)


def test_a_loss_that_is_not_finite_ends_the_run_at_the_last_good_state(class_task):
    broken = dataclasses.replace(class_task.images, images=class_task.images.images.whole.astype(jnp.float32))
    row = int(class_task.split.forget.indices[3])
    broken = dataclasses.replace(broken, images=broken.images.at[row].set(jnp.nan))
    result = METHOD(MODEL, class_task.original, class_task.split, key=KEY, loop=Loop(broken))
    assert result.history.stop_rule == "not_finite"
    assert "not finite at step" in result.history.stop_reason
    assert "lower the learning rate" in result.history.stop_reason
    assert result.history.step == 0
    chex.assert_trees_all_equal(result.variables, class_task.original)


def test_chance_is_the_published_threshold(class_task):
    strict, published = class_task.run(), class_task.run(dataclasses.replace(METHOD, forgotten_accuracy=None))
    assert published.history.checks[-1].target == pytest.approx(0.1)
    assert published.history.step <= strict.history.step


def test_the_published_settings_run(class_task):
    result = class_task.run(ContrastiveUnlearning.official())
    assert result.history.cost.steps == 4 * 3
    chex.assert_tree_all_finite(result.params)


def test_a_retain_batch_larger_than_the_set_is_told(class_task):
    with pytest.raises(ValueError, match="retain_batch_size is 5000"):
        class_task.run(dataclasses.replace(METHOD, retain_batch_size=5000))


class Recorder:
    """Stands in for the loop and keeps what a method would have it run."""

    def run(self, model, state, phases, split, *, max_passes, forgotten_accuracy):
        self.phases, self.state, self.max_passes = phases, state, max_passes


def test_every_pass_uses_every_forget_sample_and_retained_samples_alone(class_task):
    recorder = Recorder()
    method = dataclasses.replace(METHOD, forget_batch_size=50, retain_batch_size=100, retain_draws=3)
    method(MODEL, class_task.original, class_task.split, key=KEY, loop=recorder)
    orders, retained = [], []
    for forget_pass in range(3):
        (phase,) = recorder.phases(forget_pass)
        batches = list(phase.batches)
        assert len(batches) == 3 * -(-131 // 50)
        order = np.concatenate([batch.forget.indices[batch.forget.mask] for batch in batches[::3]])
        np.testing.assert_array_equal(np.sort(order), class_task.split.forget.indices)
        orders.append(order)
        retained += [batch.retain.indices for batch in batches]
        for number, batch in enumerate(batches):
            np.testing.assert_array_equal(batch.forget.indices, batches[number - number % 3].forget.indices)
            assert np.isin(batch.forget.indices, class_task.split.forget.indices).all()
            assert batch.retain.mask.all()
    assert not np.array_equal(orders[0], orders[1])
    # 27 retain batches of 100 are more than two rounds of the set, each without a last short batch.
    drawn = np.unique(np.concatenate(retained))
    assert np.isin(drawn, class_task.split.retain.indices).all()
    assert len(drawn) > 0.98 * len(class_task.split.retain)


def test_the_test_set_and_what_was_forgotten_before_are_never_looked_at(class_task):
    first = make_split(load_source(Data()), ForgetClass(3))
    split = make_split(load_source(Data()), ForgetClass(5), first.forget.ids.tolist())
    poisoned = np.array(class_task.images.images.whole, np.float32)
    clean = dataclasses.replace(class_task.images, images=jnp.asarray(poisoned))
    poisoned[split.previously_forgotten.indices] = np.nan
    method = dataclasses.replace(METHOD, max_passes=1, learning_rate=0.001)
    expected = method(MODEL, class_task.original, split, key=KEY, loop=Loop(clean))
    blind = dataclasses.replace(split, test=None, previously_forgotten=None)
    found = method(
        MODEL, class_task.original, blind, key=KEY, loop=Loop(dataclasses.replace(clean, images=jnp.asarray(poisoned)))
    )
    chex.assert_trees_all_equal(found.variables, expected.variables)
    assert found.history.checks == expected.history.checks


# ---------------------------------------------------------------------------------------------------------------------
# The stop rule on a clock: a model whose only parameter is the time, which every step moves on by one, and images that
# hold their label and the span of time in which they are classified right. So every accuracy is known beforehand.
# ---------------------------------------------------------------------------------------------------------------------

CLASSES, STEPS_A_PASS, NEVER = 4, 2, 1e6


def clock_init(key, images):
    return {"time": jnp.float32(0)}, {"calls": jnp.int32(0)}


def clock_apply(params, model_state, images, *, train, key):
    label, born, dies = images[:, 0, 0, 0].astype(jnp.int32), images[:, 0, 0, 1], images[:, 0, 0, 2]
    right = (born <= params["time"]) & (params["time"] < dies)
    return (images[:, 0, 0], jax.nn.one_hot(jnp.where(right, label, (label + 1) % CLASSES), CLASSES)), model_state


CLOCK = from_function(clock_init, clock_apply, num_classes=CLASSES)


def tick(stops_at, state, batch):
    """Time moves on, unless the loss is no number: at that step and all that follow."""
    finite = state.step != stops_at
    params, model_state = {"time": state.params["time"] + 1}, {"calls": state.model_state["calls"] + 1}
    stepped = UnlearnState(state.step + 1, params, model_state, state.opt_state, state.key)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state)
    return state, {"loss": jnp.where(finite, 1.0, jnp.nan), "finite": finite}


def run_clock(
    *,
    forget,
    held_out,
    stays,
    task,
    threshold=None,
    passes=5,
    tolerance=0.25,
    stops_at=-1,
    absent=(),
    log=lambda record: None,
    early=True,
    **options,
):
    """Runs the loop on images given by the time at which each is no longer classified right, or a pair (from, to).

    Class task: class 0 is forgotten, `held_out` are its validation rows, `stays` those of class 1. Sample task: the
    forget set is of class 0, `held_out` are validation rows of class 0, `stays` of class 1.
    """
    spans = [(0, span) for span in forget + held_out] + [(1, span) for span in stays] + [(2, 0) for _ in absent]
    pixels = [[label, *(span if isinstance(span, tuple) else (0, span))] for label, span in spans]
    images = DeviceImages(
        jnp.asarray(pixels, jnp.float32)[:, None, None, :],
        jnp.asarray([label for label, _ in spans], jnp.int32),
        jnp.zeros(3),
        jnp.ones(3),
    )

    def part(start, stop):
        rows = np.arange(start, stop, dtype=np.int32)
        return Part(rows, rows.astype(str))

    n, everything = len(forget), len(spans)
    forgotten = (0,) if task == "class" else ()
    nothing = part(0, 0)
    split = Split(part(0, n), part(n, everything), part(n, everything), nothing, nothing, forgotten, forgotten + absent)
    rows = Rows(np.zeros(1, np.int32), np.ones(1, bool))
    return Loop(images, tolerance, log=log, stop_early=early).run(
        CLOCK,
        UnlearnState.create(*clock_init(None, None), optax.identity(), jax.random.key(0)),
        lambda forget_pass: [Phase(jax.tree_util.Partial(tick, stops_at), gather, [IndexBatch(rows, rows)] * STEPS_A_PASS)],
        split,
        max_passes=passes,
        forgotten_accuracy=threshold,
        **options,
    )


def assert_returned(result, rule, step):
    """The rule, and that parameters and model state are those of one and the same step."""
    assert result.history.stop_rule == rule
    assert result.history.step == step
    assert float(result.params["time"]) == step
    assert int(result.model_state["calls"]) == step
    assert result.model is CLOCK


def seen(result, name):
    return [getattr(check, name) for check in result.history.checks]


def test_the_first_state_that_satisfies_the_rule_is_returned():
    records = []
    result = run_clock(
        forget=[1, 3, 5, 7], held_out=[1, 3, 5, 7], stays=[NEVER] * 4, task="class", threshold=0.5, log=records.append
    )
    assert_returned(result, "stop_rule", 4)
    assert seen(result, "step") == [0, 2, 4]
    assert seen(result, "forget_accuracy") == [1.0, 0.75, 0.5]
    assert seen(result, "target") == [0.5] * 3
    assert seen(result, "retain_accuracy") == [1.0] * 3
    assert "0.500 on the forget set is at most 0.500" in result.history.stop_reason
    checks = [check.as_record() for check in result.history.checks]
    assert [check.holds for check in result.history.checks] == [False, False, True]
    assert [record for record in records if "check" in record] == checks
    assert [next(iter(record)) for record in records] == ["check", "step", "step", "check", "step", "step", "check"]


def test_without_a_threshold_a_class_counts_as_forgotten_at_one_in_the_number_of_classes():
    result = run_clock(forget=[1, 3, 5, 7], held_out=[1, 3, 5, 7], stays=[NEVER], task="class")
    assert_returned(result, "stop_rule", 6)
    assert seen(result, "target") == [1 / CLASSES] * 4
    assert seen(result, "forget_accuracy")[-1] == 0.25


@pytest.mark.parametrize(("forget", "held_out"), [([1, 1], [1, 5]), ([1, 5], [1, 1])])
def test_a_class_is_forgotten_when_neither_training_nor_held_out_samples_are_recognised(forget, held_out):
    result = run_clock(forget=forget, held_out=held_out, stays=[NEVER], task="class", threshold=0.0)
    assert seen(result, "forget_accuracy") == [1.0, 0.5, 0.5, 0.0]
    assert_returned(result, "stop_rule", 6)


def test_a_class_without_held_out_samples_is_judged_by_the_forget_set():
    result = run_clock(forget=[1, 3], held_out=[], stays=[NEVER], task="class", threshold=0.0)
    assert seen(result, "forget_accuracy") == [1.0, 0.5, 0.0]
    assert_returned(result, "stop_rule", 4)


def test_classes_forgotten_earlier_are_not_missed():
    result = run_clock(forget=[1], held_out=[1], stays=[NEVER], task="class", threshold=0.0, absent=(2,))
    assert seen(result, "retain_accuracy") == [1.0, 1.0]


def test_samples_are_forgotten_when_known_no_better_than_held_out_ones():
    result = run_clock(forget=[1, 3, 5, NEVER], held_out=[NEVER, 0, NEVER, 0], stays=[NEVER], task="samples")
    assert seen(result, "forget_accuracy") == [1.0, 0.75, 0.5]
    assert seen(result, "target") == [0.5] * 3
    assert_returned(result, "stop_rule", 4)


def test_a_run_that_harms_held_out_accuracy_does_not_lower_its_own_bar():
    result = run_clock(forget=[1, 5, 5, NEVER], held_out=[0, 1, 3, 3], stays=[NEVER], task="samples")
    assert seen(result, "target") == [0.75] * 2
    assert_returned(result, "stop_rule", 2)


def test_a_run_that_improves_held_out_accuracy_is_done_sooner():
    result = run_clock(forget=[1, 5, 5, NEVER], held_out=[0, 0, NEVER, (2, NEVER)], stays=[NEVER], task="samples", passes=2)
    assert seen(result, "target") == [0.25, 0.5, 0.5]
    assert_returned(result, "max_passes", 4)
    result = run_clock(forget=[1, 3, 5, NEVER], held_out=[0, 0, NEVER, (4, NEVER)], stays=[NEVER], task="samples")
    assert seen(result, "target") == [0.25, 0.25, 0.5]
    assert_returned(result, "stop_rule", 4)


def test_with_no_state_forgotten_the_last_is_returned():
    result = run_clock(forget=[NEVER], held_out=[NEVER], stays=[NEVER], task="class", threshold=0.0, passes=3)
    assert_returned(result, "max_passes", 6)
    assert len(result.history.checks) == 4
    assert "3 passes" in result.history.stop_reason


def test_a_fall_of_exactly_the_tolerance_is_tolerated_and_more_is_not():
    result = run_clock(forget=[NEVER], held_out=[NEVER], stays=[1, 5, 9, 9], task="class", threshold=0.0, tolerance=0.25)
    assert seen(result, "retain_accuracy") == [1.0, 0.75, 0.75, 0.5]
    assert_returned(result, "retain_tolerance", 4)
    assert "fell from 1.000 to 0.500" in result.history.stop_reason


def test_the_tolerance_is_measured_from_where_the_run_began():
    result = run_clock(forget=[NEVER], held_out=[NEVER], stays=[0, 1, 3, 9], task="class", threshold=0.0, tolerance=0.4)
    assert seen(result, "retain_accuracy") == [0.75, 0.5, 0.25]
    assert_returned(result, "retain_tolerance", 2)


def test_harm_in_the_first_pass_gives_the_original_back():
    result = run_clock(forget=[NEVER], held_out=[NEVER], stays=[1, 1], task="class", threshold=0.0)
    assert_returned(result, "retain_tolerance", 0)
    assert seen(result, "step") == [0, 2]


def test_a_state_that_forgets_by_harming_the_rest_is_not_returned():
    result = run_clock(forget=[3], held_out=[3], stays=[3, 3], task="class", threshold=0.0)
    assert_returned(result, "retain_tolerance", 2)


@pytest.mark.parametrize(("stops_at", "kept"), [(0, 0), (1, 0), (2, 2), (5, 4)])
def test_a_loss_that_is_no_number_gives_back_the_state_of_the_last_check(stops_at, kept):
    result = run_clock(forget=[NEVER], held_out=[NEVER], stays=[NEVER], task="class", threshold=0.0, stops_at=stops_at)
    assert_returned(result, "not_finite", kept)
    assert seen(result, "step") == list(range(0, kept + 1, STEPS_A_PASS))
    assert f"not finite at step {stops_at + 1}" in result.history.stop_reason
    assert f"parameters of step {kept} are kept" in result.history.stop_reason
    chex.assert_tree_all_finite(result.variables)


def test_a_run_that_may_not_end_early_makes_all_its_passes_and_returns_the_last_state():
    result = run_clock(forget=[1, 3], held_out=[1], stays=[NEVER], task="class", threshold=0.5, early=False, passes=4)
    assert_returned(result, "stop_rule", 8)
    assert len(result.history.checks) == 5


def test_harm_that_is_repaired_later_does_no_harm_to_a_run_that_may_not_end_early():
    stays = [(0, 1), (4, NEVER)]
    early, late = (
        run_clock(forget=[1], held_out=[1], stays=[NEVER, *stays], task="class", threshold=0.0, early=early, passes=3)
        for early in (True, False)
    )
    assert_returned(early, "retain_tolerance", 0)
    assert_returned(late, "stop_rule", 6)


def test_a_method_that_repairs_what_it_harms_is_judged_where_it_has_repaired_it():
    """Not after each pass; and it still ends at the first state that satisfies the rule within the tolerance."""
    harmed_at_first = [NEVER, (0, 1), (4, NEVER)]
    result = run_clock(forget=[1], held_out=[1], stays=harmed_at_first, task="class", threshold=0.0, repairs=True)
    assert seen(result, "step") == [0, 2, 4]
    assert_returned(result, "stop_rule", 4)
    harmed_for_good = run_clock(forget=[1], held_out=[1], stays=[1, 1], task="class", threshold=0.0, repairs=True, passes=3)
    assert seen(harmed_for_good, "step") == [0, 2, 4, 6]
    assert_returned(harmed_for_good, "retain_tolerance", 0)


def test_a_run_that_may_not_end_early_returns_the_last_state_within_the_tolerance():
    result = run_clock(forget=[NEVER], held_out=[NEVER], stays=[3, 3], task="class", threshold=0.0, early=False, passes=4)
    assert_returned(result, "retain_tolerance", 2)
    assert len(result.history.checks) == 5
    forgotten = run_clock(forget=[1], held_out=[1], stays=[3, 3], task="class", threshold=0.0, early=False, passes=4)
    assert_returned(forgotten, "stop_rule", 2)


def test_rewinding_returns_the_state_whose_forget_accuracy_is_nearest_to_that_of_held_out_samples():
    setting = {"held_out": [NEVER, NEVER, 0, 0], "stays": [NEVER], "task": "samples", "passes": 4, "rewind": True}
    # Forget accuracy 1, 0.75, 0.5, 0.25, 0 after each pass, 0.5 held out.
    result = run_clock(forget=[1, 3, 5, 7], **setting)
    assert_returned(result, "stop_rule", 4)
    assert len(result.history.checks) == 5
    # 0.75 is nearer than 0, and not forgotten.
    result = run_clock(forget=[1, 3, 3, 3], **setting)
    assert_returned(result, "max_passes", 2)
    # Of equals the last.
    result = run_clock(forget=[1, 1, NEVER, NEVER], **setting)
    assert_returned(result, "stop_rule", 8)


def test_rewinding_never_returns_a_state_outside_the_tolerance():
    result = run_clock(
        forget=[1, 3, 5, 7], held_out=[NEVER, NEVER, 0, 0], stays=[4, 4, 4, 4], task="samples", passes=4, rewind=True
    )
    assert_returned(result, "retain_tolerance", 2)


def test_what_was_spent_before_the_first_step_is_on_the_account():
    spent = Cost(100.0, 0, 7, 1e9)
    setting = {"forget": [1], "held_out": [1], "stays": [NEVER], "task": "class", "threshold": 0.0}
    plain, more = run_clock(**setting).history.cost, run_clock(**setting, spent=spent).history.cost
    assert (more.steps, more.samples, more.flops) == (plain.steps, plain.samples + 7, plain.flops + 1e9)
    assert more.seconds > 100
