"""draft"""

from cujax.data.sources import Data
from cujax.experiment import Experiment
from cujax.training import Training

CONFIG = Experiment(
    data=Data("digits"),
    network="small_cnn",
    training=Training(epochs=40, augmentation="crop"),
    workdir="runs/digits_class",
)
