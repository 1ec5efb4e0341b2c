"""What makes two experiments the same: what is computed, not where it lies, and as in 0.1."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetRandom
from cujax.experiments.config import Experiment
from cujax.experiments.identity import digest_of, identity
from cujax.experiments.run import prepare
from cujax.methods import FineTune, MaskLogit, Unsir
from cujax.training.supervised import Training

# What 0.1 took the digest of, for the defaults.
OF_0_1 = {
    "type": "Experiment",
    "data": {
        "type": "Data",
        "source": "digits",
        "limit": None,
        "label_noise": 0.0,
        "label_noise_seed": 0,
        "image_size": None,
        "skip_bad": False,
        "memory_gb": 4.0,
    },
    "network": "small_cnn",
    "dtype": "float32",
    "training": {
        "type": "Training",
        "epochs": 20,
        "batch_size": 64,
        "optimizer": "adam",
        "learning_rate": 0.002,
        "weight_decay": 0.0,
        "augmentation": "none",
    },
    "retain_tolerance": 0.05,
    "stop_early": True,
    "seed": 0,
    "deterministic": False,
    "forget": {"type": "ForgetClass", "label": 5},
    "method": {
        "type": "ContrastiveUnlearning",
        "learning_rate": 0.02,
        "momentum": 0.9,
        "unlearn_weight": 0.3,
        "retain_weight": 1.0,
        "temperature": 0.7,
        "denominator": "paper",
        "batch_norm": "joint",
        "retain_draws": 4,
        "forget_batch_size": 64,
        "retain_batch_size": 64,
        "queue_size": 0,
        "max_passes": 100,
        "forgotten_accuracy": 0.01,
    },
}
FINE_TUNE = {
    "type": "FineTune",
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "max_passes": 10,
    "forgotten_accuracy": 0.01,
}
UNSIR = FINE_TUNE | {
    "type": "Unsir",
    "optimizer": "adam",
    "learning_rate": 0.02,
    "weight_decay": 0.0,
    "max_passes": 1,
    "repair_learning_rate": 0.01,
    "retain_per_class": 1000,
    "noise_batch_size": 128,
}
SAMPLES = {"type": "ForgetRandom", "count": None, "fraction": 0.1, "seed": 3}


def sha256(described):
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize(
    ("experiment", "described"),
    [
        (Experiment(), OF_0_1),
        (Experiment(method=FineTune()), OF_0_1 | {"method": FINE_TUNE}),
        (Experiment(method=Unsir()), OF_0_1 | {"method": UNSIR}),
        (Experiment(method=Unsir(optimizer="adam")), OF_0_1 | {"method": UNSIR}),
        (Experiment(forget=ForgetRandom(fraction=0.1, seed=3)), OF_0_1 | {"forget": SAMPLES}),
        (Experiment(data=Data(limit=7)), OF_0_1 | {"data": OF_0_1["data"] | {"limit": 7}}),
    ],
    ids=["defaults", "fine_tune", "unsir", "adam", "samples", "limit"],
)
def test_digests_are_those_of_0_1(experiment, described):
    assert digest_of(identity(experiment)) == sha256(described)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": Data(memory_gb=1.0)},
        {"data": Data(data_dir="elsewhere")},
        {"workdir": "elsewhere"},
        {"retrained": 3},
        {"original": "elsewhere"},
        {"tensorboard": True},
        {"steps_per_call": 4},
        {"models_at_once": 2},
        {"profile": "elsewhere"},
        {"multihost": True},
        {"save_seconds": None},
        {"save_steps": 3},
        {"jobs": 4},
        {"worker": True},
        {"cluster": "tcp://scheduler:8786"},
    ],
    ids=str,
)
def test_what_cannot_change_a_result_is_not_part_of_it(changes):
    assert digest_of(identity(Experiment(**changes))) == digest_of(identity(Experiment()))


CHANGES = {
    "validation": False,
    "data": Data(label_noise=0.1),
    "network": "cnn",
    "dtype": "bfloat16",
    "training": Training(epochs=3),
    "retain_tolerance": 0.1,
    "stop_early": False,
    "seed": 1,
    "deterministic": True,
    "forget": ForgetClass(4),
    "method": MaskLogit(),
}


def test_everything_else_is_part_of_it():
    digests = {digest_of(identity(Experiment(**{name: value}))) for name, value in CHANGES.items()}
    assert len(digests - {digest_of(identity(Experiment()))}) == len(CHANGES)
    elsewhere = {"workdir", "retrained", "original", "tensorboard", "steps_per_call", "profile", "multihost"}
    elsewhere |= {"models_at_once", "save_seconds", "save_steps", "stop_rule", "audit", "require", "requested_by", "ticket"}
    elsewhere |= {"validation_ids", "hashed_ids", "jobs", "worker", "cluster"}
    assert {field.name for field in dataclasses.fields(Experiment)} == set(CHANGES) | elsewhere


def test_the_way_to_a_file_does_not_matter_and_its_content_does(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    contents = {"images": rng.integers(0, 256, (120, 8, 8), dtype=np.uint8), "labels": np.arange(120) % 4}
    np.savez(tmp_path / "a.npz", **contents)
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(forget=ForgetClass(1), method=MaskLogit(), retrained=0, workdir=str(tmp_path / "run"))

    def run_on(source, **options):
        return prepare(dataclasses.replace(experiment, data=Data(source, **options)))

    first = run_on("./a.npz")
    for again in (run_on("a.npz"), run_on(str(tmp_path / "a.npz")), run_on("a.npz", memory_gb=1.0)):
        assert again.identity == first.identity
    contents["images"][3, 2, 1] ^= 1
    np.savez(tmp_path / "a.npz", **contents)
    with pytest.raises(FileExistsError, match=r"source_version: sha256 \w+ there, sha256 \w+ now"):
        run_on("a.npz")


def test_a_network_of_ones_own_is_known_by_its_content_and_not_its_folder(tmp_path):
    digests = []
    for folder, text in (("a", "def mine(n): ...\n"), ("b", "def mine(n): ...\n"), ("c", "def mine(n): return 1\n")):
        path = tmp_path / folder / "net.py"
        path.parent.mkdir()
        path.write_text(text)
        digests.append(digest_of(identity(Experiment(network=f"{path}:mine"))))
    assert digests[0] == digests[1] != digests[2]
