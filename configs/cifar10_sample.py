"""CIFAR-10 with a network that trains on two CPU cores, asked to forget 10 % of the training images, drawn at random.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config cifar10_sample --jobs 2

The recipe is that of cifar10_class; docs/results/cifar10.md has what was measured. cifar10_resnet18_sample is the paper's
network, for a GPU or TPU. The data: `uv run --extra prepare scripts/prepare_data.py cifar10`.
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
