"""draft."""

from cujax.data.requests import ForgetRandom
from cujax.data.sources import Data
from cujax.experiment import Experiment
from cujax.training import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetRandom(fraction=0.1),
    retrained=3,
    workdir="runs/fashion_mnist_sample",
)
