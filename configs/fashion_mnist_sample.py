"""Fashion-MNIST, the first 10,000 training images; the request is 900 random ones. Needs the TFDS data set.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config fashion_mnist_sample

The method is margin matching. A run prints its verdict. On seeds 0 to 2, with eight retrained models each
(docs/results/samples.md), it was no trace found, hidden and not forgotten, once each, at 0.37 of the operations of
retraining. `method:contrastive` is the paper's method; its verdict was hidden twice and distinguishable once.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetRandom
from cujax.experiments.config import Experiment
from cujax.methods import ShrinkPerturb
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetRandom(fraction=0.1),
    method=ShrinkPerturb(),
    retrained=8,
    workdir="runs/fashion_mnist_sample",
)
