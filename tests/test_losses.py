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

from cujax.losses import contrastive_unlearning_loss, cross_entropy

both = pytest.mark.parametrize("denominator", ["paper", "official"])


def reference(forget, forget_labels, retain, retain_labels, *, temperature, denominator, forget_mask, retain_mask):
    """Loss, both gradients and the size of their terms in float64, anchor by anchor, by hand from the paper's equations.

    The size is the norm that each gradient would have if nothing in it cancelled. A zero row has unit vector zero.
    """
    forget, retain = forget.astype(np.float64), retain.astype(np.float64)
    forget_norms, retain_norms = np.linalg.norm(forget, axis=1), np.linalg.norm(retain, axis=1)
    forget_norms[forget_norms == 0], retain_norms[retain_norms == 0] = np.inf, np.inf
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
    sizes = (
        np.linalg.norm(np.abs(slopes).sum(axis=1) / forget_norms),
        np.linalg.norm(np.abs(slopes).sum(axis=0) / retain_norms),
    )
    return (np.mean(losses) if losses else 0.0), forget_gradient, retain_gradient, sizes


@functools.partial(jax.jit, static_argnames="denominator")
def value_and_gradients(forget, retain, forget_labels, retain_labels, **options):
    def loss(forget, retain):
        return contrastive_unlearning_loss(forget, forget_labels, retain, retain_labels, **options)

    return jax.value_and_grad(loss, argnums=(0, 1))(forget, retain)


def ours(forget, forget_labels, retain, retain_labels, **options):
    """Loss and both gradients of the library, compiled, the temperature traced, under strict promotion."""
    with jax.numpy_dtype_promotion("strict"):
        value, gradients = value_and_gradients(
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


def check_against_float64(actual, expected, temperature):
    """Within the stated precision: 1e-5 from temperature 0.1 on, 1e-4 down to 0.01.

    The value is a difference of two terms of the size of 1 / temperature, which may cancel. The gradients are compared
    by their own norm unless over 95 % of their terms cancels, which rarely happens (d = 2: neighbours mirrored about the
    anchor): there what is left is as exact as float32 made the terms.
    """
    bound = 1e-5 if temperature >= 0.1 else 1e-4
    value, *gradients, sizes = expected
    assert abs(actual[0] - value) <= bound * max(abs(value), 1 / temperature)
    for gradient, target, size in zip(actual[1:], gradients, sizes, strict=True):
        if not target.any():
            assert not gradient.any()
        assert np.linalg.norm(gradient - target) <= bound * max(np.linalg.norm(target), 0.05 * size)


# Each shape is a compilation, hence few of them.
SHAPES = [(1, 2, 2), (1, 16, 3), (4, 5, 2), (8, 16, 16), (8, 2, 3)]


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from(SHAPES),
    classes=st.integers(1, 5),
    temperature=st.one_of(st.floats(0.1, 5.0), st.floats(0.01, 0.1)),
    denominator=st.sampled_from(["paper", "official"]),
    masked=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_value_and_gradients_agree_with_float64(seed, shape, classes, temperature, denominator, masked):
    arguments = batch(seed, *shape, classes)
    rng = np.random.default_rng(seed)
    options = {
        "temperature": np.float32(temperature),
        "denominator": denominator,
        "forget_mask": rng.random(shape[0]) >= masked * 0.7,
        "retain_mask": rng.random(shape[1]) >= masked,
    }
    expected = reference(*arguments, **options | {"temperature": float(np.float32(temperature))})
    check_against_float64(ours(*arguments, **options), expected, float(np.float32(temperature)))


@both
def test_golden_values(denominator):
    forget, labels = np.array([[1.0, 0.0]]), np.array([0])
    retain, retain_labels = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), np.array([0, 1, 1])
    loss = contrastive_unlearning_loss(forget, labels, retain, retain_labels, temperature=0.5, denominator=denominator)
    # s = (2, 0, -2): one positive with logsumexp 2, negatives with mean -1; officially 3/2 of the first.
    assert float(loss) == pytest.approx({"paper": 3.0, "official": 4.0}[denominator], rel=1e-6)


@both
def test_golden_gradients(denominator):
    # One positive at (1, 0), one negative at (0, 1), the anchor between: the gradient of the first term is the positive,
    # of the second the negative, over the temperature, less what points along the anchor, (0.6, 0.8).
    forget, retain = jnp.array([[0.6, 0.8]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    labels, retain_labels = jnp.array([0]), jnp.array([0, 1])
    weight = {"paper": 1, "official": 2}[denominator]
    along = weight * 0.6 - 0.8
    expected = 0.5 * np.array([[weight - along * 0.6, -1 - along * 0.8]])
    value, gradient, retain_gradient = ours(forget, labels, retain, retain_labels, temperature=2.0, denominator=denominator)
    assert float(value) == pytest.approx({"paper": -0.1, "official": 0.2}[denominator], rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(retain_gradient, [[0.0, weight * 0.4], [-0.3, 0.0]], rtol=1e-5, atol=1e-7)


@both
def test_an_anchor_without_positives_is_equation_6_beside_one_with(denominator):
    forget, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 5])
    retain, retain_labels = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]), np.array([0, 1, 1])
    loss = contrastive_unlearning_loss(forget, labels, retain, retain_labels, temperature=0.5, denominator=denominator)
    # Anchor 0: positive 2, negatives (-2, 0): 2 + 1, officially 3 + 1. Anchor 1: log 3, officially 0; s = (0, 0, -2).
    expected = {"paper": (3 + np.log(3) + 2 / 3) / 2, "official": (4 + 2 / 3) / 2}[denominator]
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_constant_of_equation_6_changes_no_gradient():
    forget, _, retain, retain_labels = batch(0)
    labels = np.full(len(forget), 7, np.int32)
    paper, official = (ours(forget, labels, retain, retain_labels, denominator=name) for name in ("paper", "official"))
    assert paper[0] - official[0] == pytest.approx(np.log(len(retain)), rel=1e-5)
    np.testing.assert_array_equal(paper[1], official[1])
    assert paper[1].any()


@both
def test_masked_rows_never_change_the_loss_whatever_they_hold(denominator):
    forget, forget_labels, retain, retain_labels = batch(3)
    masks = {"forget_mask": np.arange(6) < 4, "retain_mask": np.arange(9) != 2}
    clean = ours(forget, forget_labels, retain, retain_labels, denominator=denominator, **masks)
    for poison in (np.nan, np.inf, -np.inf, 1e38, 0.0):
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
    "no counted retain row": {"retain_mask": np.zeros(9, bool)},
    "no positives": {"forget_labels": np.full(6, 9, np.int32)},
    "no negatives": {"forget_labels": np.zeros(6, np.int32), "retain_labels": np.zeros(9, np.int32)},
    "temperature 0.01": {"temperature": 0.01},
    "huge embeddings": {"scale": 1e30},
    "tiny embeddings": {"scale": 1e-20},
    "tiny embeddings at temperature 0.01": {"scale": 1e-20, "temperature": 0.01},
}


@both
@pytest.mark.parametrize("edge", EDGES)
def test_edges_are_finite_and_agree_with_float64(edge, denominator):
    changes = dict(EDGES[edge])
    forget, forget_labels, retain, retain_labels = batch(11)
    scale = np.float32(changes.pop("scale", 1.0))
    rows = {"forget": forget * scale, "retain": retain * scale}
    for name in rows.keys() & changes.keys():
        where, value = changes.pop(name)
        rows[name][where] = value
    labels = changes.pop("forget_labels", forget_labels), changes.pop("retain_labels", retain_labels)
    options = {"temperature": 0.7, "forget_mask": np.ones(6, bool), "retain_mask": np.ones(9, bool)} | changes
    arguments = rows["forget"], labels[0], rows["retain"], labels[1]
    actual = ours(*arguments, denominator=denominator, **options)
    chex.assert_tree_all_finite(actual)
    check_against_float64(actual, reference(*arguments, denominator=denominator, **options), options["temperature"])
    if edge.startswith(("no counted", "no negatives")):
        assert not any(part.any() for part in actual)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["forget", "retain"])
def test_a_counted_row_that_is_not_finite_is_not_hidden(part, poison):
    forget, forget_labels, retain, retain_labels = batch(11)
    {"forget": forget, "retain": retain}[part][0, 0] = poison
    value, _, _ = ours(forget, forget_labels, retain, retain_labels)
    assert not np.isfinite(value)


def test_anchors_without_negatives_contribute_nothing_and_do_not_count():
    forget, _, retain, _ = batch(2)
    retain_labels = np.zeros(9, np.int32)
    labels = np.array([0, 0, 0, 1, 1, 1], np.int32)
    some = ours(forget, labels, retain, retain_labels)
    others = ours(forget[3:], labels[3:], retain, retain_labels)
    np.testing.assert_allclose(some[0], others[0], rtol=1e-6)
    np.testing.assert_allclose(some[1][3:], others[1], rtol=1e-5, atol=1e-7)
    assert not some[1][:3].any()


def test_the_scale_of_embeddings_does_not_matter():
    forget, forget_labels, retain, retain_labels = batch(4)
    value, gradient, retain_gradient = ours(forget, forget_labels, retain, retain_labels)
    for exponent in (-66, -10, 90):  # powers of two, so that the scaled rows are the same numbers
        scale = np.float32(2.0**exponent)
        scaled = ours(forget * scale, forget_labels, retain, retain_labels)
        assert scaled[0] == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(scaled[1] * scale, gradient, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(scaled[2], retain_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_embeddings_are_computed_in_float32(dtype):
    forget, forget_labels, retain, retain_labels = batch(6)
    forget, retain = jnp.asarray(forget, dtype), jnp.asarray(retain, dtype)
    options = {"temperature": 0.05, "forget_mask": np.arange(6) < 5, "retain_mask": np.arange(9) < 8}
    half = ours(forget, forget_labels, retain, retain_labels, denominator="paper", **options)
    wide = np.asarray(forget, np.float32), np.asarray(retain, np.float32)
    expected = reference(wide[0], forget_labels, wide[1], retain_labels, denominator="paper", **options)
    assert half[0].dtype == np.float32
    assert half[0] == pytest.approx(expected[0], rel=1e-5)
    for gradient, target in zip(half[1:], expected[1:3], strict=True):
        assert gradient.dtype == dtype
        rounding = float(jnp.finfo(dtype).eps)  # the gradient has the type of the embeddings
        assert np.linalg.norm(gradient.astype(np.float64) - target) <= rounding * np.linalg.norm(target)


def test_the_official_gradient_is_that_of_the_code_with_its_detached_maximum():
    forget, forget_labels, retain, retain_labels = batch(8)
    same = forget_labels[:, None] == retain_labels[None]
    assert same.any(axis=1).all()
    assert not same.all(axis=1).any()

    @jax.jit
    def as_in_the_official_code(forget, retain):
        forget, retain = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (forget, retain))
        s = jnp.matmul(forget, retain.T, precision="highest") / 0.7
        s = s - jax.lax.stop_gradient(s.max(axis=1, keepdims=True))
        log_positives = jnp.log(jnp.sum(jnp.exp(s) * same, axis=1))[:, None]
        # Each of the B_r columns holds the first term, each negative's its own similarity besides.
        return jnp.mean(jnp.sum(log_positives - s * ~same, axis=1) / (~same).sum(axis=1))

    gradients = jax.grad(as_in_the_official_code, argnums=(0, 1))(forget, retain)
    actual = ours(forget, forget_labels, retain, retain_labels, denominator="official")
    chex.assert_trees_all_close(actual[1:], gradients, rtol=1e-4, atol=1e-6)


def test_no_array_of_pairs_times_width_is_made():
    n_forget, n_retain, d = 7, 11, 13
    forget, forget_labels, retain, retain_labels = batch(0, n_forget, n_retain, d)

    def loss(forget, retain):
        return contrastive_unlearning_loss(forget, forget_labels, retain, retain_labels)

    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(forget, retain).as_text()
    shapes = [tuple(map(int, dims.split("x")[:-1])) for dims in re.findall(r"tensor<((?:\d+x)+\w+)>", lowered)]
    assert (n_forget, n_retain) in shapes
    assert not [shape for shape in shapes if {n_forget, n_retain, d} <= set(shape)]
    assert max(int(np.prod(shape)) for shape in shapes) < n_forget * n_retain * d


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, r"temperature must be positive, but is 0\.0"),
        ({"temperature": -1}, "temperature must be positive, but is -1"),
        ({"temperature": float("nan")}, "temperature must be positive, but is nan"),
        ({"denominator": "mine"}, "denominator must be one of .*'paper', 'official'.*'mine'"),
        ({"forget_mask": np.ones(6, np.float32)}, "the forget mask must be bool .*but is float32"),
        ({"retain_mask": np.ones(9, np.int32)}, "the retain mask must be bool .*but is int32"),
        ({"retain_mask": np.ones(4, bool)}, r"retain rows must be .*\(9, 5\), \(9,\) and \(4,\)"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        contrastive_unlearning_loss(*batch(0), **changes)


@pytest.mark.usefixtures("shapes_unchecked")
def test_widths_and_ranks_must_fit():
    forget, forget_labels, retain, retain_labels = batch(0)
    with pytest.raises(ValueError, match="same width, but have 5 and 4"):
        contrastive_unlearning_loss(forget, forget_labels, retain[:, :4], retain_labels)
    with pytest.raises(ValueError, match=r"forget rows must be \[batch, width\] .*\(1, 6, 5\), \(6,\)"):
        contrastive_unlearning_loss(forget[None], forget_labels, retain, retain_labels)
    with pytest.raises(ValueError, match=r"retain rows must be .*\(9, 5\), \(9, 1\)"):
        contrastive_unlearning_loss(forget, forget_labels, retain, retain_labels[:, None])
    with pytest.raises(ValueError, match=r"cross-entropy rows must be .*\(6, 5\), \(5,\)"):
        cross_entropy(forget, forget_labels[:5])


cross_entropy_and_gradient = jax.jit(jax.value_and_grad(cross_entropy))


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    rows=st.sampled_from([1, 7]),
    scale=st.sampled_from([1.0, 100.0]),
    masked=st.sampled_from([None, 0.3, 1.0]),
)
def test_cross_entropy_and_its_gradient_agree_with_float64(seed, rows, scale, masked):
    rng = np.random.default_rng(seed)
    logits, labels = (scale * rng.normal(size=(rows, 4))).astype(np.float32), rng.integers(0, 4, rows).astype(np.int32)
    counts = np.ones(rows, bool) if masked is None else rng.random(rows) >= masked
    losses, expected_gradient = [], np.zeros((rows, 4))
    for i in np.flatnonzero(counts):
        row = logits[i].astype(np.float64) - logits[i].max()
        log_p = row - np.log(np.exp(row).sum())
        losses.append(-log_p[labels[i]])
        expected_gradient[i] = (np.exp(log_p) - np.eye(4)[labels[i]]) / counts.sum()
    logits[~counts] = np.nan
    mask = None if masked is None else jnp.asarray(counts)
    with jax.numpy_dtype_promotion("strict"):
        value, gradient = cross_entropy_and_gradient(jnp.asarray(logits), jnp.asarray(labels), mask)
    assert value.dtype == jnp.float32
    # log-softmax subtracts numbers of the size of the logits, so that is what its rounding is relative to.
    assert float(value) == pytest.approx(np.mean(losses) if losses else 0.0, rel=1e-5, abs=1e-6 * scale)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert not np.asarray(gradient)[~counts].any()


def test_cross_entropy_of_half_precision_logits_is_computed_in_float32():
    logits = jnp.array([[10.0, 0.0]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([0]))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(np.log1p(np.exp(-10.0)), rel=1e-3)
