"""CIFAR-10, ResNet-18: the request is 500 random training images. For a GPU or TPU; needs the data set.

    uv run --extra cuda scripts/unlearn.py --config cifar10_resnet18_sample

For a tenth of the training set, as in later papers, add:

    ... --workdir runs/cifar10_resnet18_tenth forget:random --forget.fraction 0.1

The recipe is the paper's, without augmentation. For how to prepare the data and train with augmentation, see
cifar10_resnet18_class.

Figures: NOT YET MEASURED on CIFAR-10.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetRandom
from cujax.experiments.config import Experiment
from cujax.methods import ContrastiveUnlearning
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("cifar10"),
    network="resnet18",
    dtype="bfloat16",
    training=Training(epochs=100, batch_size=256, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4),
    forget=ForgetRandom(count=500),
    method=ContrastiveUnlearning(forget_batch_size=128, retain_batch_size=128),
    retrained=3,
    workdir="runs/cifar10_resnet18_sample",
)
