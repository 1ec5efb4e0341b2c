"""A working folder, checkpoints and settings that 0.1.0 wrote are still read, and mean the same."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from cujax.data.images import Data
from cujax.data.requests import ForgetClass
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.experiments.tune import Tuning, read_settings
from cujax.methods.contrastive import ContrastiveUnlearning
from cujax.methods.registry import find_method, make_method
from cujax.methods.scrub import Scrub
from cujax.storage.checkpoints import load_checkpoint
from cujax.storage.lineage import verify_lineage
from cujax.storage.records import json_digest
from cujax.training.supervised import Training

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "fixtures" / "workdir_0_1"


@pytest.fixture
def workdir(tmp_path):
    return shutil.copytree(STORED, tmp_path / "run")


def experiment(workdir, **changes):
    settings = {
        "data": Data(limit=200),
        "training": Training(epochs=1, batch_size=32, augmentation="crop"),
        "workdir": str(workdir),
        "forget": ForgetClass(3),
        "method": ContrastiveUnlearning(max_passes=1, retain_batch_size=32),
    }
    return Experiment(**settings | changes)


def test_the_folder_is_continued_without_computing_anything(workdir, monkeypatch):
    def never(*arguments, **keywords):
        raise AssertionError("a model that is there was computed again")

    monkeypatch.setattr("cujax.experiments.from_scratch.FromScratch.train", never)
    monkeypatch.setattr("cujax.experiments.run.Run.unlearn", never)
    run = prepare(experiment(workdir))
    assert [run.original().metadata.kind, run.retrained()[0].metadata.kind, run.unlearned().metadata.kind] == [
        "original",
        "retrained",
        "unlearned",
    ]


def test_its_digest_is_the_one_that_progress_was_saved_under(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    assert prepare(experiment(workdir)).identity == json_digest(stored)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": Training(epochs=2, batch_size=32, augmentation="crop")},
        {"seed": 1},
        {"method": ContrastiveUnlearning(max_passes=2, retain_batch_size=32)},
    ],
)
def test_another_configuration_is_refused_there(workdir, changes):
    with pytest.raises(FileExistsError, match="contains a run of another configuration"):
        prepare(experiment(workdir, **changes))


def test_its_unlearned_model_can_be_unlearned_again(workdir, tmp_path):
    given = str(workdir / "checkpoints" / "unlearned")
    run = prepare(experiment(tmp_path / "next", original=given, forget=ForgetClass(5)))
    assert set(load_checkpoint(given).metadata.forgotten_ids) == set(run.split.previously_forgotten.ids.tolist())


def test_its_lineage_is_verified(workdir):
    links = verify_lineage(workdir / "checkpoints" / "unlearned")
    assert [(link.model.kind, link.verified, link.problem) for link in links] == [
        ("original", True, ""),
        ("unlearned", True, ""),
    ]


@pytest.mark.parametrize("name", ["digits_class", "fashion_mnist_sample"])
def test_its_settings_are_read(name):
    settings = read_settings(Path(__file__).parents[1] / "fixtures" / "settings_0_1" / f"{name}.json")
    for method, found in settings["methods"].items():
        make_method(find_method(method), method, found["settings"])


def test_renamed_values_are_aliases():
    assert Training(optimizer="adam") == Training(optimizer="adamw")
    assert Scrub(optimizer="adam") == Scrub(optimizer="adamw")
    assert dataclasses.asdict(Scrub(optimizer="adam"))["optimizer"] == "adamw"
    assert Tuning(request="class:5", sampler="random") == Tuning(request="class:5", sampler="halton")
