"""Another package adds a data source, a network, a method, a stop rule and a metric; nothing of cujax is touched."""

import numpy as np
import pytest

from cujax.audit.registry import all_metrics
from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.data.sources import load_source
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.methods.registry import find_method
from cujax.reports.run_report import make_report
from cujax.training.supervised import Training

THEIRS = '''
from dataclasses import dataclass

import flax.linen as nn
import numpy as np

from cujax.audit.intervals import Estimate
from cujax.audit.metric import Metric
from cujax.data.images import Images, Reader, Source
from cujax.methods.fine_tune import FineTune


def read(data, progress):
    rng = np.random.default_rng(0)

    def images(n, prefix):
        labels = np.arange(n, dtype=np.int32) % 3
        pixels = np.clip(rng.normal(60 + 60 * labels[:, None, None, None], 20, (n, 4, 4, 1)), 0, 255).astype(np.uint8)
        return Images(pixels, labels, np.array([f"{prefix}-{row}" for row in range(n)]))

    return Source("blobs", "1", images(120, "a"), images(30, "t"), ("x", "y", "z"), np.zeros(1), np.ones(1))


READER = Reader(lambda data: data.source.startswith("blobs:"), read)


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(8)(images.reshape(len(images), -1)))
        return hidden, nn.Dense(self.num_classes)(hidden)


def network(num_classes, *, dtype):
    return Net(num_classes)


@dataclass(frozen=True)
class Method(FineTune):
    """Their method.

    Attributes:
        strength: Of nothing.
    """

    strength: float = 2.0
    max_passes: int = 5


@dataclass(frozen=True)
class AfterSteps:
    def holds(self, observation):
        return "that was enough" if observation.check.step >= 2 else None


def metrics(depths):
    def answers(context, model):
        return Estimate(float(len(model.answers.forget.labels)))

    return [Metric("forget_samples", "their family", "samples", "How many are there?", answers, of_answers=True)]
'''
ENTRY_POINTS = """
[cujax.data]
blobs = their_package:READER
[cujax.networks]
their_network = their_package:network
[cujax.methods]
their_method = their_package:Method
[cujax.stop_rules]
their_rule = their_package:AfterSteps
[cujax.metrics]
their_metrics = their_package:metrics
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(THEIRS)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_one_of_each_from_another_package_takes_part_in_a_run(tmp_path):
    method = find_method("their_method")(batch_size=16)
    experiment = Experiment(
        data=Data("blobs:any"),
        network="their_network",
        training=Training(epochs=3, batch_size=16),
        workdir=str(tmp_path / "run"),
        forget=ForgetClass(1),
        method=method,
        stop_rule="their_rule",
    )
    run = prepare(experiment)
    made = make_report(run, run.original(), run.retrained(), run.unlearned())["report"]
    assert made["source"]["name"] == "blobs"
    assert made["config"]["method"]["type"] == "Method"
    assert made["stop"]["reason"] == "that was enough"
    assert made["rows"]["unlearned"]["forget_samples"] == made["split"]["forget"]


@pytest.mark.usefixtures("installed")
def test_sources_of_this_package_are_read_as_before(tmp_path):
    assert load_source(Data("digits")).name == "digits"
    np.savez(tmp_path / "own.npz", images=np.arange(144, dtype=np.uint8).reshape(9, 4, 4), labels=np.arange(9) % 3)
    assert load_source(Data(str(tmp_path / "own.npz"))).name == "own.npz"
    assert [metric.key for metric in all_metrics(("z",))][-1] == "forget_samples"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_rule": "patience"}, r"stop rule 'patience' does not exist; choose one of accuracy"),
        ({"network": "resnet9"}, r"network 'resnet9' does not exist; choose one of airbench32, "),
    ],
)
def test_what_is_not_registered_is_refused_with_the_names_there_are(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(Experiment(workdir=str(tmp_path / "run"), **settings))
