"""Pure losses: arrays in, a float32 scalar out.

All losses are computed in float32 whatever the dtype of the arguments, accept masks, and stay finite in value and
in gradient for every input whose counted rows are finite (gradients of float16 inputs are cast back to float16, where those
of very short rows may overflow). Nothing here depends on networks, data or devices.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Integer, Real, Shaped

from cujax.labels import counted_labels

Denominator = Literal["paper", "official"]
Mask = Bool[ArrayLike, "B"] | None
Scalar = Real[ArrayLike, ""]

# Embeddings with no entry larger than this count as zero: below it 1 / norm, times 1 / temperature, leaves float32.
_ZERO_NORM = 1e-30


def normalize(embeddings: Float[ArrayLike, "*rows d"]) -> Float32[Array, "*rows d"]:
    """Scales each row to unit L2 norm, in float32; rows with zero norm stay zero and pass no gradient.

    Each row is divided by its largest entry first, so that no square overflows or underflows.

    Args:
        embeddings: `[..., d]`, any floating dtype.

    Returns:
        `[..., d]` float32.

    >>> normalize(jnp.array([[3.0, 4.0], [0.0, 0.0], [3e-20, 4e-20]]))
    Array([[0.6, 0.8],
           [0. , 0. ],
           [0.6, 0.8]], dtype=float32)
    """
    embeddings = jnp.asarray(embeddings).astype(jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(embeddings), axis=-1, keepdims=True))
    nonzero = ~(largest <= _ZERO_NORM)  # so that NaN is no zero, and is seen
    scaled = jnp.where(nonzero, embeddings / jnp.where(nonzero, largest, 1.0), 0.0)
    squared_norm = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    return scaled * jax.lax.rsqrt(jnp.where(nonzero, squared_norm, 1.0))


def contrastive_unlearning_loss(
    forget_embeddings: Float[ArrayLike, "B_f d"],
    forget_labels: Integer[ArrayLike, "B_f"],
    retain_embeddings: Float[ArrayLike, "B_r d"],
    retain_labels: Integer[ArrayLike, "B_r"],
    *,
    temperature: Scalar = 0.7,
    denominator: Denominator = "paper",
    forget_mask: Bool[ArrayLike, "B_f"] | None = None,
    retain_mask: Bool[ArrayLike, "B_r"] | None = None,
) -> Float32[Array, ""]:
    r"""The contrastive unlearning loss of Lee et al., which pushes forget samples out of their own class.

    The embeddings are L2-normalised and `s_ij = z_i · z_j / temperature`. For a forget sample (anchor) i with positives
    `P_i` (retain rows of its class) and negatives `N_i` (retain rows of other classes), the loss is

    - Equation 5: `logsumexp_{p in P_i} s_ip - mean_{a in N_i} s_ia`: away from its class, towards the others;
    - Equation 6 if `P_i` is empty, as for every anchor when a whole class is to be forgotten:
      `log |N_i| - mean_{a in N_i} s_ia`.

    The result is the mean over the anchors that count. Gradients flow into both sets of embeddings.

    | case | contribution |
    |---|---|
    | anchor or retain row masked out | exactly 0, whatever it contains, including NaN |
    | a negative label | rejected if labels are concrete; if they are traced, treated as a row masked out |
    | no negatives in the retain batch | the anchor contributes 0 and does not count |
    | no anchor that counts | the loss is 0 |
    | embedding with zero norm | similarity 0, gradient 0 |

    Memory is O(B_f · B_r + (B_f + B_r) · d).

    Args:
        forget_embeddings: `[B_f, d]`, any floating dtype; need not be normalised.
        forget_labels: `[B_f]` integer.
        retain_embeddings: `[B_r, d]`.
        retain_labels: `[B_r]` integer.
        temperature: Positive scalar; may be traced. At least 0.01 for the stated precision.
        denominator: "paper" is the loss above. "official" is what the authors' code computes: the first term times
            `B_r / |N_i|` (B_r the number of retain rows that count), and 0 if there are no positives.
        forget_mask: `[B_f]` bool, True where the row counts; all rows if not given.
        retain_mask: `[B_r]` bool, likewise.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: if shapes do not match, a label of a row that counts is negative, `temperature` is a Python number and
            not positive, or `denominator` is unknown.

    Reference:
        Lee et al., "Contrastive Unlearning: A Contrastive Approach to Machine Unlearning", IJCAI 2025,
        arXiv:2401.10458, Equations 5 and 6.

    >>> own, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> retain, labels = jnp.concatenate([own, other]), jnp.array([3, 7])
    >>> loss = lambda forget: contrastive_unlearning_loss(forget, jnp.array([3]), retain, labels, temperature=0.5)
    >>> print(loss(own), loss(other))  # an embedding among its own class; one that has left it
    2.0 -2.0
    """
    losses, counts = anchor_losses(
        forget_embeddings,
        forget_labels,
        retain_embeddings,
        retain_labels,
        temperature=temperature,
        denominator=denominator,
        forget_mask=forget_mask,
        retain_mask=retain_mask,
    )
    return masked_mean(losses, counts)


def anchor_losses(
    forget_embeddings: Float[ArrayLike, "B_f d"],
    forget_labels: Integer[ArrayLike, "B_f"],
    retain_embeddings: Float[ArrayLike, "B_r d"],
    retain_labels: Integer[ArrayLike, "B_r"],
    *,
    temperature: Scalar,
    denominator: Denominator,
    forget_mask: Bool[ArrayLike, "B_f"] | None,
    retain_mask: Bool[ArrayLike, "B_r"] | None,
) -> tuple[Float32[Array, "B_f"], Bool[Array, "B_f"]]:
    """The terms whose mean is `contrastive_unlearning_loss`; takes the same arguments.

    Returns:
        `[B_f]` float32 loss of each anchor, 0 where it does not count, and `[B_f]` bool, whether it counts.
    """
    _check_temperature(temperature)
    if denominator not in get_args(Denominator):
        raise ValueError(f"denominator must be one of {get_args(Denominator)}, but is {denominator!r}.")
    forget = counted_rows("forget", forget_embeddings, forget_labels, forget_mask)
    retain = counted_rows("retain", retain_embeddings, retain_labels, retain_mask)
    forget_y, forget_counts = forget.labels, forget.counts
    retain_y, retain_counts = retain.labels, retain.counts
    similarity = cosine_similarity(forget, retain, temperature)
    same_class = forget_y[:, None] == retain_y[None, :]
    positives = same_class & retain_counts[None, :]
    negatives = ~same_class & retain_counts[None, :]
    n_negatives = jnp.sum(negatives, axis=1).astype(jnp.float32)
    has_positives = jnp.any(positives, axis=1)
    counts = forget_counts & (n_negatives > 0)

    push = logsumexp_among(positives, similarity)
    safe_n_negatives = jnp.maximum(n_negatives, 1.0)
    if denominator == "paper":
        push = jnp.where(has_positives, push, jnp.log(safe_n_negatives))
    else:
        n_retain = jnp.sum(retain_counts).astype(jnp.float32)
        push = jnp.where(has_positives, push * (n_retain / safe_n_negatives), 0.0)
    pull = jnp.sum(jnp.where(negatives, similarity, 0.0), axis=1) / safe_n_negatives
    return jnp.where(counts, push - pull, 0.0), counts


def nearest_contrastive_loss(
    forget_embeddings: Float[ArrayLike, "B_f d"],
    forget_labels: Integer[ArrayLike, "B_f"],
    retain_embeddings: Float[ArrayLike, "B_r d"],
    retain_labels: Integer[ArrayLike, "B_r"],
    *,
    temperature: Scalar = 0.1,
    push_weight: Scalar = 0.5,
    forget_mask: Bool[ArrayLike, "B_f"] | None = None,
    retain_mask: Bool[ArrayLike, "B_r"] | None = None,
) -> Float32[Array, ""]:
    r"""Moves each forget sample individually among the retain samples of other classes that are nearest to it.

    `contrastive_unlearning_loss` pulls towards the mean of all others, which moves a class as one cluster that remains as
    readable as before. Here, with `s_ij` the cosine of two embeddings over the temperature, the loss of an anchor i is

    `push_weight · logsumexp_{p in P_i} s_ip - logsumexp_{a in N_i} s_ia`.

    The negatives `N_i` are the retain rows of other classes. The positives `P_i` are the retain rows of its class and the
    other forget rows of its class, so that the class disperses even if it has no retain rows. An anchor without positives is
    only pulled. No gradient flows into retain embeddings: they are fixed targets that do not move towards the sample.

    | case | contribution |
    |---|---|
    | anchor or retain row masked out | exactly 0, whatever it contains, including NaN |
    | a negative label | rejected if labels are concrete; if they are traced, treated as a row masked out |
    | no negatives in the retain batch | the anchor contributes 0 and does not count |
    | no anchor that counts | the loss is 0 |
    | embedding with zero norm | similarity 0, gradient 0 |

    Memory is O(B_f · (B_f + B_r) + (B_f + B_r) · d).

    Args:
        forget_embeddings: `[B_f, d]`, any floating dtype; need not be normalised.
        forget_labels: `[B_f]` integer.
        retain_embeddings: `[B_r, d]`.
        retain_labels: `[B_r]` integer.
        temperature: Positive scalar; may be traced. At least 0.01 for the stated precision.
        push_weight: Weight of the push; may be traced.
        forget_mask: `[B_f]` bool, True where the row counts; all rows if not given.
        retain_mask: `[B_r]` bool, likewise.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: if shapes do not match, a label of a row that counts is negative, or `temperature` is a Python number
            and not positive.

    >>> retain, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([3, 7])
    >>> loss = lambda forget: nearest_contrastive_loss(forget, jnp.array([3]), retain, labels)
    >>> print(loss(retain[:1]), loss(retain[1:]))  # an embedding among its own class; one that has left it
    5.0 -10.0
    """
    _check_temperature(temperature)
    forget = counted_rows("forget", forget_embeddings, forget_labels, forget_mask)
    retain = counted_rows("retain", jax.lax.stop_gradient(jnp.asarray(retain_embeddings)), retain_labels, retain_mask)
    to_retain = cosine_similarity(forget, retain, temperature)
    to_all = jnp.concatenate([cosine_similarity(forget, forget, temperature), to_retain], axis=1)
    own_class = forget.labels[:, None] == retain.labels[None, :]
    negatives = ~own_class & retain.counts[None, :]
    companions = (forget.labels[:, None] == forget.labels[None, :]) & ~jnp.eye(len(forget.labels), dtype=bool)
    positives = jnp.concatenate([companions & forget.counts[None, :], own_class & retain.counts[None, :]], axis=1)
    counts = forget.counts & jnp.any(negatives, axis=1)
    push = jnp.where(jnp.any(positives, axis=1), logsumexp_among(positives, to_all), 0.0)
    pull = logsumexp_among(negatives, to_retain)
    return masked_mean(jnp.asarray(push_weight, jnp.float32) * push - pull, counts)


def info_nce(
    embeddings: Float[ArrayLike, "B d"],
    other_embeddings: Float[ArrayLike, "B d"],
    mask: Mask = None,
    *,
    temperature: Scalar = 0.1,
) -> Float32[Array, ""]:
    """How well each row's other view is distinguished from those of all rows: the mean of `logsumexp_j s_ij - s_ii`.

    `s_ij` is the cosine of row i of one set and row j of the other, over the temperature (van den Oord et al.,
    arXiv:1807.03748). Gradients flow into both sets.

    Args:
        embeddings: `[B, d]`, any floating dtype; need not be normalised.
        other_embeddings: `[B, d]`, of another view of the same samples in the same order.
        mask: `[B]` bool, True where the row counts; all rows if not given. Other rows may contain NaN.
        temperature: Positive scalar; may be traced. At least 0.01 for float32 precision.

    Returns:
        A float32 scalar, in nats; 0 if no row counts.

    Raises:
        ValueError: if shapes do not match, or `temperature` is a Python number and not positive.

    >>> views = jnp.eye(2)
    >>> print(f"{info_nce(views, views, temperature=1.0):.4f} {info_nce(views, views[::-1], temperature=1.0):.4f}")
    0.3133 1.3133
    """
    _check_temperature(temperature)
    numbers = jnp.arange(jnp.shape(embeddings)[0], dtype=jnp.int32)
    rows, others = (counted_rows("view", view, numbers, mask) for view in (embeddings, other_embeddings))
    similarity = cosine_similarity(rows, others, temperature)
    losses = logsumexp_among(jnp.broadcast_to(others.counts[None, :], similarity.shape), similarity) - jnp.diag(similarity)
    return masked_mean(losses, rows.counts)


class CountedRows(NamedTuple):
    """Normalised embeddings `[B, d]`, zero for rows that do not count; labels `[B]`; which rows count, `[B]` bool."""

    embeddings: Float32[Array, "B d"]
    labels: Integer[Array, "B"]
    counts: Bool[Array, "B"]


def counted_rows(name: str, embeddings: Float[ArrayLike, "B d"], labels: Integer[ArrayLike, "B"], mask: Mask) -> CountedRows:
    """Embeddings `[B, d]` with their labels and mask, checked; the name is for messages."""
    embeddings, labels = jnp.asarray(embeddings), jnp.asarray(labels)
    counts = _mask_or_ones(name, embeddings, labels, mask)
    return CountedRows(normalize(jnp.where(counts[:, None], embeddings, 0)), labels, counts)


def cosine_similarity(rows: CountedRows, others: CountedRows, temperature: Scalar) -> Float32[Array, "B other_B"]:
    """Cosines over the temperature, `[B, other_B]`."""
    widths = rows.embeddings.shape[1], others.embeddings.shape[1]
    if widths[0] != widths[1]:
        raise ValueError(f"both sets of embeddings must have the same width, but have {widths[0]} and {widths[1]}.")
    cosines = jnp.matmul(rows.embeddings, others.embeddings.T, precision=jax.lax.Precision.HIGHEST)
    return cosines / jnp.asarray(temperature, jnp.float32)


def logsumexp_among(chosen: Bool[ArrayLike, "B n"], values: Float32[ArrayLike, "B n"]) -> Float32[Array, "B"]:
    """`logsumexp` of the chosen values of each row, or of all if none is chosen: minus infinity has no gradient."""
    chosen = jnp.asarray(chosen) | ~jnp.any(chosen, axis=1, keepdims=True)
    return jax.nn.logsumexp(jnp.where(chosen, values, -jnp.inf), axis=1)


def _check_temperature(temperature: Scalar) -> None:
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, but is {temperature}; the paper uses 0.7.")


def distillation(
    student_logits: Float[ArrayLike, "B C"],
    teacher_logits: Float[ArrayLike, "B C"],
    mask: Mask = None,
    *,
    temperature: Scalar = 1.0,
) -> Float32[Array, ""]:
    """Mean of `T² · KL(softmax(teacher / T) ‖ softmax(student / T))` over the rows that count; 0 if there are none.

    The teacher's distribution comes first (Hinton et al., arXiv:1503.02531): the student is pulled towards classes to which
    the teacher assigns probability. The sum over classes is not divided by their number. No gradient flows into the teacher.

    Args:
        student_logits: `[B, C]`, any floating dtype.
        teacher_logits: `[B, C]`; entries at minus infinity have probability 0 and contribute 0.
        mask: `[B]` bool, True where the row counts; all rows if not given. Other rows may contain NaN.
        temperature: T, a positive scalar; may be traced.

    Returns:
        A float32 scalar, in nats.

    >>> teacher = jnp.log(jnp.array([[0.9, 0.1]]))
    >>> print(f"{distillation(jnp.zeros((1, 2)), teacher):.6f} {distillation(teacher, jnp.zeros((1, 2))):.6f}")
    0.368064 0.510826
    """
    student, teacher = jnp.asarray(student_logits), jax.lax.stop_gradient(jnp.asarray(teacher_logits))
    counts = _mask_or_ones("distillation", student, jnp.zeros(student.shape[:1], jnp.int32), mask)
    if teacher.shape != student.shape:
        raise ValueError(f"student and teacher logits must have one shape, but have {student.shape} and {teacher.shape}.")

    def log_probabilities(logits: Float[Array, "B C"]) -> Float32[Array, "B C"]:
        scaled = jnp.where(counts[:, None], logits, 0).astype(jnp.float32) / jnp.asarray(temperature, jnp.float32)
        return jax.nn.log_softmax(scaled)

    log_p, log_q = log_probabilities(teacher), log_probabilities(student)
    p = jnp.exp(log_p)
    divergences = jnp.sum(jnp.where(p > 0, p * (jnp.where(p > 0, log_p, 0.0) - log_q), 0.0), axis=1)
    return jnp.asarray(temperature, jnp.float32) ** 2 * masked_mean(divergences, counts)


def cross_entropy(
    logits: Float[ArrayLike, "B C"], labels: Integer[ArrayLike, "B"], mask: Mask = None, axis_name: str | None = None
) -> Float32[Array, ""]:
    """Mean softmax cross-entropy over the rows that count; 0 if there are none.

    Args:
        logits: `[B, C]`, any floating dtype.
        labels: `[B]` integer in `[0, C)`. If they are traced, rows with other labels do not count.
        mask: `[B]` bool, True where the row counts; all rows if not given. Other rows may contain NaN.
        axis_name: As in `masked_mean`.

    Returns:
        A float32 scalar, in nats.

    Raises:
        ValueError: if shapes do not match, or labels are concrete and one of a row that counts is not in `[0, C)`.

    >>> print(cross_entropy(jnp.array([[0.0, 0.0], [jnp.nan, 0.0]]), jnp.array([1, 0]), jnp.array([True, False])))
    0.6931472
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    counts = _mask_or_ones("cross-entropy", logits, labels, mask, logits.shape[-1])
    log_probabilities = jax.nn.log_softmax(jnp.where(counts[:, None], logits, 0).astype(jnp.float32))
    losses = -jnp.take_along_axis(log_probabilities, jnp.where(counts, labels, 0)[:, None], axis=1)[:, 0]
    return masked_mean(losses, counts, axis_name)


def masked_mean(
    values: Shaped[ArrayLike, "B"], counts: Bool[ArrayLike, "B"], axis_name: str | None = None
) -> Float32[Array, ""]:
    """Mean of the values (`[B]`) that count (`[B]` bool), in float32; 0 if there are none.

    With the name of a mapped device axis: this device's share of the mean over all devices, which is the sum of the shares.
    """
    total, n = jnp.sum(jnp.where(counts, jnp.asarray(values, jnp.float32), 0.0)), jnp.sum(counts)
    if axis_name is not None:
        n = jax.lax.psum(n, axis_name)
    return total / jnp.maximum(n, 1).astype(jnp.float32)


def _mask_or_ones(name: str, rows: Array, labels: Array, mask: ArrayLike | None, classes: int | None = None) -> Array:
    """Which rows count, as defined by `counted_labels`, after checking that rows, labels and mask match."""
    mask = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask)
    if rows.ndim != 2 or labels.shape != rows.shape[:1] or mask.shape != labels.shape:
        raise ValueError(
            f"{name} rows must be [batch, width] with labels and mask of shape [batch], "
            f"but the shapes are {rows.shape}, {labels.shape} and {mask.shape}."
        )
    if mask.dtype != jnp.bool_:
        raise ValueError(f"the {name} mask must be bool (True where a row counts), but is {mask.dtype}.")
    return counted_labels(name, labels, mask, classes)
