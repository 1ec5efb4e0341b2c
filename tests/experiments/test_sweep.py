"""Runs side by side: they stand on the split of the run, also where a given original forgot before."""

import json
from pathlib import Path

import numpy as np
import pytest

from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetRandom
from cujax.experiments.compare import Comparison, prepare_comparison
from cujax.experiments.config import Experiment
from cujax.experiments.request_words import request_in_words
from cujax.experiments.run import prepare
from cujax.experiments.sweep import Sweep
from cujax.experiments.tune import Tuning, prepare_tuning
from cujax.storage.checkpoints import load_checkpoint
from cujax.training.supervised import Training

# Forgot class 3 of the first 200 digits.
GIVEN = Path(__file__).parents[1] / "fixtures" / "workdir_0_1" / "checkpoints" / "unlearned"
SHARED = {"data": Data(limit=200), "training": Training(epochs=1, batch_size=32), "original": str(GIVEN)}


def test_whole_classes_and_samples_of_others_are_not_compared_or_tuned_as_one(tmp_path):
    parts = prepare(Experiment(**SHARED, workdir=str(tmp_path / "run"), forget=ForgetClass(5))).split
    (tmp_path / "list.txt").write_text("\n".join([*parts.forget.ids.tolist(), *parts.retain.ids[:6].tolist()]))
    word = f"ids:{tmp_path / 'list.txt'}"
    with pytest.raises(ValueError, match=r"all of 5 \('5'\) and 6 samples of other classes.*one request for the classes"):
        prepare_comparison(Comparison(**SHARED, workdir=str(tmp_path / "c"), requests=(word,), methods=("fine_tune",)))
    with pytest.raises(ValueError, match=r"all of 5 \('5'\) and 6 samples of other classes.*one request for the classes"):
        prepare_tuning(Tuning(**SHARED, workdir=str(tmp_path / "t"), request=word, methods=("fine_tune",)))
    assert not list(tmp_path.glob("[ct]/**/*original*"))


@pytest.mark.parametrize("request_", [ForgetClass(5), ForgetRandom(count=12)], ids=["class", "samples"])
def test_a_chained_comparison_and_tuning_have_the_split_of_the_run(request_, tmp_path):
    run = prepare(Experiment(**SHARED, workdir=str(tmp_path / "run"), forget=request_))
    word = request_in_words(request_)
    comparison = prepare_comparison(
        Comparison(**SHARED, workdir=str(tmp_path / "c"), requests=(word,), methods=("fine_tune",))
    )
    tuning = prepare_tuning(Tuning(**SHARED, workdir=str(tmp_path / "t"), request=word, methods=("fine_tune",)))
    forgotten_before = set(load_checkpoint(GIVEN).metadata.forgotten_ids)
    for split in (comparison.tasks[0].split, tuning.cells.split(request_)):
        for part in ("forget", "retain", "validation", "previously_forgotten"):
            np.testing.assert_array_equal(getattr(split, part).ids, getattr(run.split, part).ids)
        assert not forgotten_before & set(split.retain.ids.tolist())
        assert split.absent_classes == run.split.absent_classes


def test_an_original_of_other_data_is_refused_before_anything_is_computed(tmp_path):
    other = SHARED | {"data": Data(limit=150)}
    with pytest.raises(ValueError, match=r"was trained with --data\.limit 200, but is 150 now"):
        prepare_comparison(Comparison(**other, workdir=str(tmp_path / "c"), requests=("class:5",), methods=("fine_tune",)))


def test_a_source_of_ones_own_is_compared_and_tuned(tmp_path):
    source = Sweep(Comparison(data=Data(limit=200), workdir=str(tmp_path / "s"))).source
    comparison = prepare_comparison(Comparison(workdir=str(tmp_path / "c"), requests=("class:5",)), source=source)
    assert comparison.source is source
    tuning = prepare_tuning(Tuning(workdir=str(tmp_path / "t"), request="class:5"), source=source)
    assert tuning.source is source
    assert json.dumps(comparison.tasks[0].split.digest) == json.dumps(tuning.cells.split(ForgetClass(5)).digest)
