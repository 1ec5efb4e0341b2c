"""The loss of deep contrastive unlearning against an independent computation in NumPy float64, and its edges."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.losses import nearest_contrastive_loss
from cujax.sharding import data_mesh, replicate, shard


def reference(forget, forget_labels, retain, retain_labels, *, temperature, push_weight, forget_mask, retain_mask):
    """The loss in float64, anchor by anchor, with plain sums of exponentials."""

    def cosine(a, b):
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / norms if norms else 0.0

    def log_sum(similarities):
        top = max(similarities)
        return top + np.log(sum(np.exp(s - top) for s in similarities))

    losses = []
    for i in np.flatnonzero(forget_mask):
        to_retain = {j: cosine(forget[i], retain[j]) / temperature for j in np.flatnonzero(retain_mask)}
        positives = [s for j, s in to_retain.items() if retain_labels[j] == forget_labels[i]]
        positives += [
            cosine(forget[i], forget[j]) / temperature
            for j in np.flatnonzero(forget_mask)
            if j != i and forget_labels[j] == forget_labels[i]
        ]
        negatives = [s for j, s in to_retain.items() if retain_labels[j] != forget_labels[i]]
        if negatives:
            losses.append((push_weight * log_sum(positives) if positives else 0.0) - log_sum(negatives))
    return np.mean(losses) if losses else 0.0


@jax.jit
def value_and_gradients(forget, retain, forget_labels, retain_labels, **options):
    def loss(forget, retain):
        return nearest_contrastive_loss(forget, forget_labels, retain, retain_labels, **options)

    return jax.value_and_grad(loss, argnums=(0, 1))(forget, retain)


def batch(seed, n_forget=5, n_retain=7, d=3, classes=3):
    rng = np.random.default_rng(seed)
    return {
        "forget": rng.normal(size=(n_forget, d)).astype(np.float32),
        "forget_labels": rng.integers(0, classes, n_forget).astype(np.int32),
        "retain": rng.normal(size=(n_retain, d)).astype(np.float32),
        "retain_labels": rng.integers(0, classes, n_retain).astype(np.int32),
        "forget_mask": np.ones(n_forget, bool),
        "retain_mask": np.ones(n_retain, bool),
    }


def ours(rows, temperature=0.2, push_weight=0.6):
    with jax.numpy_dtype_promotion("strict"):
        value, gradients = value_and_gradients(**rows, temperature=temperature, push_weight=push_weight)
    return float(value), *map(np.asarray, gradients)


def expected(rows, temperature=0.2, push_weight=0.6):
    wide = {name: value.astype(np.float64) if name in ("forget", "retain") else value for name, value in rows.items()}
    return reference(**wide, temperature=temperature, push_weight=push_weight)


def slopes(rows, **options):
    """The gradient of the reference by central differences."""
    gradient = np.zeros(rows["forget"].shape)
    for place in np.ndindex(gradient.shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = rows["forget"].astype(np.float64)
            moved[place] += step
            ends.append(expected(rows | {"forget": moved}, **options))
        gradient[place] = (ends[0] - ends[1]) / 2e-6
    return gradient


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 4),
    temperature=st.floats(0.05, 2.0),
    push_weight=st.floats(0.0, 2.0),
    masked=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_value_and_gradient_agree_with_float64(seed, classes, temperature, push_weight, masked):
    rows = batch(seed, classes=classes)
    rng = np.random.default_rng(seed + 1)
    rows |= {name: rng.uniform(size=rows[name].shape) >= masked for name in ("forget_mask", "retain_mask")}
    value, gradient, _ = ours(rows, temperature, push_weight)
    assert value == pytest.approx(expected(rows, temperature, push_weight), rel=1e-5, abs=1e-5 / temperature)
    wanted = slopes(rows, temperature=temperature, push_weight=push_weight)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4 * max(np.abs(wanted).max(), 0.1))


def test_retain_embeddings_stay_where_they_are():
    _, forget_gradient, retain_gradient = ours(batch(0))
    assert forget_gradient.any()
    assert not retain_gradient.any()


def test_a_class_of_which_no_retain_row_is_left_disperses():
    """Two forget samples of one class, a retain row of another at a right angle to both: they move apart."""
    rows = batch(0, n_forget=2, n_retain=1) | {
        "forget": np.array([[1, 0.1, 0], [1, -0.1, 0]], np.float32),
        "forget_labels": np.array([5, 5], np.int32),
        "retain": np.array([[0, 0, 1]], np.float32),
        "retain_labels": np.array([2], np.int32),
    }
    _, gradient, _ = ours(rows)
    assert gradient[0, 1] < 0 < gradient[1, 1]


def test_masked_rows_never_change_the_loss_whatever_they_hold():
    rows = batch(3)
    rows["forget_mask"][1], rows["retain_mask"][[0, 4]] = False, False
    plain = ours(rows)
    for poison in (np.nan, np.inf, 7.0):
        other = rows | {"forget": rows["forget"].copy(), "retain": rows["retain"].copy()}
        other["forget"][1], other["retain"][[0, 4]] = poison, poison
        chex.assert_trees_all_equal(ours(other), plain)
    assert not plain[1][1].any()


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("nothing counts", 0.0),
        ("no retain row counts", 0.0),
        ("one class alone", 0.0),
        ("one forget row", None),
        ("rows of zeros", None),
        ("all alike", None),
    ],
)
def test_edges_are_finite_and_agree_with_float64(change, value):
    rows = batch(4)
    if change == "nothing counts":
        rows["forget_mask"][:] = False
    elif change == "no retain row counts":
        rows["retain_mask"][:] = False
    elif change == "one class alone":
        rows["forget_labels"][:] = rows["retain_labels"][:] = 1
    elif change == "one forget row":
        rows["forget_mask"][1:] = False
    elif change == "rows of zeros":
        rows["forget"][0], rows["retain"][0] = 0, 0
    else:
        rows["forget"][:] = rows["retain"][:] = 1
    found = ours(rows)
    assert np.isfinite(np.concatenate([np.ravel(part) for part in found])).all()
    assert found[0] == pytest.approx(expected(rows) if value is None else value, rel=1e-5, abs=1e-5)
    if change == "rows of zeros":
        assert not found[1][0].any()


def test_half_precision_embeddings_are_computed_in_float32():
    rows = batch(6)
    half = rows | {name: rows[name].astype(jnp.bfloat16) for name in ("forget", "retain")}
    value, gradients = value_and_gradients(**half, temperature=0.2, push_weight=0.6)
    assert value.dtype == jnp.float32
    assert gradients[0].dtype == jnp.bfloat16
    widened = half | {name: half[name].astype(np.float32) for name in ("forget", "retain")}
    assert float(value) == pytest.approx(ours(widened)[0], rel=1e-6)


def test_rows_spread_over_devices_give_what_one_device_gives():
    rows = batch(8, n_forget=8, n_retain=16)
    mesh = data_mesh()
    assert mesh is not None
    spread = shard(rows, mesh)
    value, gradients = value_and_gradients(**spread, temperature=replicate(0.2, mesh), push_weight=0.6)
    chex.assert_trees_all_close((float(value), *map(np.asarray, gradients)), ours(rows), rtol=2e-6, atol=2e-6)


def test_mapped_devices_that_gather_all_rows_give_what_one_device_gives():
    rows = batch(9, n_forget=16, n_retain=24)

    def on_each(own):
        def loss(forget):
            every = jax.lax.all_gather(own | {"forget": forget}, "devices", tiled=True)
            arguments = [every.pop(name) for name in ("forget", "forget_labels", "retain", "retain_labels")]
            return nearest_contrastive_loss(*arguments, **every, temperature=0.2, push_weight=0.6)

        value, gradient = jax.value_and_grad(loss)(own["forget"])
        return value, gradient / jax.device_count()  # each device's loss depends on the rows of all

    spread = {name: np.asarray(array).reshape(8, -1, *np.shape(array)[1:]) for name, array in rows.items()}
    values, gradients = jax.pmap(on_each, axis_name="devices")(spread)
    value, gradient, _ = ours(rows)
    chex.assert_trees_all_close(np.asarray(values), np.full(8, value, np.float32), rtol=2e-6)
    chex.assert_trees_all_close(np.asarray(gradients).reshape(gradient.shape), gradient, rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, but is 0.0"),
        ({"retain": np.zeros((7, 4), np.float32)}, "same width, but have 3 and 4"),
        ({"forget_labels": np.zeros(4, np.int32)}, r"forget rows must be \[batch, width\]"),
        ({"retain_mask": np.ones(7, np.int32)}, "the retain mask must be bool"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = batch(0) | {"temperature": 0.2} | changes
    rows = [arguments.pop(name) for name in ("forget", "forget_labels", "retain", "retain_labels")]
    with pytest.raises(ValueError, match=message):
        nearest_contrastive_loss(*rows, **arguments)
