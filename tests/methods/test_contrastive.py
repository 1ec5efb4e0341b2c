"""The settings of contrastive unlearning."""

import jax.numpy as jnp
import pytest

from cujax.experiments.identity import describe
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


def test_the_optimiser_may_be_adam_and_the_default_is_what_it_was():
    adam = ContrastiveUnlearning(optimizer_name="adam", learning_rate=0.1)
    assert adam.optimizer_name == "adamw"
    assert adam.optimizer() is ContrastiveUnlearning(optimizer_name="adamw", learning_rate=0.1).optimizer()
    params = {"w": jnp.array([1.0, -2.0])}
    state = adam.optimizer().init(params)
    updates, _ = adam.optimizer().update({"w": jnp.array([3.0, -0.5])}, state, params)
    assert updates["w"].tolist() == pytest.approx([-0.1, 0.1], rel=1e-5)  # the first step of Adam is the sign
    assert ContrastiveUnlearning().optimizer_name == "sgd"
    with pytest.raises(ValueError, match="optimizer_name must be one of"):
        ContrastiveUnlearning(optimizer_name="lion")


def test_a_digest_of_the_default_settings_does_not_name_the_optimiser():
    """It had none in 0.1, and stored runs stay valid."""
    assert "optimizer_name" not in describe(ContrastiveUnlearning(), of_0_1=True)
    assert describe(ContrastiveUnlearning(optimizer_name="adam"), of_0_1=True)["optimizer_name"] == "adamw"
