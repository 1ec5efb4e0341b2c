"""The run of a method: forgetting, the stop rule, the guard, and what is returned."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.audit.accuracy import accuracy
from cujax.data.batches import to_device
from cujax.data.requests import ForgetClass, ForgetRandom, make_split
from cujax.data.sources import Data, load_source
from cujax.inference import predict
from cujax.methods import ContrastiveUnlearning
from cujax.model import from_linen
from cujax.networks.cnn import CNN
from cujax.training import Trainer, Training
from cujax.unlearning import Loop

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
        """Forget, validation of the same classes, validation of what stays; from scratch."""
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
    assert result.history.stop_rule == "forgotten"
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
    assert result.history.stop_rule == "forgotten"
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
    assert "2 passes were made without forgetting" in result.history.stop_reason
    last = result.history.checks[-1]
    forget, same, retain = class_task.accuracies(result.variables)
    assert (last.forget_accuracy, last.retain_accuracy) == pytest.approx((max(forget, same), retain))


def test_losing_what_stays_ends_the_run_at_the_last_good_state(class_task):
    method = dataclasses.replace(METHOD, learning_rate=1.5, unlearn_weight=30.0, forgotten_accuracy=-1.0)
    result = class_task.run(method)
    history = result.history
    assert history.stop_rule == "retain_tolerance"
    started = history.checks[0].retain_accuracy
    assert history.checks[-1].retain_accuracy < started - 0.05
    assert all(check.retain_accuracy >= started - 0.05 for check in history.checks[:-1])
    assert history.step == history.checks[-2].step
    assert class_task.accuracies(result.variables)[2] == pytest.approx(history.checks[-2].retain_accuracy)


def test_a_loss_that_is_not_finite_ends_the_run_at_the_last_good_state(class_task):
    broken = dataclasses.replace(class_task.images, images=class_task.images.images.astype(jnp.float32))
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
