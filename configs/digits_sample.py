"""draft."""

from cujax.data.requests import ForgetRandom
from cujax.data.sources import Data
from cujax.experiment import Experiment
from cujax.training import Training

CONFIG = Experiment(
    data=Data("digits", label_noise=0.2, label_noise_seed=2),
    network="small_cnn",
    training=Training(epochs=60),
    forget=ForgetRandom(fraction=0.1),
    retrained=3,
    retain_tolerance=0.15,
    workdir="runs/digits_sample",
)
