"""Fisher forgetting: adds noise where retain samples are insensitive (Golatkar et al., arXiv:1911.04933, CVPR 2020)."""

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cujax._ranges import Count, Positive, ProportionBelowOne, check_fields
from cujax.batch import Examples
from cujax.data.requests import Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.gradient_sums import GradientSums, sum_of_counted
from cujax.methods.layers import in_layers, named_layers
from cujax.methods.search_space import LogUniform, SearchSpace
from cujax.model import Model, PyTree, Variables
from cujax.sharding import replicate
from cujax.training.loop import NOTHING_YET, Cost

# The inverse information of a weight that retain samples do not need at all would be infinite.
_EPSILON = 1e-8
_LARGEST_INVERSE = 1e3
_LARGEST_INVERSE_OF_HEAD = 1e2
_FACTOR_OF_HEAD_AND_VECTORS = 10.0


@dataclass(frozen=True)
class FisherForgetting:
    """Adds Gaussian noise to the weights, once; the less a weight matters for the retain set, the larger the variance.

    The variance is `alpha · min(1 / (F + 1e-8), 1000)`, where F is the diagonal of the Fisher information of retain samples
    in eval mode: the mean over samples of the expectation, over the model's own answers, of the squared gradient of the
    cross-entropy. In the head, the inverse is at most 100; there, and in one-dimensional arrays (biases, scales), the
    variance is ten times as large.

    Attributes:
        alpha: Scale of the variance; published values range from 1e-9 to 1e-6.
        samples: Number of randomly drawn retain samples from which F is estimated; each takes one backward pass per class.
        batch_size: Rows of a batch. The gradients of all its samples are in memory at once.
        forgotten_accuracy: If whole classes are to be forgotten, they count as forgotten when accuracy on them is at most
            this. None: one divided by the number of classes.
    """

    alpha: Positive = 1e-7
    samples: Count = 1000
    batch_size: Count = 64
    forgotten_accuracy: ProportionBelowOne | None = 0.01

    search_space: ClassVar[SearchSpace] = {"alpha": LogUniform(1e-8, 1e-6)}

    def __post_init__(self) -> None:
        check_fields(self)

    def check_network(self, model: Model, params: PyTree, split: Split) -> None:
        """Raises ValueError if the network does not name its layers."""
        del split
        named_layers(model, params, "FisherForgetting")

    def __call__(self, model: Model, original: Variables, split: Split, *, key: jax.Array, loop: Loop) -> Unlearned:
        """Unlearns `split.forget` from `original`; the forget set is not used.

        Raises:
            ValueError: if the network does not name its layers.
        """
        head = in_layers(original.params, named_layers(model, original.params, "FisherForgetting")[-1:])
        sample_key, noise_key = jax.random.split(key)
        drawn = np.asarray(jax.random.permutation(sample_key, split.retain.indices))[: self.samples]

        def make() -> tuple[Variables, Cost]:
            # One answer at a time: XLA's CPU backend is many times slower if a loop over them is inside the step.
            sums = GradientSums(model, original, self.batch_size, loop)
            by_answer = [sums.over(drawn, fisher_sum, jnp.int32(answer)) for answer in range(model.num_classes)]
            total = jax.tree.map(lambda *leaves: sum(leaves), *by_answer)
            started = time.perf_counter()
            before = replicate(original.params, loop.images.mesh)
            variances = variance(jax.tree.map(lambda leaf: leaf / len(drawn), total), head, self.alpha)
            params = jax.block_until_ready(_noisy(before, variances, noise_key))
            seconds = time.perf_counter() - started
            return Variables(params, original.model_state), sums.cost + replace(NOTHING_YET, seconds=seconds, steps=1)

        return loop.once(model, original, make, split, forgotten_accuracy=self.forgotten_accuracy)


def fisher_sum(model: Model, variables: Variables, batch: Examples, answer: jax.Array) -> PyTree:
    """The contribution of one answer to the diagonal of the Fisher information, summed over the rows that count.

    This is its probability times the squared gradient of its log-probability: a tree like the parameters.

    Args:
        model: The network.
        variables: Its arrays.
        batch: The samples; their labels are not used.
        answer: int32 scalar, the class that is answered.
    """

    def of_one(row: PyTree) -> PyTree:
        def log_probability(params: PyTree) -> jax.Array:
            outputs, _ = model.apply(params, variables.model_state, jax.tree.map(lambda leaf: leaf[None], row), train=False)
            return jax.nn.log_softmax(outputs.logits[0].astype(jnp.float32))[answer]

        logarithm, gradient = jax.value_and_grad(log_probability)(variables.params)
        return jax.tree.map(lambda leaf: jnp.exp(logarithm) * jnp.square(leaf), gradient)

    return sum_of_counted(jax.vmap(of_one)(batch.inputs), batch)


def variance(fisher: PyTree, head: PyTree, alpha: float) -> PyTree:
    """The variance of the noise for each weight.

    Args:
        fisher: Diagonal of the information, a tree like the parameters.
        head: A tree of bool, True for arrays of the head.
        alpha: Scale.
    """

    def of(information: jax.Array, in_head: bool) -> jax.Array:
        inverse = jnp.minimum(1 / (information + _EPSILON), _LARGEST_INVERSE_OF_HEAD if in_head else _LARGEST_INVERSE)
        return alpha * inverse * (_FACTOR_OF_HEAD_AND_VECTORS if in_head or information.ndim == 1 else 1.0)

    return jax.tree.map(of, fisher, head)


@jax.jit
def _noisy(params: PyTree, variances: PyTree, key: jax.Array) -> PyTree:
    keys = jax.random.split(key, len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(
        lambda leaf, size, leaf_key: leaf + jnp.sqrt(size) * jax.random.normal(leaf_key, leaf.shape), params, variances, keys
    )
