r"""CIFAR-10 with the paper's ResNet-18; the request is class 5 (dogs). For a GPU or TPU; needs the data set (see below).

    uv run --extra cuda scripts/unlearn.py --config cifar10_resnet18_class

The recipe is the paper's, without augmentation, so that there is something to forget. With crops, flips and stronger
weight decay, it reaches a higher accuracy:

    ... --training.epochs 60 --training.weight-decay 5e-4 --training.augmentation crop_flip

The method settings are this library's defaults. The published ones are --method.learning-rate 1e-3
--method.unlearn-weight 3 --method.denominator official --method.max-passes 1 --method.forgotten-accuracy None.

Figures: NOT YET MEASURED on CIFAR-10. The configuration was run from end to end on a CPU at a reduced size, which says
nothing about accuracy:

    uv run scripts/unlearn.py --config cifar10_resnet18_class --dtype float32 --data.limit 300 --training.epochs 1 \
      --training.batch-size 64 --retrained 1 --method.max-passes 1 --method.retain-draws 1 --workdir runs/small

To prepare the data: `uv run --extra prepare scripts/prepare_data.py cifar10`, or use
--data.source ./cifar-10-binary.tar.gz.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("cifar10"),
    network="resnet18",
    dtype="bfloat16",
    training=Training(epochs=100, batch_size=256, optimizer="sgd", learning_rate=0.1, weight_decay=1e-4),
    forget=ForgetClass(5),
    retrained=3,
    workdir="runs/cifar10_resnet18_class",
)
