"""The unlearning step: its arithmetic, what it donates, what it compiles, and what it leaves alone."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.methods import ContrastiveUnlearning
from cujax.model import from_function, from_linen
from cujax.step import Batch, Examples, UnlearnState, make_unlearn_step, unlearn_step

CONFIG = ContrastiveUnlearning(learning_rate=0.1, momentum=0.9, unlearn_weight=0.5, retain_weight=2.0, temperature=0.3)


def init(key, images):
    encoder_key, head_key = jax.random.split(key)
    return {"encoder": jax.random.normal(encoder_key, (4, 3)), "head": jax.random.normal(head_key, (3, 3))}, {}


def apply(params, model_state, images, *, train, key):
    embedding = images.reshape(images.shape[0], -1) @ params["encoder"]
    return (embedding, embedding @ params["head"]), model_state


class WithBatchNorm(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(images.reshape(images.shape[0], -1))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(5)(x)
        return x, nn.Dense(3)(x)


MODEL = from_function(init, apply)


def make_batch(seed=0, n_forget=5, n_retain=7):
    rng = np.random.default_rng(seed)

    def examples(n):
        images = jnp.asarray(rng.normal(size=(n, 2, 2, 1)), jnp.float32)
        return Examples(images, jnp.asarray(np.arange(n) % 3, jnp.int32), jnp.ones(n, bool))

    return Batch(examples(n_forget), examples(n_retain))


def start(model=MODEL, config=CONFIG, seed=0):
    variables = model.init(jax.random.key(seed), make_batch().forget.images)
    return UnlearnState.create(*variables, config.optimizer(), jax.random.key(1))


def in_numpy(state, batches, config):
    """The same updates in float64: gradients of the linear network by hand, SGD with momentum."""
    weights = {name: np.asarray(value, np.float64) for name, value in state.params.items()}
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    for batch in batches:
        x_f, x_r = (
            np.asarray(part.images, np.float64).reshape(len(part.images), -1) for part in (batch.forget, batch.retain)
        )
        y_f, y_r = np.asarray(batch.forget.labels), np.asarray(batch.retain.labels)
        z_f, z_r = x_f @ weights["encoder"], x_r @ weights["encoder"]
        norms = [np.linalg.norm(z, axis=1, keepdims=True) for z in (z_f, z_r)]
        u_f, u_r = z_f / norms[0], z_r / norms[1]
        s = u_f @ u_r.T / config.temperature
        same = y_f[:, None] == y_r[None]
        exponentials = np.exp(s) * same
        slope = exponentials / exponentials.sum(1, keepdims=True) - ~same / (~same).sum(1, keepdims=True)
        slope *= config.unlearn_weight / len(s) / config.temperature
        g_uf, g_ur = slope @ u_r, slope.T @ u_f
        g_zf = (g_uf - u_f * (u_f * g_uf).sum(1, keepdims=True)) / norms[0]
        g_zr = (g_ur - u_r * (u_r * g_ur).sum(1, keepdims=True)) / norms[1]
        logits = z_r @ weights["head"]
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        residual = config.retain_weight * (probabilities - np.eye(3)[y_r]) / len(y_r)
        gradients = {
            "head": z_r.T @ residual,
            "encoder": x_f.T @ g_zf + x_r.T @ (g_zr + residual @ weights["head"].T),
        }
        for name in weights:
            velocity[name] = config.momentum * velocity[name] + gradients[name]
            weights[name] = weights[name] - config.learning_rate * velocity[name]
    return weights


def test_updates_agree_with_float64():
    batches = [make_batch(seed) for seed in range(3)]
    expected = in_numpy(start(), batches, CONFIG)
    state = start()
    for batch in batches:
        state, metrics = unlearn_step(state, batch, model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
        assert metrics["finite"]
    assert int(state.step) == 3
    for name, weights in expected.items():
        np.testing.assert_allclose(state.params[name], weights, rtol=2e-5, atol=1e-5)


def test_jitted_and_pure_step_agree():
    batch, tx = make_batch(), CONFIG.optimizer()
    pure = make_unlearn_step(MODEL, tx, CONFIG)(start(), batch)
    jitted = unlearn_step(start(), batch, model=MODEL, tx=tx, config=CONFIG)
    chex.assert_trees_all_close(pure[0].params, jitted[0].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(pure[1], jitted[1], rtol=1e-5, atol=1e-6)


def test_creating_copies_and_the_step_donates():
    variables = MODEL.init(jax.random.key(0), make_batch().forget.images)
    key = jax.random.key(1)
    state = UnlearnState.create(*variables, CONFIG.optimizer(), key)
    before = jax.tree.map(np.array, variables.params)
    unlearn_step(state, make_batch(), model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
    chex.assert_trees_all_equal(variables.params, before)
    assert jax.random.uniform(key).shape == ()
    assert state.params["encoder"].is_deleted()


def test_one_compilation_for_a_whole_run_and_three_settings():
    traces = []

    def counted(params, model_state, images, *, train, key):
        traces.append(1)
        return apply(params, model_state, images, train=train, key=key)

    model = from_function(init, counted)
    state = start(model)
    traces.clear()
    for weight, temperature in ((0.1, 0.7), (1.0, 0.2), (3.0, 0.05)):
        config = dataclasses.replace(CONFIG, unlearn_weight=weight, retain_weight=weight / 2, temperature=temperature)
        for seed in range(4):
            state, _ = unlearn_step(state, make_batch(seed), model=model, tx=config.optimizer(), config=config)
    assert len(traces) == 1


def test_the_settings_matter_though_they_do_not_compile():
    def after(**changes):
        config = dataclasses.replace(CONFIG, **changes)
        return unlearn_step(start(), make_batch(), model=MODEL, tx=CONFIG.optimizer(), config=config)[0].params["encoder"]

    results = [
        after(),
        after(unlearn_weight=1.0),
        after(retain_weight=0.0),
        after(temperature=1.0),
        after(denominator="official"),
    ]
    for first in range(5):
        for second in range(first):
            assert not np.allclose(results[first], results[second])


@pytest.mark.parametrize("part", ["forget", "retain"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_the_state_bit_for_bit(part, poison):
    batch, tx = make_batch(), CONFIG.optimizer()
    examples = getattr(batch, part)
    broken = dataclasses.replace(examples, images=examples.images.at[0, 0, 0, 0].set(poison))
    state, _ = unlearn_step(start(), batch, model=MODEL, tx=tx, config=CONFIG)
    kept = jax.tree.map(jnp.copy, state)
    state, metrics = unlearn_step(state, dataclasses.replace(batch, **{part: broken}), model=MODEL, tx=tx, config=CONFIG)
    assert not metrics["finite"]
    chex.assert_trees_all_equal(
        dataclasses.replace(state, key=jax.random.key_data(state.key)),
        dataclasses.replace(kept, key=jax.random.key_data(kept.key)),
    )
    state, metrics = unlearn_step(state, batch, model=MODEL, tx=tx, config=CONFIG)
    assert metrics["finite"]
    assert int(state.step) == 2


def test_masked_rows_change_nothing():
    batch, tx = make_batch(), CONFIG.optimizer()

    def step(filler):
        def masked(examples):
            mask = jnp.arange(len(examples.labels)) < 4
            return Examples(examples.images.at[4:].set(filler), examples.labels, mask)

        return unlearn_step(
            start(),
            jax.tree.map(masked, batch, is_leaf=lambda x: isinstance(x, Examples)),
            model=MODEL,
            tx=tx,
            config=CONFIG,
        )

    one, other = step(0.0), step(50.0)
    chex.assert_trees_all_equal(one[0].params, other[0].params)
    chex.assert_trees_all_equal(one[1], other[1])


def test_no_mask_means_that_all_rows_count():
    batch, tx = make_batch(), CONFIG.optimizer()
    unmasked = Batch(Examples(batch.forget.images, batch.forget.labels), Examples(batch.retain.images, batch.retain.labels))
    results = [unlearn_step(start(), each, model=MODEL, tx=tx, config=CONFIG) for each in (batch, unmasked)]
    chex.assert_trees_all_equal(results[0][0].params, results[1][0].params)


@pytest.mark.parametrize("policy", ["joint", "retain_only", "frozen"])
def test_batch_norm_policies_move_the_documented_statistics(policy):
    model, batch = from_linen(WithBatchNorm()), make_batch()
    config = dataclasses.replace(CONFIG, batch_norm=policy)
    state = start(model, config)
    old = jax.tree.map(np.array, state.model_state["batch_stats"]["norm"])
    params = jax.tree.map(np.array, state.params)
    new, metrics = unlearn_step(state, batch, model=model, tx=config.optimizer(), config=config)
    forget, retain = (np.asarray(part.images).reshape(len(part.images), -1) for part in (batch.forget, batch.retain))
    rows = {"joint": np.concatenate([forget, retain]), "retain_only": retain, "frozen": None}[policy]
    statistics = new.model_state["batch_stats"]["norm"]
    if rows is None:
        chex.assert_trees_all_equal(statistics, old)
        retain_mean, retain_variance = old["mean"], old["var"]
    else:
        np.testing.assert_allclose(statistics["mean"], 0.5 * rows.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(statistics["var"], 0.5 + 0.5 * rows.var(0), rtol=1e-4, atol=1e-6)
        retain_mean, retain_variance = rows.mean(0), rows.var(0)
    hidden = (retain - retain_mean) / np.sqrt(retain_variance + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    for layer in ("Dense_0", "Dense_1"):
        hidden = hidden @ params[layer]["kernel"] + params[layer]["bias"]
    log_p = hidden - np.log(np.exp(hidden).sum(1, keepdims=True))
    expected = -log_p[np.arange(7), np.asarray(batch.retain.labels)].mean()
    assert float(metrics["retain_loss"]) == pytest.approx(expected, rel=1e-4)


def test_dropout_follows_the_key_and_the_step():
    model, batch, tx = from_linen(WithBatchNorm(dropout=0.5)), make_batch(), CONFIG.optimizer()

    def losses(seed):
        state = start(model)
        state = dataclasses.replace(state, key=jax.random.key(seed), params=jax.tree.map(jnp.copy, state.params))
        found = []
        for _ in range(2):
            state, metrics = unlearn_step(
                state, batch, model=model, tx=tx, config=dataclasses.replace(CONFIG, batch_norm="joint")
            )
            found.append(float(metrics["loss"]))
        return found

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)
    still = dataclasses.replace(CONFIG, learning_rate=1e-12)
    state = start(model, still)
    first = unlearn_step(state, batch, model=model, tx=still.optimizer(), config=still)
    second = unlearn_step(first[0], batch, model=model, tx=still.optimizer(), config=still)
    assert float(first[1]["loss"]) != float(second[1]["loss"])


def test_types_and_structure_stay():
    model = from_linen(WithBatchNorm())
    state = start(model)
    types = jax.tree.map(jax.typeof, state)
    state, metrics = unlearn_step(state, make_batch(), model=model, tx=CONFIG.optimizer(), config=CONFIG)
    assert jax.tree.map(jax.typeof, state) == types
    assert all(value.shape == () for value in metrics.values())
    assert {value.dtype for name, value in metrics.items() if name != "finite"} == {jnp.dtype("float32")}


def test_batch_accuracies_count_unmasked_rows():
    batch = make_batch()
    logits = apply(start().params, {}, batch.retain.images, train=True, key=None)[0][1]
    mask = jnp.arange(7) < 5
    batch = dataclasses.replace(batch, retain=dataclasses.replace(batch.retain, mask=mask))
    _, metrics = unlearn_step(start(), batch, model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
    correct = np.asarray(logits).argmax(1) == np.asarray(batch.retain.labels)
    assert float(metrics["retain_accuracy"]) == pytest.approx(correct[:5].mean())


def test_an_untyped_key_is_refused():
    variables = MODEL.init(jax.random.key(0), make_batch().forget.images)
    with pytest.raises(ValueError, match=r"typed key such as jax.random.key\(0\)"):
        UnlearnState.create(*variables, CONFIG.optimizer(), jax.random.PRNGKey(0))


def test_the_step_obeys_strict_promotion_and_composes():
    step = functools.partial(make_unlearn_step(MODEL, CONFIG.optimizer(), CONFIG))
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make_batch(seed) for seed in range(3)])
    with jax.numpy_dtype_promotion("strict"):
        scanned, metrics = jax.lax.scan(step, start(), batches)
    state = start()
    for seed in range(3):
        state, _ = unlearn_step(state, make_batch(seed), model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
    chex.assert_trees_all_close(scanned.params, state.params, rtol=1e-5, atol=1e-6)
    assert metrics["loss"].shape == (3,)
