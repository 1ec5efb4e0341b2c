"""L-CODEC: a Newton step per sample, on the weights that matter for it (Mehta et al., arXiv:2204.07655, CVPR 2022)."""

import functools
import math
import time
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.flatten_util import ravel_pytree

from cujax._ranges import Count, Positive, ProportionBelowOne, ProportionBetween, Range, check_fields
from cujax.batch import Examples
from cujax.data.batches import check_float_inputs, examples_at, is_float, noise_like
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.layers import in_layers, named_layers
from cujax.model import Model, PyTree, Variables
from cujax.training.loop import Cost, NotFiniteError

# Of Sekhari et al. (arXiv:2103.03279), for the cross-entropy: its Hessian's Lipschitz constant and its own.
_HESSIAN_LIPSCHITZ = 0.25
_LIPSCHITZ = 1.0
_LARGEST_BATCH = 250


@dataclass(frozen=True)
class LCodec:
    """Unlearns samples one by one, each with a Newton step on the units of the head that its loss depends on.

    A sample is perturbed by Gaussian noise many times; `foci` chooses units of the head (columns of its arrays) by how the
    loss depends on their outputs. On these weights, `θ ← θ + (H + l2 · I)⁻¹ gradient / (n - 1)` in eval mode, where n is
    the number of samples before the step and H the Hessian of the cross-entropy of the retain set. The time grows with
    samples times perturbations.

    Attributes:
        perturbations: Number of perturbed copies of each sample.
        perturbation_scale: Standard deviation of their noise, in units of the preprocessed images.
        l2: Added to the diagonal of the Hessian.
        samples: Number of randomly drawn retain samples from which H is estimated.
        epsilon: Epsilon of the published certificate (with `delta`), for which Gaussian noise is added to the weights. For a
            network, whose loss is not convex, it certifies nothing; for 10,000 samples, the published value of 0.1 means
            noise with a standard deviation of 155. None: no noise.
        delta: Delta of the certificate; see `epsilon`.
        max_samples: Requests for more samples are rejected, because they would take too long.
        forgotten_accuracy: If whole classes are to be forgotten, they count as forgotten when accuracy on them is at most
            this. None: one divided by the number of classes.
    """

    perturbations: Annotated[int, Range(3, 2**31 - 1, whole=True)] = 1000
    perturbation_scale: Positive = 0.1
    l2: Positive = 0.001
    samples: Count = 1000
    epsilon: Positive | None = None
    delta: ProportionBetween = 0.01
    max_samples: Count = 200
    forgotten_accuracy: ProportionBelowOne | None = 0.01

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, split: Split) -> None:
        """Raises ValueError if there are too many samples to remove one by one."""
        if len(split.forget) > self.max_samples:
            raise ValueError(
                f"l_codec removes samples one by one, and each takes {self.perturbations} perturbed passes and a Hessian "
                f"over {self.samples} samples; the request is for {len(split.forget)}, but max_samples is "
                f"{self.max_samples}. Request fewer samples, or raise max_samples."
            )

    def check_network(self, model: Model, params: PyTree, split: Split) -> None:
        """Raises ValueError if the network does not name its layers."""
        del split
        named_layers(model, params, "LCodec")

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`, in the order of the samples.

        Raises:
            ValueError: if there are too many samples, or the network does not name its layers.
        """
        self.check(split)
        check_float_inputs(loop.images, "l_codec perturbs inputs")
        head = named_layers(model, original.params, "LCodec")[-1]
        retain_key, key = jax.random.split(key)
        drawn = np.asarray(jax.random.permutation(retain_key, split.retain.indices))[: self.samples]

        def make() -> tuple[Variables, Cost]:
            started = time.perf_counter()
            # One device processes all samples: there is too little work to share.
            variables = _on_host(original)
            retain, n = _on_host(examples_at(loop.images, drawn)), len(split.forget) + len(split.retain)

            def spent(removed: int) -> Cost:
                passed = removed * (self.perturbations + len(drawn) + 1)
                return Cost(time.perf_counter() - started, removed, passed, None)

            with loop.progress("removing samples", len(split.forget)) as advance:
                for number, index in enumerate(split.forget.indices):
                    loop.resume_point.raise_if_interrupted()
                    example = _on_host(examples_at(loop.images, np.array([index])))
                    perturb_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
                    answers, losses = self._perturbed(model, variables, example, perturb_key)
                    units = foci(answers, losses)
                    noise = self._noise(n - number)
                    params = _newton_step(
                        model, variables, head, jnp.array(units), example, retain, self.l2, n - number, noise, noise_key
                    )
                    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
                        raise NotFiniteError(
                            f"the step that removes sample {number} of {len(split.forget)} is not finite.", spent(number + 1)
                        )
                    variables = Variables(params, variables.model_state)
                    advance(1, f"units {', '.join(map(str, units))}")
            return Variables(variables.params, original.model_state), spent(len(split.forget))

        return loop.once(model, original, make, split, forgotten_accuracy=self.forgotten_accuracy)

    def _perturbed(
        self, model: Model, variables: Variables, example: Examples, key: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits `[perturbations, C]` and losses `[perturbations]` of perturbed copies of one sample."""
        sizes = np.diff([*range(0, self.perturbations, _LARGEST_BATCH), self.perturbations])
        parts = [
            _answers(model, variables, example, jax.random.fold_in(key, number), int(size), self.perturbation_scale)
            for number, size in enumerate(sizes)
        ]
        logits, losses = (np.concatenate([np.asarray(rows) for rows in rows_of]) for rows_of in zip(*parts, strict=True))
        return logits, losses

    def _noise(self, n: int) -> float:
        if self.epsilon is None:
            return 0.0
        sensitivity = 2 * _HESSIAN_LIPSCHITZ * _LIPSCHITZ**2 / (n**2 * self.l2**3)
        return sensitivity / self.epsilon * math.sqrt(2 * math.log(1.25 / self.delta))


def _on_host(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, tree)


@functools.partial(jax.jit, static_argnames=("model", "n"))
def _answers(
    model: Model, variables: Variables, example: Examples, key: jax.Array, n: int, scale: float
) -> tuple[jax.Array, jax.Array]:
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), example.inputs)
    inputs = jax.tree.map(
        lambda leaf, noise: leaf[:1] + scale * noise if is_float(leaf) else jnp.broadcast_to(leaf[:1], noise.shape),
        example.inputs,
        noise_like(key, like),
    )
    outputs, _ = model.apply(*variables, inputs, train=False)
    logits = outputs.logits.astype(jnp.float32)
    return logits, -jax.nn.log_softmax(logits)[:, example.labels[0]]


@functools.partial(jax.jit, static_argnames=("model", "head"))
def _newton_step(
    model: Model,
    variables: Variables,
    head: str,
    units: jax.Array,
    example: Examples,
    retain: Examples,
    l2: float,
    n: int,
    noise: float,
    key: jax.Array,
) -> PyTree:
    """The parameters after the step on some units of the head, with noise of this standard deviation added to them."""
    leaves, structure = jax.tree.flatten(variables.params)
    in_head = jax.tree.leaves(in_layers(variables.params, [head]))
    chosen = [leaf[..., units] for leaf, inside in zip(leaves, in_head, strict=True) if inside]
    weights, unravel = ravel_pytree(chosen)

    def params_with(weights: jax.Array) -> PyTree:
        parts = iter(unravel(weights))
        return jax.tree.unflatten(
            structure,
            [leaf.at[..., units].set(next(parts)) if inside else leaf for leaf, inside in zip(leaves, in_head, strict=True)],
        )

    def loss(weights: jax.Array, examples: Examples) -> jax.Array:
        outputs, _ = model.apply(params_with(weights), variables.model_state, examples.inputs, train=False)
        return cross_entropy(outputs.logits, examples.labels, examples.mask)

    hessian = jax.hessian(loss)(weights, retain) + l2 * jnp.eye(len(weights))
    step = jax.scipy.linalg.solve(hessian, jax.grad(loss)(weights, example), assume_a="pos") / (n - 1)
    return params_with(weights + step + noise * jax.random.normal(key, weights.shape))


def foci(features: np.ndarray, target: np.ndarray) -> list[int]:
    """Chooses the features that the target depends on, greedily by conditional dependence, until none adds to it.

    As in FOCI (Azadkia and Chatterjee, arXiv:1910.12327), the first feature is the one on which the target depends most.
    Each further feature is the one with the largest `conditional_dependence` given those before, while that is positive.

    Args:
        features: `[m, p]`.
        target: `[m]`.

    Returns:
        Columns of `features` in the order in which they were chosen; at least one.
    """
    chosen: list[int] = []
    left = list(range(features.shape[1]))
    while left:
        gains = [conditional_dependence(target, features[:, [column]], features[:, chosen]) for column in left]
        if chosen and not max(gains) > 0:
            break
        chosen.append(left.pop(int(np.argmax(gains))))
    return chosen


def conditional_dependence(target: np.ndarray, features: np.ndarray, given: np.ndarray) -> float:
    """How much the target depends on features beyond those given: 0 for not at all, 1 for entirely (in the limit).

    From Azadkia and Chatterjee (arXiv:1910.12327). With R the rank of the target, N the nearest neighbour in the given
    features and M the nearest neighbour in both together: `sum(min(R, R_M) - min(R, R_N)) / sum(R - min(R, R_N))`. If none
    are given, with m samples and L the rank from above: `sum(m · min(R, R_M) - L²) / sum(L · (m - L))`. If the denominator
    is 0, the result is 0.

    Args:
        target: `[m]`.
        features: `[m, p]`.
        given: `[m, q]`; q may be 0.
    """
    m = len(target)
    ranks = scipy.stats.rankdata(target, "max")
    nearest = np.minimum(ranks, ranks[_nearest_other(np.concatenate([given, features], axis=1))])
    if given.shape[1]:
        before = np.minimum(ranks, ranks[_nearest_other(given)])
        above, below = np.sum(nearest - before), np.sum(ranks - before)
    else:
        from_above = scipy.stats.rankdata(-target, "max")
        above, below = np.sum(m * nearest - from_above**2), np.sum(from_above * (m - from_above))
    return float(above / below) if below else 0.0


def _nearest_other(points: np.ndarray) -> np.ndarray:
    """The nearest other row to each row."""
    _, rows = scipy.spatial.KDTree(points).query(points, k=2)
    return np.asarray(np.where(rows[:, 0] == np.arange(len(points)), rows[:, 1], rows[:, 0]))
