"""Handwritten digits (8x8, from scikit-learn); the request is class 5, with contrast below the last layer.

    uv run scripts/unlearn.py --config digits_class_deep

A run prints its verdict. Settings by scripts/tune.py --objective features, 20 trials, with version 0.1, which measured on
seed 0: the class 0.000 on test images, the others 0.991 (original 0.991), and probes that read less of the class than from
the least of 16 retrained models.
"""

from cujax.data.images import Data
from cujax.experiments.config import Experiment
from cujax.methods import DeepContrastiveUnlearning
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("digits"),
    network="small_cnn",
    training=Training(epochs=40, augmentation="crop"),
    method=DeepContrastiveUnlearning(learning_rate=0.01197, unlearn_weight=0.06648, push_weight=0.6694, max_passes=12),
    retrained=8,
    workdir="runs/digits_class_deep",
)
