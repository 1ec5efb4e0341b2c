"""A run of the command on a table and on a series: the default network reads both, and the report is whole."""

import json

import numpy as np
import pytest

import cujax
from cujax.audit.verdict import ORDER
from cujax.experiments.audit import Audit
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.training.supervised import Training

RNG = np.random.default_rng(0)
LABELS = np.arange(150) % 3


def experiment(tmp_path, rows, labels=LABELS, **settings):
    np.savez(tmp_path / "own.npz", labels=labels, **rows)
    method = cujax.ContrastiveUnlearning(max_passes=1, retain_batch_size=32, forget_batch_size=32)
    common = {"training": Training(epochs=2, batch_size=32), "method": method}
    common |= {"forget": cujax.ForgetClass(1), "retrained": 0, "workdir": str(tmp_path / "run")} | settings
    return Experiment(data=cujax.Data(str(tmp_path / "own.npz")), **common)


@pytest.mark.parametrize(
    "rows",
    [
        {"inputs": RNG.normal(size=(150, 5)) + LABELS[:, None]},
        {"inputs/heart": RNG.normal(size=(150, 8, 2)) + LABELS[:, None, None], "inputs/age": RNG.normal(size=(150, 1))},
    ],
    ids=["table", "series"],
)
def test_a_run_ends_in_a_verdict(tmp_path, rows):
    run = prepare(experiment(tmp_path, rows))
    assert run.experiment.network == "mlp"
    unlearned = run.unlearned()
    findings = Audit(run, "quick").findings(run.original(), unlearned, None)
    assert findings.verdict.n_retrained == 0
    assert unlearned.metadata.method == "ContrastiveUnlearning"
    described = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    assert described["network"] == "mlp"


def test_one_retained_class_is_enough(tmp_path):
    labels = LABELS % 2
    run = prepare(experiment(tmp_path, {"inputs": RNG.normal(size=(150, 5)) + labels[:, None]}, labels, retrained=1))
    assert run.split.retained_classes == (0,)
    unlearned = run.unlearned()
    findings = Audit(run, "quick").findings(run.original(), unlearned, run.retrained())
    assert findings.verdict.word in ORDER
    assert findings.verdict.n_retrained == 1


def test_networks_for_images_are_refused_and_nothing_is_augmented(tmp_path):
    rows = {"inputs": RNG.normal(size=(150, 5))}
    with pytest.raises(ValueError, match=r"network cnn takes images .*--network mlp"):
        prepare(experiment(tmp_path, rows, network="cnn"))
    said = []
    run = prepare(experiment(tmp_path, rows, training=Training(batch_size=32, augmentation="crop")), notify=said.append)
    assert run.experiment.training.augmentation == "none"
    assert "nothing is augmented" in said[0]


@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (1000.0, True)])
def test_a_table_that_is_not_standardised_is_remarked_on(tmp_path, scale, told):
    columns = RNG.normal(size=(150, 5)) * np.array([1, 1, 1, 1, scale])
    remarks = []
    trained_on = prepare(experiment(tmp_path, {"inputs": columns}), notify=remarks.append).source.train.images
    largest = f"are as large as {np.abs(trained_on).max():g}"
    assert any(largest in remark and "standardise" in remark for remark in remarks) == told


def test_tokens_are_not_asked_to_be_standardised(tmp_path):
    remarks = []
    tokens = {"inputs/words": RNG.integers(0, 500, size=(150, 5)), "inputs/age": RNG.normal(size=(150, 1))}
    prepare(experiment(tmp_path, tokens), notify=remarks.append)
    assert not any("standardise" in remark for remark in remarks)
