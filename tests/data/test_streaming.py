"""A run on images that are decoded batch by batch is the run on the same images in memory, to the bit."""

import chex
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.methods import ContrastiveUnlearning
from cujax.training.supervised import Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 digits as PNG files."""
    root = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    for number, (image, label) in enumerate(zip(bunch.images[:300], bunch.target[:300], strict=True)):
        path = root / f"digit {label}" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image * (255 / 16)).astype(np.uint8)).save(path)
    return root


def test_streamed_and_in_memory_give_the_same_models_and_answers(folder, tmp_path):
    def run(name, memory_gb):
        experiment = Experiment(
            data=Data(str(folder), memory_gb=memory_gb),
            training=Training(epochs=3, batch_size=32, augmentation="crop_flip"),
            forget=ForgetClass(3),
            method=ContrastiveUnlearning(max_passes=2, forget_batch_size=16, retain_batch_size=32),
            workdir=str(tmp_path / name),
        )
        run = prepare(experiment)
        return run, run.original(), run.unlearned()

    whole, *in_memory = run("memory", 1.0)
    streaming, *streamed = run("streamed", 0.0)
    assert whole.source.class_names[3] == "digit 3"
    for one, other in zip(in_memory, streamed, strict=True):
        chex.assert_trees_all_equal(one.variables, other.variables)
    one, other = (run.answers(in_memory[1]) for run in (whole, streaming))
    np.testing.assert_array_equal(one.test.logits, other.test.logits)
    np.testing.assert_array_equal(one.forget.labels, other.forget.labels)
