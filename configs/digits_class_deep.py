"""Handwritten digits (8x8, from scikit-learn); the request is class 5, with contrast below the last layer.

    uv run scripts/unlearn.py --config digits_class_deep

Measured with version 0.1, on 2 CPU cores, seed 0; a run prints its verdict: the class 0.000 on test images, on the
others 0.991 (original 0.991); a probe one layer below the embedding reads 0.74 of the class and at the embedding 0.64
(original 0.98; 16 retrained models 0.83 to 0.96 and 0.68 to 0.85). 96 steps. Settings by scripts/tune.py --objective
features, 20 trials. docs/results/beyond.md has the audit.
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
