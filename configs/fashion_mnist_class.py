"""Fashion-MNIST, the first 10,000 training images; the request is class 5 (sandals). Needs the TFDS data set.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config fashion_mnist_class

A run prints its verdict. The method is a plain baseline, retraining for 0.7 of the epochs, which passed most often
(docs/results/defaults.md). `method:contrastive` is the paper's method; docs/results/fashion_mnist_class.md has the
verdicts on it and on all other methods.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.methods import RetrainShort
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetClass(5),
    method=RetrainShort(),
    retrained=8,
    workdir="runs/fashion_mnist_class",
)
