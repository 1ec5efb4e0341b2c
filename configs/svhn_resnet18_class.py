"""SVHN (street view house numbers) with a ResNet-18: the request is class 5. For a GPU or TPU.

    uv run --extra prepare scripts/prepare_data.py svhn_cropped      # once
    uv run --extra cuda scripts/unlearn.py --config svhn_resnet18_class

Figures: NOT YET MEASURED on SVHN.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("svhn_cropped"),
    network="resnet18",
    dtype="bfloat16",
    training=Training(epochs=100, batch_size=256, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4),
    forget=ForgetClass(5),
    retrained=3,
    workdir="runs/svhn_resnet18_class",
)
