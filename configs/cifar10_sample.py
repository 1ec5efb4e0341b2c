"""CIFAR-10 with a network that can be trained on two CPU cores; the request is a random 10 % of the training images.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config cifar10_sample --jobs 2

The recipe is that of cifar10_class, and the method that of fashion_mnist_sample. It showed no fault on these data
(docs/results/cifar10.md). cifar10_resnet18_sample uses the paper's network, on a GPU or TPU. To prepare the data:
`uv run --extra prepare scripts/prepare_data.py cifar10`.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetRandom
from cujax.experiments.config import Experiment
from cujax.methods import ShrinkPerturb
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("cifar10"),
    network="airbench32",
    training=Training(
        epochs=8,
        batch_size=64,
        learning_rate=0.01,
        weight_decay=0.01,
        warmup=0.25,
        augmentation="crop_flip",
    ),
    forget=ForgetRandom(fraction=0.1),
    method=ShrinkPerturb(),
    retrained=8,
    workdir="runs/cifar10_sample",
)
