"""The losses against an independent computation in NumPy float64, and their edges."""

import functools
import re

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.losses import contrastive_unlearning_loss, cross_entropy, normalize

both = pytest.mark.parametrize("denominator", ["paper", "official"])


def reference(forget, forget_labels, retain, retain_labels, *, temperature, denominator, forget_mask, retain_mask):
    """Loss and both gradients in float64, anchor by anchor, derived by hand from the paper's equations."""
    forget, retain = forget.astype(np.float64), retain.astype(np.float64)
    forget_norms, retain_norms = np.linalg.norm(forget, axis=1), np.linalg.norm(retain, axis=1)
    unit_forget, unit_retain = forget / forget_norms[:, None], retain / retain_norms[:, None]
    n_retain = retain_mask.sum()
    losses, slopes = [], []
    for i in range(len(forget)):
        positives = [j for j in range(len(retain)) if retain_mask[j] and retain_labels[j] == forget_labels[i]]
        negatives = [j for j in range(len(retain)) if retain_mask[j] and retain_labels[j] != forget_labels[i]]
        slope = np.zeros(len(retain))
        if forget_mask[i] and negatives:
            s = unit_retain @ unit_forget[i] / temperature
            weight = 1.0 if denominator == "paper" else n_retain / len(negatives)
            if positives:
                top = s[positives].max()
                exponentials = np.exp(s[positives] - top)
                push = weight * (top + np.log(exponentials.sum()))
                slope[positives] = weight * exponentials / exponentials.sum()
            else:
                push = np.log(len(negatives)) if denominator == "paper" else 0.0
            losses.append(push - s[negatives].mean())
            slope[negatives] -= 1 / len(negatives)
        slopes.append(slope)
    slopes = np.array(slopes) / max(len(losses), 1) / temperature

    def through_normalisation(gradient, unit, norms):
        return (gradient - unit * (unit * gradient).sum(axis=1, keepdims=True)) / norms[:, None]

    forget_gradient = through_normalisation(slopes @ unit_retain, unit_forget, forget_norms)
    retain_gradient = through_normalisation(slopes.T @ unit_forget, unit_retain, retain_norms)
    return (np.mean(losses) if losses else 0.0), forget_gradient, retain_gradient


def ours(forget, forget_labels, retain, retain_labels, **options):
    """Loss and both gradients of the library, compiled."""

    @functools.partial(jax.jit, static_argnames="denominator")
    def both_gradients(forget, retain, forget_labels, retain_labels, **options):
        def loss(forget, retain):
            return contrastive_unlearning_loss(forget, forget_labels, retain, retain_labels, **options)

        return jax.value_and_grad(loss, argnums=(0, 1))(forget, retain)

    with jax.numpy_dtype_promotion("strict"):
        value, gradients = both_gradients(
            jnp.asarray(forget), jnp.asarray(retain), jnp.asarray(forget_labels), jnp.asarray(retain_labels), **options
        )
    return np.asarray(value), np.asarray(gradients[0]), np.asarray(gradients[1])


def batch(seed, n_forget=6, n_retain=9, d=5, classes=3):
    rng = np.random.default_rng(seed)
    forget, retain = rng.normal(size=(n_forget, d)), rng.normal(size=(n_retain, d))
    scale = np.exp(rng.normal(size=(n_retain, 1)))
    labels = rng.integers(0, classes, n_forget), rng.integers(0, classes, n_retain)
    return (
        forget.astype(np.float32),
        labels[0].astype(np.int32),
        (retain * scale).astype(np.float32),
        labels[1].astype(np.int32),
    )


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    n_forget=st.sampled_from([1, 4, 8]),
    n_retain=st.sampled_from([2, 5, 16]),
    d=st.sampled_from([3, 16]),
    classes=st.integers(1, 5),
    temperature=st.one_of(st.floats(0.1, 5.0), st.floats(0.01, 0.1)),
    denominator=st.sampled_from(["paper", "official"]),
    masked=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_value_and_gradients_agree_with_float64(seed, n_forget, n_retain, d, classes, temperature, denominator, masked):
    arguments = batch(seed, n_forget, n_retain, d, classes)
    rng = np.random.default_rng(seed)
    options = {
        "temperature": np.float32(temperature),
        "denominator": denominator,
        "forget_mask": rng.random(n_forget) >= masked * 0.7,
        "retain_mask": rng.random(n_retain) >= masked,
    }
    expected = reference(*arguments, **options | {"temperature": float(np.float32(temperature))})
    actual = ours(*arguments, **options)
    bound = 1e-5 if temperature >= 0.1 else 1e-4
    # The value is a difference of two terms of the size of 1 / temperature, which may cancel; gradients do not.
    assert abs(actual[0] - expected[0]) <= bound * max(abs(expected[0]), 1 / temperature)
    for gradient, target in zip(actual[1:], expected[1:], strict=True):
        if np.linalg.norm(target) == 0:
            assert not gradient.any()
        else:
            assert relative(gradient, target) <= bound


@both
def test_golden_values(denominator):
    forget, labels = np.array([[1.0, 0.0]]), np.array([0])
    retain, retain_labels = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), np.array([0, 1, 1])
    loss = contrastive_unlearning_loss(forget, labels, retain, retain_labels, temperature=0.5, denominator=denominator)
    # s = (2, 0, -2): one positive with logsumexp 2, negatives with mean -1; officially 3/2 of the first.
    assert float(loss) == pytest.approx({"paper": 3.0, "official": 4.0}[denominator], rel=1e-6)


def test_a_whole_class_forgotten_is_equation_6():
    forget, _, retain, retain_labels = batch(0)
    labels = np.full(len(forget), 7, np.int32)
    s = normalize(forget) @ normalize(retain).T / 0.7
    loss = contrastive_unlearning_loss(forget, labels, retain, retain_labels)
    assert float(loss) == pytest.approx(np.log(len(retain)) - float(s.mean()), rel=1e-5)


@both
def test_masked_rows_never_change_the_loss_whatever_they_hold(denominator):
    forget, forget_labels, retain, retain_labels = batch(3)
    masks = {"forget_mask": np.arange(6) < 4, "retain_mask": np.arange(9) != 2}
    clean = ours(forget, forget_labels, retain, retain_labels, denominator=denominator, **masks)
    for poison in (np.nan, np.inf, 1e38, 0.0):
        forget[4:], retain[2] = poison, poison
        poisoned = ours(forget, forget_labels, retain, retain_labels, denominator=denominator, **masks)
        for before, after in zip(clean, poisoned, strict=True):
            np.testing.assert_array_equal(before, after)
    assert not clean[1][4:].any()
    assert not clean[2][2].any()


def test_masking_rows_equals_leaving_them_out():
    forget, forget_labels, retain, retain_labels = batch(5)
    for denominator in ("paper", "official"):
        masks = {"forget_mask": np.arange(6) < 4, "retain_mask": np.arange(9) < 7}
        masked = ours(forget, forget_labels, retain, retain_labels, denominator=denominator, **masks)
        less = ours(forget[:4], forget_labels[:4], retain[:7], retain_labels[:7], denominator=denominator)
        np.testing.assert_allclose(masked[0], less[0], rtol=1e-6)
        np.testing.assert_allclose(masked[1][:4], less[1], rtol=1e-5, atol=1e-7)


EDGES = {
    "an embedding of zero norm": {"forget": (slice(0, 1), 0.0)},
    "a retain embedding of zero norm": {"retain": (slice(0, 1), 0.0)},
    "all embeddings of zero norm": {"forget": (slice(None), 0.0), "retain": (slice(None), 0.0)},
    "no counted anchor": {"forget_mask": np.zeros(6, bool)},
    "no retain row": {"retain_mask": np.zeros(9, bool)},
    "no positives": {"forget_labels": np.full(6, 9, np.int32)},
    "no negatives": {"forget_labels": np.zeros(6, np.int32), "retain_labels": np.zeros(9, np.int32)},
    "temperature 0.01": {"temperature": 0.01},
    "huge embeddings": {"scale": 1e30},
    "tiny embeddings": {"scale": 1e-20},
}


@both
@pytest.mark.parametrize("edge", EDGES)
def test_edges_are_finite_in_value_and_gradient(edge, denominator):
    forget, forget_labels, retain, retain_labels = batch(11)
    changes = dict(EDGES[edge])
    for name, rows in (("forget", forget), ("retain", retain)):
        rows *= changes.get("scale", 1.0)
        if name in changes:
            where, value = changes.pop(name)
            rows[where] = value
    changes.pop("scale", None)
    labels = changes.pop("forget_labels", forget_labels), changes.pop("retain_labels", retain_labels)
    result = ours(forget, labels[0], retain, labels[1], denominator=denominator, **changes)
    chex.assert_tree_all_finite(result)


def test_anchors_without_negatives_contribute_nothing_and_do_not_count():
    forget, _, retain, _ = batch(2)
    retain_labels = np.zeros(9, np.int32)
    labels = np.array([0, 0, 0, 1, 1, 1], np.int32)
    some = ours(forget, labels, retain, retain_labels)
    others = ours(forget[3:], labels[3:], retain, retain_labels)
    np.testing.assert_allclose(some[0], others[0], rtol=1e-6)
    assert not some[1][:3].any()
    assert float(contrastive_unlearning_loss(forget, np.zeros(6, int), retain, retain_labels)) == 0.0


def test_the_scale_of_embeddings_does_not_matter():
    forget, forget_labels, retain, retain_labels = batch(4)
    expected = contrastive_unlearning_loss(forget, forget_labels, retain, retain_labels)
    for scale in (1e-20, 1e-3, 1e25):
        scaled = contrastive_unlearning_loss(forget * np.float32(scale), forget_labels, retain, retain_labels)
        assert float(scaled) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_embeddings_are_computed_in_float32(dtype):
    forget, forget_labels, retain, retain_labels = batch(6)
    forget, retain = jnp.asarray(forget, dtype), jnp.asarray(retain, dtype)
    loss = contrastive_unlearning_loss(forget, forget_labels, retain, retain_labels, temperature=0.05)
    exact = contrastive_unlearning_loss(
        forget.astype(jnp.float32), forget_labels, retain.astype(jnp.float32), retain_labels, temperature=0.05
    )
    assert loss.dtype == jnp.float32
    assert float(loss) == float(exact)


def test_the_official_gradient_is_that_of_the_code_with_its_detached_maximum():
    forget, forget_labels, retain, retain_labels = batch(8)

    def as_in_the_official_code(forget):
        s = normalize(forget) @ normalize(retain).T / 0.7
        s = s - jax.lax.stop_gradient(s.max(axis=1, keepdims=True))
        same = forget_labels[:, None] == retain_labels[None]
        push = jnp.log(jnp.sum(jnp.exp(s) * same, axis=1))
        n_negatives = (~same).sum(axis=1)
        return jnp.mean(-((s - push[:, None]) * ~same).sum(axis=1) / n_negatives + push * (s.shape[1] / n_negatives - 1))

    gradient = jax.grad(as_in_the_official_code)(jnp.asarray(forget))
    actual = ours(forget, forget_labels, retain, retain_labels, denominator="official")[1]
    np.testing.assert_allclose(actual, gradient, rtol=1e-4, atol=1e-6)


def test_no_array_of_pairs_times_width_is_made():
    n_forget, n_retain, d = 7, 11, 13
    forget, forget_labels, retain, retain_labels = batch(0, n_forget, n_retain, d)

    def loss(forget, retain):
        return contrastive_unlearning_loss(forget, forget_labels, retain, retain_labels)

    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(forget, retain).as_text()
    shapes = [tuple(map(int, dims.split("x")[:-1])) for dims in re.findall(r"tensor<((?:\d+x)+\w+)>", lowered)]
    assert (n_forget, n_retain) in shapes
    assert max(int(np.prod(shape)) for shape in shapes) < n_forget * n_retain * d


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, but is 0.0"),
        ({"temperature": -1}, "temperature must be positive, but is -1"),
        ({"denominator": "mine"}, "denominator must be one of .*'mine'"),
        ({"forget_mask": np.ones(6)}, "mask must be bool"),
        ({"retain_mask": np.ones(4, bool)}, "retain rows must be"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        contrastive_unlearning_loss(*batch(0), **changes)


def test_widths_and_ranks_must_fit():
    forget, forget_labels, retain, retain_labels = batch(0)
    with pytest.raises(ValueError, match="same width, but have 5 and 4"):
        contrastive_unlearning_loss(forget, forget_labels, retain[:, :4], retain_labels)
    with pytest.raises(ValueError, match="forget rows must be"):
        contrastive_unlearning_loss(forget[None], forget_labels, retain, retain_labels)


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**31), rows=st.sampled_from([1, 7]), scale=st.sampled_from([1.0, 100.0]))
def test_cross_entropy_agrees_with_float64(seed, rows, scale):
    rng = np.random.default_rng(seed)
    logits, labels = (scale * rng.normal(size=(rows, 4))).astype(np.float32), rng.integers(0, 4, rows)
    mask = rng.random(rows) < 0.7
    wide = logits.astype(np.float64)
    log_sums = wide.max(axis=1) + np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1))
    losses = log_sums - wide[np.arange(rows), labels]
    expected = losses[mask].mean() if mask.any() else 0.0
    logits[~mask] = np.nan
    value, gradient = jax.value_and_grad(cross_entropy)(jnp.asarray(logits), labels, mask)
    assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert not np.asarray(gradient)[~mask].any()
    chex.assert_tree_all_finite(gradient)
