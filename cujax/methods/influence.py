"""Influence unlearning: one Newton step away from the forget set (Izzo et al., arXiv:2002.10077).

The empirical Fisher matrix is used as the Hessian, as in WoodFisher (Singh and Alistarh, arXiv:2004.14340) and in the code
of Jia et al. (arXiv:2304.04934).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.flatten_util import ravel_pytree

from cujax._ranges import Count, Positive, ProportionBelowOne, check_fields
from cujax.batch import Examples
from cujax.data.requests import Split
from cujax.losses import cross_entropy
from cujax.methods.base import Loop, Unlearned
from cujax.methods.gradient_sums import GradientSums, gradient_sum
from cujax.methods.search_space import LogUniform, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.sharding import replicate
from cujax.training.loop import NOTHING_YET, Cost, NotFiniteError

_TOLERANCE = 1e-4
_MOST_PRODUCTS = 100


@dataclass(frozen=True)
class InfluenceUnlearning:
    """Adds, in a single step, `alpha · H⁻¹ v` with `v = g_f / N - g_r · N_f / (N · N_r)`.

    g_f and g_r are the sums of the gradients of the cross-entropy of the N_f forget and the N_r retain samples, in eval
    mode, `N = N_f + N_r`, and `H = I + mean of g gᵀ` over some retain samples. H is never formed: conjugate gradients solve
    for `H⁻¹ v` by products with it.

    Attributes:
        alpha: Length of the step; published values range from 1 to 20.
        samples: Number of randomly drawn retain samples that make up H.
        batch_size: Rows of a batch.
        forgotten_accuracy: If whole classes are to be forgotten, they count as forgotten when accuracy on them is at most
            this. None: one divided by the number of classes.
    """

    alpha: Positive = 5.0
    samples: Count = 1000
    batch_size: Count = 256
    forgotten_accuracy: ProportionBelowOne | None = 0.01

    search_space: ClassVar[SearchSpace] = {"alpha": LogUniform(3.0, 300.0)}

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; which retain samples make up H is random."""
        drawn = np.asarray(jax.random.permutation(key, split.retain.indices))[: self.samples]

        def make() -> tuple[Variables, Cost]:
            n_forget, n_retain = len(split.forget), len(split.retain)
            n = n_forget + n_retain
            sums = GradientSums(model, original, self.batch_size, loop)
            of_forget, of_retain = (sums.over(part.indices, gradient_sum) for part in (split.forget, split.retain))
            difference = jax.tree.map(lambda f, r: f / n - r * (n_forget / (n * n_retain)), of_forget, of_retain)
            direction = _solve(sums, difference, drawn)
            started = time.perf_counter()
            before = replicate(original.params, loop.images.mesh)
            params = jax.tree.map(lambda leaf, step: (leaf + self.alpha * step).astype(leaf.dtype), before, direction)
            last = replace(NOTHING_YET, seconds=time.perf_counter() - started, steps=1)
            return Variables(params, original.model_state), sums.cost + last

        return loop.once(model, original, make, split, forgotten_accuracy=self.forgotten_accuracy)


def _solve(sums: GradientSums, difference: PyTree, drawn: np.ndarray) -> PyTree:
    """`H⁻¹ v`, with H of the drawn samples."""
    flat, unravel = ravel_pytree(difference)

    def product(vector: np.ndarray) -> np.ndarray:
        total = sums.over(drawn, fisher_product, unravel(jnp.asarray(vector, jnp.float32)))
        return vector + np.asarray(ravel_pytree(total)[0]) / len(drawn)

    matrix = scipy.sparse.linalg.LinearOperator((flat.size, flat.size), matvec=product, dtype=np.float32)
    solution, missing = scipy.sparse.linalg.cg(matrix, np.asarray(flat), rtol=_TOLERANCE, maxiter=_MOST_PRODUCTS)
    if missing:
        raise NotFiniteError(
            f"conjugate gradients have not converged after {_MOST_PRODUCTS} products with the Hessian.", sums.cost
        )
    return unravel(jnp.asarray(solution, jnp.float32))


def fisher_product(model: Model, variables: Variables, batch: Examples, vector: PyTree) -> PyTree:
    """The sum, over the rows that count, of `g (g · vector)`, where g is the gradient of the row's cross-entropy."""

    def losses(params: PyTree) -> jax.Array:
        outputs, _ = model.apply(params, variables.model_state, batch.inputs, train=False)
        one_by_one: Callable[..., jax.Array] = jax.vmap(lambda logits, label: cross_entropy(logits[None], label[None]))
        return jnp.where(batch.counts, one_by_one(outputs.logits, batch.labels), 0.0)

    _, along = jax.jvp(losses, (variables.params,), (vector,))
    _, backward = jax.vjp(losses, variables.params)
    return backward(along)[0]
