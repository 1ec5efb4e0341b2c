"""Fashion-MNIST, the first 10,000 training images; the request is class 5 (sandals), with contrast below the last layer.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config fashion_mnist_class_deep

A run prints its verdict. Measured with version 0.1, seeds 0 to 2 (mean; range in brackets), five retrained models:

|                             | original | retrained   | unlearned           |
|-----------------------------|----------|-------------|---------------------|
| forget class, test          | 0.954    | 0.000       | 0.000               |
| the others, test            | 0.862    | 0.863       | 0.865 (0.864–0.866) |
| probe one layer below z     | 0.958    | 0.714–0.760 | 0.770 (0.743–0.808) |
| probe at z                  | 0.965    | 0.441–0.537 | 0.462 (0.405–0.535) |
| relearning, to retrained    | 0.000    | 0.837–1.266 | 1.010 (0.865–1.202) |
| JS to retrained, forget set | 0.677    | 0.102–0.111 | 0.125 (0.113–0.136) |

112 steps, 0.26 of the operations of retraining (20 epochs). docs/results/beyond.md has all of it.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.methods import DeepContrastiveUnlearning
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetClass(5),
    method=DeepContrastiveUnlearning(),
    retrained=8,
    workdir="runs/fashion_mnist_class_deep",
)
