"""The settings of contrastive unlearning."""

import jax.numpy as jnp
import pytest

from cujax.methods import ContrastiveUnlearning


def test_the_official_settings_are_the_published_ones():
    by_class, by_sample = ContrastiveUnlearning.official(), ContrastiveUnlearning.official("samples")
    assert (by_class.learning_rate, by_class.momentum, by_class.temperature) == (1e-3, 0.9, 0.7)
    assert (by_class.unlearn_weight, by_class.retain_weight, by_class.retain_draws) == (3.0, 1.0, 4)
    assert by_class.denominator == "official"
    assert (by_class.forget_batch_size, by_class.max_passes) == (64, 1)
    assert (by_sample.forget_batch_size, by_sample.max_passes) == (128, 30)
    assert by_class.forgotten_accuracy is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("learning_rate", -1.0),
        ("unlearn_weight", -0.1),
        ("retain_weight", -0.1),
        ("momentum", 1.0),
        ("retain_draws", 0),
        ("forget_batch_size", 0),
        ("retain_batch_size", 0),
        ("max_passes", 0),
        ("denominator", "mine"),
        ("batch_norm", "some"),
    ],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        ContrastiveUnlearning(**{name: value})


def test_the_optimiser_is_one_value_and_holds_the_learning_rate_in_its_state():
    first, second = ContrastiveUnlearning(learning_rate=0.3), ContrastiveUnlearning(learning_rate=0.3, temperature=0.1)
    assert first.optimizer() is second.optimizer()
    state = first.optimizer().init({"w": jnp.zeros(2)})
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.3)
    state.hyperparams["learning_rate"] = jnp.float32(0.0)
    updates, _ = first.optimizer().update({"w": jnp.ones(2)}, state, {"w": jnp.zeros(2)})
    assert not updates["w"].any()
