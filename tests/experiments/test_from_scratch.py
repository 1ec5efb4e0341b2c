"""Retrained models that take each training step together: stored, resumed and compared like those trained in turn."""

import dataclasses
import json
import signal

import chex
import jax
import pytest

from cujax.data.images import Data
from cujax.experiments.config import Experiment
from cujax.experiments.reference_models import ReferenceModels
from cujax.experiments.run import prepare
from cujax.storage.preemption import Interruption
from cujax.training.supervised import Training

DATA = Data(limit=200)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    for module in ("run", "checks"):
        monkeypatch.setattr(f"cujax.experiments.{module}.data_mesh", lambda: None)


@pytest.fixture
def experiment(tmp_path):
    return Experiment(DATA, training=Training(epochs=2), retrained=3, workdir=str(tmp_path / "together"), models_at_once=2)


def in_turn(experiment):
    return dataclasses.replace(experiment, workdir=f"{experiment.workdir}-in-turn", models_at_once=1)


def losses_of(run, name, key):
    return [json.loads(line)[key] for line in (run.workdir / "metrics" / f"{name}.jsonl").read_text().splitlines()]


def test_they_are_those_trained_in_turn(experiment):
    run, other = prepare(experiment), prepare(in_turn(experiment))
    together, alone = run.retrained(), other.retrained()
    for one, own in zip(together, alone, strict=True):
        chex.assert_trees_all_close(one.variables, own.variables, rtol=1e-3, atol=1e-4)
        assert one.metadata.forgotten_ids == own.metadata.forgotten_ids
        assert one.metadata.record["cost"]["samples"] == own.metadata.record["cost"]["samples"]
    assert not list((run.workdir / "progress").glob("*"))
    losses = losses_of(run, "retrained_0_to_retrained_1", "retrained_1/loss")
    assert losses == pytest.approx(losses_of(other, "retrained_1", "loss"), rel=1e-3)
    assert [c.digest for c in prepare(experiment).retrained()] == [c.digest for c in together]


def test_an_interrupted_group_goes_on_to_the_same_bits(experiment, monkeypatch):
    whole = prepare(dataclasses.replace(experiment, workdir=f"{experiment.workdir}-whole")).retrained()
    interruption, steps = Interruption(), []

    def interrupted_at_the_fourth_step(record, names):
        steps.append(record["step"])
        if len(steps) == 4:
            interruption._asked = signal.SIGINT
        return {"step": record["step"]}

    run = prepare(experiment, interruption=interruption)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("cujax.experiments.from_scratch._by_model", interrupted_at_the_fourth_step)
        run.retrained()
    assert not (run.workdir / "checkpoints" / "retrained_0").exists()
    told = []
    again = prepare(experiment, notify=told.append).retrained()
    assert any("retrained_0_to_retrained_1 resumes from step" in sentence for sentence in told)
    for one, own in zip(again, whole, strict=True):
        chex.assert_trees_all_equal(one.variables, own.variables)


def test_a_group_that_diverges_is_trained_one_by_one(experiment, monkeypatch):
    def diverge(*arguments, **keywords):
        raise FloatingPointError("training retrained_0 to retrained_1 diverged.")

    monkeypatch.setattr("cujax.training.supervised.Trainer.train_together", diverge)
    told = []
    models = prepare(experiment, notify=told.append).retrained()
    assert "training retrained_0 to retrained_1 diverged. The models are trained one by one." in told
    for one, own in zip(models, prepare(in_turn(experiment)).retrained(), strict=True):
        chex.assert_trees_all_equal(one.variables, own.variables)


def test_what_another_process_began_is_left_to_it(experiment):
    run = prepare(experiment)
    (run.workdir / "progress" / "retrained_0").mkdir(parents=True)
    run.retrained()
    names = {path.stem for path in (run.workdir / "metrics").glob("*.jsonl")}
    assert names == {"retrained_1_to_retrained_2", "retrained_0"}


def test_the_models_of_an_audit_are_trained_together_too(experiment, tmp_path):
    models = ReferenceModels(prepare(experiment), tmp_path / "references")
    together = models.retrained(2)
    own = ReferenceModels(prepare(in_turn(experiment)), tmp_path / "others").retrained_model(1)
    chex.assert_trees_all_close(together[1].variables, own.variables, rtol=1e-3, atol=1e-4)
    assert together[1].metadata.forgotten_ids == own.metadata.forgotten_ids


def test_where_it_cannot_be_is_told_before_anything_is_computed(experiment, monkeypatch):
    with pytest.raises(ValueError, match="models_at_once is 2, but with --jobs each process trains one model at a time"):
        dataclasses.replace(experiment, jobs=2)
    monkeypatch.setattr("cujax.experiments.checks.data_mesh", lambda: jax.sharding.Mesh(jax.devices(), "rows"))
    with pytest.raises(ValueError, match="each step is spread over all of them; leave it out"):
        prepare(experiment)
