"""CIFAR-10 with a network that can be trained on two CPU cores; the request is class 5 (dogs). Needs the TFDS data set.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config cifar10_class --jobs 2

The method is that of fashion_mnist_class. On these data it leaves nothing of the class, but costs 1.4 points of retained
accuracy, so its verdict is "Damaged"; no other method that was measured is without a fault (docs/results/cifar10.md).
`method:undo` answers like a retrained model and costs less accuracy, but more of the class is left in its features.
`method:retrain` is certain. cifar10_resnet18_class uses the paper's network, on a GPU or
TPU. To prepare the data: `uv run --extra prepare scripts/prepare_data.py cifar10`.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.methods import RetrainShort
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
    forget=ForgetClass(5),
    method=RetrainShort(),
    retrained=8,
    workdir="runs/cifar10_class",
)
