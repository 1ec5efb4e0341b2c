"""Fashion-MNIST, the first 10,000 training images; the request is class 5 (sandals). Needs the TFDS data set.

    TFDS_DATA_DIR=... uv run scripts/unlearn.py --config fashion_mnist_class

A run prints its verdict. Measured with version 0.1, seeds 0 to 2, three retrained models each (mean; range in brackets):

|                                   | original | retrained           | unlearned           | masked |
|-----------------------------------|----------|---------------------|---------------------|--------|
| class 5, test                     | 0.954    | 0                   | 0                   | 0      |
| other classes, test               | 0.862    | 0.863 (0.862–0.864) | 0.868 (0.865–0.870) | 0.865  |
| cosine to the class's former mean | 0.996    | –                   | 0.532 (0.508–0.548) | 0.996  |
| JS to retrained, forget set       | 0.677    | 0.122 (each other)  | 0.452 (0.441–0.463) | 0.394  |

Unlearning takes 672 to 1,008 steps, which is 0.52 to 0.78 of the operations of retraining (20 epochs). The class is
gone from the answers. The classes predicted instead differ from those of a retrained model (JS), as much as if the
logit were merely masked.
"""

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.methods import RetrainShort
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("fashion_mnist", limit=10_000),
    network="cnn",
    training=Training(epochs=20),
    forget=ForgetClass(5),
    method=RetrainShort(share=0.7),
    retrained=8,
    workdir="runs/fashion_mnist_class",
)
