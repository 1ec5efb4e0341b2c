"""Fashion-MNIST, the first 10,000 training images; the request is 900 random ones. Needs the TFDS data set.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config fashion_mnist_sample

A run prints its verdict. Measured with version 0.1, seeds 0 to 2, three retrained models each (mean; range in brackets):

|                             | original | retrained              | unlearned              |
|-----------------------------|----------|------------------------|------------------------|
| forget set                  | 1.000    | 0.886 (0.883–0.890)    | 0.874 (0.871–0.878)    |
| test                        | 0.871    | 0.867 (0.865–0.868)    | 0.858 (0.855–0.860)    |
| loss attack, AUC            | 0.574    | 0.506                  | 0.478 (0.465–0.487)    |
| mean gap to retrained       | 0.0395   | 0.0029 (0.0011–0.0050) | 0.0070 (0.0044–0.0090) |
| JS to retrained, forget set | 0.069    | 0.050 (each other)     | 0.102 (0.099–0.107)    |

540 to 720 steps, 0.42 to 0.56 of the operations of retraining (20 epochs). An AUC below the retrained models' means that
the loss of the samples is higher than that of samples never seen.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetRandom
from cujax.experiments.config import Experiment
from cujax.methods import MarginMatching
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetRandom(fraction=0.1),
    method=MarginMatching(),
    retrained=8,
    workdir="runs/fashion_mnist_sample",
)
