"""Fashion-MNIST, the first 10,000 training images, class 5 (sandals): each method where it does what its paper says.

    TFDS_DATA_DIR=... uv run scripts/reproduce.py --task fashion_mnist_class

Each method makes all its passes, as in its authors' code: no stop rule ends it. Settings were tried by hand, on validation
data of seed 0. docs/results/reproductions.md has what was reached.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.experiments.reproductions import Reproduction
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetClass(5),
    stop_early=False,
    workdir="runs/reproductions/fashion_mnist_class",
)

REPRODUCTIONS: dict[str, Reproduction] = {
    "selective_synaptic_dampening": Reproduction(),
    "neg_grad_plus": Reproduction(departs="Adam for SGD; one pass for five."),
    "unsir": Reproduction(),
    "contrastive": Reproduction(departs="Adam for SGD; a third of the weight."),
    "deep_contrastive": Reproduction(),
    "exact_unlearn_last_k": Reproduction(departs="A learning rate of .04 for .01; 5 passes for 10."),
    "delete": Reproduction(departs="A learning rate of .02 for 1e-4; batches of 64 for 128; 2 passes for 20."),
    "bad_teacher": Reproduction(departs="A learning rate of .0074 for 1e-4; 5 passes for one."),
    "boundary_shrink": Reproduction(departs="A learning rate of .003 for 1e-5."),
    "scrub": Reproduction(departs="Adam; forget batches of 64 for 512, and the larger α of the settings for small sets."),
    "random_labels": Reproduction(departs="Batches of 64 for 256; 4 passes for 10."),
    "salun": Reproduction(departs="Batches of 64 for 256; 4 passes for 10."),
}
