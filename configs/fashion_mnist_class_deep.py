"""Fashion-MNIST, the first 10,000 training images, forgets class 5 (sandals) below the last layer, too.

TFDS_DATA_DIR=... uv run scripts/unlearn.py --config fashion_mnist_class_deep
"""

from cujax.data.requests import ForgetClass
from cujax.data.sources import Data
from cujax.experiment import Experiment
from cujax.methods import DeepContrastiveUnlearning
from cujax.training import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetClass(5),
    method=DeepContrastiveUnlearning(),
    retrained=3,
    workdir="runs/fashion_mnist_class_deep",
)
