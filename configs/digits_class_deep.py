"""Handwritten digits (8x8, from scikit-learn); the request is class 5, with contrast below the last layer.

    uv run scripts/unlearn.py --config digits_class_deep

A run prints its verdict. The settings were found with version 0.1 by scripts/tune.py --objective features with 20
trials. With that version and seed 0, test accuracy is 0.000 on the class and 0.991 on the others (original 0.991), and
probes recognise less of the class than from any of 16 retrained models.
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
