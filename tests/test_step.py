"""The unlearning step: its arithmetic, what it donates, what it compiles, and what it leaves alone."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cujax.adapters import from_function, from_linen
from cujax.batch import Batch, Examples
from cujax.methods import ContrastiveUnlearning
from cujax.step import UnlearnState, make_unlearn_step, unlearn_step

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


def same_state(first, second):
    """Asserts that two states hold the same bits, keys included."""
    first, second = (dataclasses.replace(state, key=jax.random.key_data(state.key)) for state in (first, second))
    chex.assert_trees_all_equal(first, second, strict=True)


def start(model=MODEL, config=CONFIG, seed=0):
    variables = model.init(jax.random.key(seed), make_batch().forget.inputs)
    return UnlearnState.create(*variables, config.optimizer(), jax.random.key(1))


def in_numpy(state, batches, config):
    """The same updates in float64: gradients of the linear network by hand, SGD with momentum; and the losses.

    Anchors without positives have the loss of Equation 6; every anchor here has negatives.
    """
    losses = []
    weights = {name: np.asarray(value, np.float64) for name, value in state.params.items()}
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    for batch in batches:
        (x_f, y_f), (x_r, y_r) = (
            (
                np.asarray(part.inputs, np.float64).reshape(len(part.inputs), -1)[np.asarray(part.mask)],
                np.asarray(part.labels)[np.asarray(part.mask)],
            )
            for part in (batch.forget, batch.retain)
        )
        z_f, z_r = x_f @ weights["encoder"], x_r @ weights["encoder"]
        norms = [np.linalg.norm(z, axis=1, keepdims=True) for z in (z_f, z_r)]
        u_f, u_r = z_f / norms[0], z_r / norms[1]
        s = u_f @ u_r.T / config.temperature
        slope, contrastive = np.zeros_like(s), 0.0
        for i in range(len(s)):
            positives, negatives = np.flatnonzero(y_r == y_f[i]), np.flatnonzero(y_r != y_f[i])
            total = np.exp(s[i, positives]).sum()
            contrastive += np.log(total if len(positives) else len(negatives)) - s[i, negatives].mean()
            slope[i, positives] = np.exp(s[i, positives]) / total
            slope[i, negatives] = -1 / len(negatives)
        slope *= config.unlearn_weight / len(s) / config.temperature
        g_uf, g_ur = slope @ u_r, slope.T @ u_f
        g_zf = (g_uf - u_f * (u_f * g_uf).sum(1, keepdims=True)) / norms[0]
        g_zr = (g_ur - u_r * (u_r * g_ur).sum(1, keepdims=True)) / norms[1]
        logits = z_r @ weights["head"]
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        retain = -np.log(probabilities[np.arange(len(y_r)), y_r]).mean()
        residual = config.retain_weight * (probabilities - np.eye(3)[y_r]) / len(y_r)
        contrastive /= len(s)
        losses.append((contrastive, retain, config.unlearn_weight * contrastive + config.retain_weight * retain))
        gradients = {
            "head": z_r.T @ residual,
            "encoder": x_f.T @ g_zf + x_r.T @ (g_zr + residual @ weights["head"].T),
        }
        for name in weights:
            velocity[name] = config.momentum * velocity[name] + gradients[name]
            weights[name] = weights[name] - config.learning_rate * velocity[name]
    return weights, losses


def masked(batch):
    """All but the first four rows of both sets masked."""

    def mask(examples):
        return dataclasses.replace(examples, mask=jnp.arange(len(examples.labels)) < 4)

    return Batch(mask(batch.forget), mask(batch.retain))


def of_another_class(batch):
    """No forget row finds a positive: a whole class is forgotten."""
    forget = dataclasses.replace(batch.forget, labels=batch.forget.labels * 0 + 2)
    return Batch(forget, dataclasses.replace(batch.retain, labels=batch.retain.labels % 2))


@pytest.mark.parametrize("change", [lambda batch: batch, masked, of_another_class], ids=["plain", "masked", "class"])
def test_updates_and_losses_agree_with_float64(change):
    batches = [change(make_batch(seed)) for seed in range(3)]
    expected, losses = in_numpy(start(), batches, CONFIG)
    state = start()
    for batch, numbers in zip(batches, losses, strict=True):
        state, metrics = unlearn_step(state, batch, model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
        assert metrics["finite"]
        actual = [float(metrics[name]) for name in ("contrastive_loss", "retain_loss", "loss")]
        np.testing.assert_allclose(actual, numbers, rtol=2e-5, atol=1e-6)
    assert int(state.step) == 3
    for name, weights in expected.items():
        np.testing.assert_allclose(state.params[name], weights, rtol=2e-5, atol=1e-5)


def test_jitted_and_pure_step_agree():
    batch, tx = make_batch(), CONFIG.optimizer()
    pure = make_unlearn_step(MODEL, tx, CONFIG)(start(), batch)
    jitted = unlearn_step(start(), batch, model=MODEL, tx=tx, config=CONFIG)
    chex.assert_trees_all_close(pure[0].params, jitted[0].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(pure[0].opt_state, jitted[0].opt_state, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(pure[1], jitted[1], rtol=1e-5, atol=1e-6)


def test_creating_copies_and_the_step_donates():
    variables = MODEL.init(jax.random.key(0), make_batch().forget.inputs)
    key = jax.random.key(1)
    state = UnlearnState.create(*variables, CONFIG.optimizer(), key)
    before = jax.tree.map(np.array, variables.params)
    unlearn_step(state, make_batch(), model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
    chex.assert_trees_all_equal(variables.params, before)
    assert jax.random.uniform(key).shape == ()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state, state.step, state.key)))


def test_creating_copies_the_model_state_too():
    model = from_linen(WithBatchNorm())
    variables = model.init(jax.random.key(0), make_batch().forget.inputs)
    before = jax.tree.map(np.array, variables.model_state)
    state = UnlearnState.create(*variables, CONFIG.optimizer(), jax.random.key(1))
    unlearn_step(state, make_batch(), model=model, tx=CONFIG.optimizer(), config=CONFIG)
    chex.assert_trees_all_equal(variables.model_state, before)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.model_state))


def test_the_pure_step_donates_nothing():
    state, batch = start(), make_batch()
    jax.jit(make_unlearn_step(MODEL, CONFIG.optimizer(), CONFIG))(state, batch)
    same_state(state, start())


def test_an_optimiser_may_keep_the_initial_parameters():
    def pull(updates, initial, params):
        return jax.tree.map(lambda g, start, now: -0.1 * (g + now - start), updates, initial, params), initial

    tx = optax.GradientTransformation(lambda params: params, pull)
    variables = MODEL.init(jax.random.key(0), make_batch().forget.inputs)
    state = UnlearnState.create(*variables, tx, jax.random.key(1))
    state, _ = unlearn_step(state, make_batch(), model=MODEL, tx=tx, config=CONFIG)
    chex.assert_trees_all_equal(state.opt_state, variables.params)
    assert not np.allclose(state.params["encoder"], variables.params["encoder"])


def test_one_compilation_for_a_whole_run_and_three_settings():
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def counted(params, model_state, images, *, train, key):
        return apply(params, model_state, images, train=train, key=key)

    model = from_function(init, counted)
    state = UnlearnState.create(*init(jax.random.key(0), None), CONFIG.optimizer(), jax.random.key(1))
    for weight, temperature in ((0.1, 0.7), (1.0, 0.2), (3.0, 0.05)):
        config = dataclasses.replace(CONFIG, unlearn_weight=weight, retain_weight=weight / 2, temperature=temperature)
        for seed in range(4):
            state, _ = unlearn_step(state, make_batch(seed), model=model, tx=config.optimizer(), config=config)
    assert int(state.step) == 12


def test_a_parameter_of_weak_type_compiles_once_too():
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def counted(params, model_state, images, *, train, key):
        (embedding, logits), _ = apply(params, model_state, images, train=train, key=key)
        return (embedding, params["scale"] * logits), model_state

    model = from_function(init, counted)
    params = init(jax.random.key(0), None)[0] | {"scale": jnp.asarray(1.0)}  # a Python number makes a weak type
    state = UnlearnState.create(params, {}, CONFIG.optimizer(), jax.random.key(1))
    for seed in range(3):
        state, _ = unlearn_step(state, make_batch(seed), model=model, tx=CONFIG.optimizer(), config=CONFIG)
    assert float(state.params["scale"]) != 1.0


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


@pytest.mark.parametrize("model", [MODEL, from_linen(WithBatchNorm())], ids=["linear", "batch_norm"])
@pytest.mark.parametrize("part", ["forget", "retain"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_the_state_bit_for_bit(model, part, poison):
    batch, tx = make_batch(), CONFIG.optimizer()
    examples = getattr(batch, part)
    broken = dataclasses.replace(examples, inputs=examples.inputs.at[0, 0, 0, 0].set(poison))
    state, metrics = unlearn_step(start(model), batch, model=model, tx=tx, config=CONFIG)
    assert metrics["finite"]
    kept = jax.tree.map(jnp.copy, state)
    state, metrics = unlearn_step(state, dataclasses.replace(batch, **{part: broken}), model=model, tx=tx, config=CONFIG)
    assert metrics["finite"].dtype == bool
    assert not metrics["finite"]
    same_state(state, kept)
    state, metrics = unlearn_step(state, batch, model=model, tx=tx, config=CONFIG)
    assert metrics["finite"]
    assert int(state.step) == 2


def test_embeddings_that_are_not_numbers_stop_a_step_though_every_gradient_is_finite():
    def two_branches(params, model_state, images, *, train, key):
        x = images.reshape(images.shape[0], -1)
        return (x @ params["projection"], x @ params["head"]), model_state

    def broken(key, images):
        return {"projection": jnp.full((4, 3), jnp.nan), "head": jax.random.normal(key, (4, 3))}, {}

    model = from_function(broken, two_branches)
    _, metrics = unlearn_step(start(model), make_batch(), model=model, tx=CONFIG.optimizer(), config=CONFIG)
    assert not metrics["finite"]


def test_masked_rows_change_nothing():
    batch, tx = make_batch(), CONFIG.optimizer()

    def step(filler):
        rows = masked(batch)
        forget, retain = (
            dataclasses.replace(part, inputs=part.inputs.at[4:].set(filler), labels=part.labels.at[4:].set(label))
            for part, label in ((rows.forget, int(filler) % 3), (rows.retain, int(filler) % 3))
        )
        return unlearn_step(start(), Batch(forget, retain), model=MODEL, tx=tx, config=CONFIG)

    one, other = step(0.0), step(50.0)
    same_state(one[0], other[0])
    chex.assert_trees_all_equal(one[1], other[1])
    assert not np.allclose(one[0].params["encoder"], start().params["encoder"])


def test_no_mask_means_that_all_rows_count():
    batch, tx = make_batch(), CONFIG.optimizer()
    unmasked = Batch(Examples(batch.forget.inputs, batch.forget.labels), Examples(batch.retain.inputs, batch.retain.labels))
    results = [unlearn_step(start(), each, model=MODEL, tx=tx, config=CONFIG) for each in (batch, unmasked)]
    chex.assert_trees_all_close(results[0][0].params, results[1][0].params, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(results[0][1], results[1][1], rtol=1e-6)


@pytest.mark.parametrize("policy", ["joint", "retain_only", "frozen"])
def test_batch_norm_policies_move_the_documented_statistics(policy):
    model, batch = from_linen(WithBatchNorm()), make_batch()
    config = dataclasses.replace(CONFIG, batch_norm=policy)
    state = start(model, config)
    old = jax.tree.map(np.array, state.model_state["batch_stats"]["norm"])
    params = jax.tree.map(np.array, state.params)
    new, metrics = unlearn_step(state, batch, model=model, tx=config.optimizer(), config=config)
    forget, retain = (
        np.asarray(part.inputs, np.float64).reshape(len(part.inputs), -1) for part in (batch.forget, batch.retain)
    )
    both = np.concatenate([forget, retain])
    forget_rows, retain_rows = {"joint": (both, both), "retain_only": (forget, retain), "frozen": (None, None)}[policy]
    statistics = new.model_state["batch_stats"]["norm"]
    if policy == "frozen":
        chex.assert_trees_all_equal(statistics, old)
    else:
        np.testing.assert_allclose(statistics["mean"], 0.5 * retain_rows.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(statistics["var"], 0.5 + 0.5 * retain_rows.var(0), rtol=1e-4, atol=1e-6)

    def forward(images, rows):
        mean, variance = (old["mean"], old["var"]) if rows is None else (rows.mean(0), rows.var(0))
        hidden = (images - mean) / np.sqrt(variance + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
        embedding = hidden @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        return embedding, embedding @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]

    (forget_z, _), (retain_z, logits) = forward(forget, forget_rows), forward(retain, retain_rows)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = np.asarray(batch.retain.labels)
    assert float(metrics["retain_loss"]) == pytest.approx(-log_p[np.arange(7), labels].mean(), rel=1e-4)
    forget_z, retain_z = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (forget_z, retain_z))
    s = forget_z @ retain_z.T / config.temperature
    own = np.asarray(batch.forget.labels)
    losses = [np.log(np.exp(s[i, labels == own[i]]).sum()) - s[i, labels != own[i]].mean() for i in range(len(own))]
    assert float(metrics["contrastive_loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("policy", ["joint", "retain_only"])
def test_dropout_follows_the_key_and_the_step(policy):
    config = dataclasses.replace(CONFIG, batch_norm=policy)
    model, batch, tx = from_linen(WithBatchNorm(dropout=0.5)), make_batch(), config.optimizer()

    def after(seed, step=0):
        state = dataclasses.replace(start(model), key=jax.random.key(seed), step=jnp.int32(step))
        return unlearn_step(state, batch, model=model, tx=tx, config=config)

    first, again, other_key, other_step = after(0), after(0), after(1), after(0, step=1)
    same_state(first[0], again[0])
    chex.assert_trees_all_equal(first[1], again[1])
    for other in (other_key, other_step):
        assert float(first[1]["loss"]) != float(other[1]["loss"])
        assert not np.allclose(first[0].params["Dense_0"]["kernel"], other[0].params["Dense_0"]["kernel"])


def test_frozen_batch_norm_switches_dropout_off():
    config = dataclasses.replace(CONFIG, batch_norm="frozen")
    losses = []
    for dropout in (0.0, 0.5):
        model = from_linen(WithBatchNorm(dropout=dropout))
        _, metrics = unlearn_step(start(model), make_batch(), model=model, tx=config.optimizer(), config=config)
        losses.append(float(metrics["loss"]))
    assert losses[0] == losses[1]


def test_types_and_structure_stay():
    model = from_linen(WithBatchNorm())
    state = start(model)
    types = jax.tree.map(jax.typeof, state)
    state, metrics = unlearn_step(state, make_batch(), model=model, tx=CONFIG.optimizer(), config=CONFIG)
    assert jax.tree.map(jax.typeof, state) == types
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    assert all(value.shape == () for value in metrics.values())
    assert {value.dtype for name, value in metrics.items() if name != "finite"} == {jnp.dtype("float32")}


def test_batch_accuracies_count_unmasked_rows():
    batch = make_batch()
    logits = apply(start().params, {}, batch.retain.inputs, train=True, key=None)[0][1]
    mask = jnp.arange(7) < 5
    batch = dataclasses.replace(batch, retain=dataclasses.replace(batch.retain, mask=mask))
    _, metrics = unlearn_step(start(), batch, model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
    correct = np.asarray(logits).argmax(1) == np.asarray(batch.retain.labels)
    assert float(metrics["retain_accuracy"]) == pytest.approx(correct[:5].mean())


@pytest.mark.usefixtures("shapes_unchecked")
def test_an_untyped_key_is_refused():
    variables = MODEL.init(jax.random.key(0), make_batch().forget.inputs)
    with pytest.raises(ValueError, match=r"typed key such as jax.random.key\(0\)"):
        UnlearnState.create(*variables, CONFIG.optimizer(), jax.random.PRNGKey(0))


def test_the_step_obeys_strict_promotion_and_composes():
    step = make_unlearn_step(MODEL, CONFIG.optimizer(), CONFIG)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make_batch(seed) for seed in range(3)])
    with jax.numpy_dtype_promotion("strict"):
        scanned, metrics = jax.lax.scan(step, start(), batches)
    state = start()
    for seed in range(3):
        state, _ = unlearn_step(state, make_batch(seed), model=MODEL, tx=CONFIG.optimizer(), config=CONFIG)
    chex.assert_trees_all_close(scanned.params, state.params, rtol=1e-5, atol=1e-6)
    assert metrics["loss"].shape == (3,)
