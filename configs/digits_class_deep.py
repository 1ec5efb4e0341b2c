"""Handwritten digits (8x8, scikit-learn's own) forget class 5 below the last layer, too. No download.

    uv run scripts/unlearn.py --config digits_class_deep

Measured on 2 CPU cores, seeds 0 to 4, three retrained models each (mean ± standard deviation): the class 0.000 on
test images, on the others 0.984 ± 0.011 (original 0.992, retrained 0.992); 104 steps, 0.93 of the operations of retraining.
Settings by scripts/tune.py, 20 trials. docs/results/beyond.md has an audit.
"""

from cujax.data.sources import Data
from cujax.experiment import Experiment
from cujax.methods import DeepContrastiveUnlearning
from cujax.training import Training

CONFIG = Experiment(
    data=Data("digits"),
    network="small_cnn",
    training=Training(epochs=40, augmentation="crop"),
    method=DeepContrastiveUnlearning(learning_rate=0.02311, unlearn_weight=0.724, push_weight=0.2241, max_passes=13),
    workdir="runs/digits_class_deep",
)
