"""CIFAR-10, ResNet-18: the request is class 5 (dogs), with contrast below the last layer. For a GPU or TPU.

    uv run --extra cuda scripts/unlearn.py --config cifar10_resnet18_class_deep

Recipe and data are those of cifar10_resnet18_class.py, whose original can be reused with --original PATH. Method
settings are those used on Fashion-MNIST. Figures: NOT YET MEASURED.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.methods import DeepContrastiveUnlearning
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("cifar10"),
    network="resnet18",
    dtype="bfloat16",
    training=Training(epochs=100, batch_size=256, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4),
    forget=ForgetClass(5),
    method=DeepContrastiveUnlearning(),
    retrained=3,
    workdir="runs/cifar10_resnet18_class_deep",
)
