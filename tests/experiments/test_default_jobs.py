"""How many processes a command uses if the user does not say: by the work that is left, cores and memory."""

import dataclasses

import pytest
from etils import epath

from cujax import cli
from cujax.commands import train
from cujax.data.images import Data
from cujax.data.sources import load_source
from cujax.experiments import default_jobs as module
from cujax.experiments.config import Experiment
from cujax.experiments.default_jobs import available_memory, default_jobs, training_seconds
from cujax.experiments.jobs import Unit
from cujax.networks.registry import make_network
from cujax.training.supervised import Training

SOURCE = load_source(Data(limit=200))
LONG = Experiment(Data(limit=200), training=Training(epochs=20_000))
MODEL = make_network("small_cnn", 10)
NEW, DONE = (Unit("", epath.Path("here"), "", lambda kept=kept: kept, lambda: None) for kept in (False, True))


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    monkeypatch.setattr(module, "own_cores", lambda: list(range(8)))
    monkeypatch.setattr(module, "available_memory", lambda: 64 * 2**30)


def jobs(setup=LONG, units=(NEW,) * 40):
    return default_jobs(setup, MODEL, SOURCE, units)[0]


def test_long_work_is_shared_and_short_work_is_not():
    assert jobs() == 8
    assert jobs(dataclasses.replace(LONG, training=Training(epochs=2))) == 1


def test_each_process_has_two_models_at_least_and_those_on_disk_do_not_count():
    assert jobs(units=(NEW,) * 7 + (DONE,) * 100) == 3
    assert jobs(units=(DONE,) * 100) == 1


def test_memory_limits_them(monkeypatch):
    for gib, expected in ((9, 4), (3, 1), (0, 1)):
        monkeypatch.setattr(module, "available_memory", lambda gib=gib: gib * 2**30)
        assert jobs() == expected


@pytest.mark.parametrize("changes", [{"multihost": True}, {"profile": "there"}, {"models_at_once": 4}])
def test_what_one_process_computes_is_not_shared(changes):
    assert jobs(dataclasses.replace(LONG, **changes)) == 1


def test_accelerators_and_buckets_are_not_shared(monkeypatch):
    assert jobs(units=(dataclasses.replace(NEW, folder=epath.Path("gs://bucket/run")),) * 40) == 1
    monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
    assert jobs() == 1


def test_the_estimate_grows_with_the_work():
    def seconds(network="small_cnn", **recipe):
        setup = dataclasses.replace(LONG, training=Training(**recipe))
        return training_seconds(setup, make_network(network, 10), SOURCE)

    assert seconds(epochs=8) == pytest.approx(4 * seconds(epochs=2))
    assert seconds(epochs=2, batch_size=16) > seconds(epochs=2, batch_size=64)
    assert seconds("resnet18", epochs=2) > 20 * seconds(epochs=2)


def test_the_memory_of_this_machine_is_known():
    assert 2**20 < available_memory() < 2**50


def test_a_command_decides_once_and_says_so(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "default_jobs", lambda setup, model, source, units: asked.append(len(units)) or (2, 300.0))
    monkeypatch.setattr(cli, "divide", lambda setup, units, *rest: asked.append(setup.jobs))
    arguments = ["--data.limit", "200", "--training.epochs", "1", "--retrained", "2", "--workdir", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    assert asked == [3, 2]
    assert "2 processes share about 5 minutes of work; give --jobs 1 to use a single process." in capsys.readouterr().err
    for said in (["--jobs", "1"], ["--worker"]):
        asked.clear()
        assert train.main([*arguments, *said]) == 0
        assert 2 not in asked
