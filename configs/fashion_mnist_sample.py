"""Fashion-MNIST, the first 10,000 training images; the request is 900 random ones. Needs the TFDS data set.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config fashion_mnist_sample

The method is `shrink_perturb`, which passed most often (docs/results/defaults.md): no trace was found on seeds 0 to 2,
with eight retrained models each, at 0.4 of the operations of retraining. `method:contrastive` is the paper's method; its
verdict was hidden twice and distinguishable once (docs/results/samples.md).
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
