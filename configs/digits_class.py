"""Handwritten digits (8x8, from scikit-learn); the request is class 5. The default configuration; needs no download.

    uv run scripts/unlearn.py --config digits_class

A run trains the original and 8 retrained models, and ends with a verdict. It takes about two minutes on 2 CPU cores. The
method is a plain baseline, retraining for 0.7 of the epochs, which passed most often (docs/results/defaults.md).
`method:contrastive` is the paper's method. On seeds 0 to 7, its verdict is hidden: the class is gone from the answers,
but can still be read from the features.
"""

from cujax.data.images import Data
from cujax.experiments.config import Experiment
from cujax.methods import RetrainShort
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("digits"),
    network="small_cnn",
    training=Training(epochs=40, augmentation="crop"),
    method=RetrainShort(),
    retrained=8,
    workdir="runs/digits_class",
)
