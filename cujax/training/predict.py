"""A model's answers, in eval mode, for any number of images."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
import scipy
from scipy.special import log_softmax

from cujax.batch import Rows
from cujax.data.batches import DeviceImages, ImageSet, batches_of_all, examples_at, placed, preprocess
from cujax.model import Model, Outputs, Variables
from cujax.sharding import on_mesh, replicate, shard, whole
from cujax.training.loop import Cost, flops_of

_LARGEST_BATCH = 512


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's outputs on some images, with their labels.

    Attributes:
        logits: `[n, C]` float32.
        embeddings: `[n, d]` float32.
        labels: `[n]` int32.
        taps: By depth, shallow first, `[n, d]` float32; empty if they were not requested.
    """

    logits: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    taps: Mapping[str, np.ndarray] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> "Predictions":
        """The predictions at some rows (indices or a mask)."""
        taps = {depth: features[rows] for depth, features in self.taps.items()}
        return Predictions(self.logits[rows], self.embeddings[rows], self.labels[rows], taps)

    @property
    def features(self) -> dict[str, np.ndarray]:
        """Features by depth, with the embedding last as "z"; a tap that is the embedding is not listed twice."""
        embeddings = self.embeddings
        taps = {
            depth: tap
            for depth, tap in self.taps.items()
            if not (tap.shape == embeddings.shape and np.array_equal(tap, embeddings))
        }
        return taps | {"z": embeddings}

    def masked(self, classes: Sequence[int]) -> "Predictions":
        """The same predictions with the logits of some classes set to minus infinity."""
        logits = self.logits.copy()
        logits[:, list(classes)] = -np.inf
        return replace(self, logits=logits)


def predict(
    model: Model,
    variables: Variables,
    images: ImageSet,
    indices: np.ndarray,
    *,
    taps: bool = False,
    embeddings: bool = True,
) -> Predictions:
    """Runs the model on the images at `indices`, in their order, in batches of one static size.

    Batch sizes are powers of two, padded so that several devices can share them, so that sets of all sizes share a few
    compilations. Answers are read one batch late, so that the device need not wait for the host.

    Args:
        model: The network.
        variables: Its arrays.
        images: The images.
        indices: `[n]` rows of them.
        taps: Whether to also return the features below the last layer, as one vector per image.
        embeddings: Whether to return embeddings, which may be far larger than the logits; if not, they are `[n, 0]`.
    """
    logits, embedded = [], []
    features: defaultdict[str, list[np.ndarray]] = defaultdict(list)

    def read(outputs: Outputs, rows: Rows) -> None:
        logits.append(np.asarray(outputs.logits, np.float32)[rows.mask])
        if embeddings:
            embedded.append(np.asarray(outputs.embedding, np.float32)[rows.mask])
        for depth, tap in outputs.taps.items() if taps else ():
            features[depth].append(np.asarray(tap, np.float32)[rows.mask].reshape(rows.mask.sum(), -1))

    batch_size = min(_LARGEST_BATCH, 1 << max(len(indices) - 1, 0).bit_length())
    pending, mesh = None, images.mesh
    variables = replicate(variables, mesh)
    for arrays, rows in placed(images, batches_of_all(indices, batch_size)):
        with on_mesh(mesh):
            answer = _forward(model, variables, arrays, shard(rows, mesh)), rows
        if pending is not None:
            read(*pending)
        pending = answer
    labels = np.asarray(images.labels)[indices]
    if pending is None:
        return Predictions(np.zeros((0, model.num_classes), np.float32), np.zeros((0, 0), np.float32), labels)
    read(*pending)
    by_depth = {depth: np.concatenate(parts) for depth, parts in features.items()}
    all_embedded = np.concatenate(embedded) if embeddings else np.zeros((len(labels), 0), np.float32)
    return Predictions(np.concatenate(logits), all_embedded, labels, by_depth)


@functools.partial(jax.jit, static_argnames="model")
def _forward(model: Model, variables: Variables, arrays: DeviceImages, rows: Rows) -> Outputs:
    # Evaluation never augments, so no randomness is drawn.
    examples = preprocess(arrays, rows, jax.random.key(0))
    outputs, _ = model.apply(*variables, examples.inputs, train=False)
    gathered: Outputs = whole(outputs)
    return gathered


def cost_of_predicting(model: Model, variables: Variables, images: ImageSet, n: int) -> Cost:
    """The operations of a prediction for `n` images, as counted by the compiler; no seconds, no steps."""
    inputs = examples_at(images, np.zeros(1, np.int32)).inputs
    lowered = jax.jit(functools.partial(model.apply, train=False)).lower(*variables, inputs)
    flops = flops_of(lowered)
    return Cost(0.0, 0, 0, None if flops is None else n * flops)


def correct(predictions: Predictions) -> np.ndarray:
    """Whether the largest logit of each sample is its label's, `[n]` bool."""
    return np.asarray(predictions.logits.argmax(axis=1) == predictions.labels)


def accuracy(predictions: Predictions) -> float:
    """The share of samples whose largest logit is their label's; NaN for no samples."""
    return float(np.mean(correct(predictions))) if len(predictions.labels) else float("nan")


def sample_losses(predictions: Predictions) -> np.ndarray:
    """The cross-entropy of each sample, `[n]` float64, in nats; infinite if the label's logit is masked (-inf)."""
    log_p = log_softmax(predictions.logits.astype(np.float64), axis=1)
    return np.asarray(-log_p[np.arange(len(log_p)), predictions.labels])


def nearest_class_mean(
    features: np.ndarray, labels: np.ndarray, held_out_features: np.ndarray, held_out_labels: np.ndarray
) -> np.ndarray:
    """Whether the nearest class mean is that of the right class, `[m]` bool.

    Args:
        features: `[n, d]`, from which the class means are computed.
        labels: `[n]` integer.
        held_out_features: `[m, d]`.
        held_out_labels: `[m]` integer.
    """
    classes = np.unique(labels)
    means = np.stack([features[labels == label].mean(axis=0) for label in classes])
    return np.asarray(classes[scipy.spatial.distance.cdist(held_out_features, means).argmin(axis=1)] == held_out_labels)
