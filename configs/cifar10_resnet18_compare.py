"""CIFAR-10 with the paper's ResNet-18, 10 % of the training images at random: all methods and published figures.

    uv run --extra cuda scripts/tune.py --config cifar10_resnet18_compare --trials 20
    uv run --extra cuda scripts/compare.py --config cifar10_resnet18_compare --retrained 3 --seeds 0 1 2 --settings PATH

PATH is what the first command prints at its end. For a GPU or TPU; needs the data set (see cifar10_resnet18_class for
how to prepare it). For the class task, add --request class:5 to the first command and --requests class:5 to the second.
CoUn's views use only crops unless you add "augmentation": "crop_flip" to its settings in that file.

The CoUn paper (arXiv:2509.16391) reports these mean gaps to retrained models, in points, over ten trials: contrastive
unlearning 0.61, fine-tuning 0.65, NegGrad+ 0.58, SCRUB 0.62, SalUn 0.59, l1-sparse 0.38, NoT 0.30, CoUn 0.25, bad
teacher 1.58, SSD 3.83. Its retrained models have an accuracy of 100 on retained images, 95.19 on the forget set and
94.67 on test images.

Figures: NOT YET MEASURED.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetRandom
from cujax.experiments.config import Experiment
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("cifar10"),
    network="resnet18",
    dtype="bfloat16",
    training=Training(
        epochs=100, batch_size=256, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, augmentation="crop_flip"
    ),
    forget=ForgetRandom(fraction=0.1),
    retrained=3,
    workdir="runs/cifar10_resnet18_compare",
)
