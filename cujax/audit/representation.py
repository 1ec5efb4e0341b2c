"""Where embeddings lie."""

import numpy as np

from cujax.inference import Predictions


def class_means(predictions: Predictions) -> dict[int, np.ndarray]:
    """The mean of each class's L2-normalised embeddings, itself normalised, `[d]`."""
    embeddings = _unit(predictions.embeddings)
    labels = predictions.labels
    return {int(label): _unit(embeddings[labels == label].mean(axis=0)) for label in np.unique(labels)}


def cosine_to_class_means(predictions: Predictions, means: dict[int, np.ndarray]) -> float:
    """Mean cosine of the embeddings to the mean of their own class; 1 if they lie on it."""
    own = np.stack([means[int(label)] for label in predictions.labels])
    return float(np.mean(np.sum(_unit(predictions.embeddings) * own, axis=1)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
