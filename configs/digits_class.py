"""Handwritten digits (8x8, from scikit-learn); the request is class 5. The default configuration; needs no download.

    uv run scripts/unlearn.py --config digits_class

It retrains 8 models and ends with a verdict, in about 45 s on 2 CPU cores. On seeds 0 to 2, the verdict is hidden: the
class is gone from the answers, but can still be read from the features (docs/auditing.md).

Measured with version 0.1, seeds 0 to 4, one retrained model each (mean; worst seed in brackets):

|                                  | original      | retrained     | unlearned     | masked |
|----------------------------------|---------------|---------------|---------------|--------|
| class 5, test                    | 0.956         | 0             | 0             | 0      |
| other classes, test              | 0.992 (0.984) | 0.992 (0.987) | 0.993 (0.987) | 0.992  |
| cosine to the class's former mean| 0.991         | –             | 0.445 (0.473) | 0.991  |

Unlearning takes 72 to 108 steps of 128 images; retraining takes 760 steps of 64. Unlearned and retrained test accuracy
on the other classes differ by at most 0.0063 on any seed.
"""

from cujax.data.images import Data
from cujax.experiments.config import Experiment
from cujax.methods import RetrainShort
from cujax.training.supervised import Training

CONFIG = Experiment(
    data=Data("digits"),
    network="small_cnn",
    training=Training(epochs=40, augmentation="crop"),
    method=RetrainShort(share=0.7),
    retrained=8,
    workdir="runs/digits_class",
)
