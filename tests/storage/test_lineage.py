"""Requests in sequence: A, then B, then C, on digits, end to end; and the ledger that they leave."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetIds, ForgetRandom
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.methods import ContrastiveUnlearning
from cujax.reports.run_report import report_on
from cujax.storage.checkpoints import CheckpointError, load_checkpoint
from cujax.storage.lineage import deletions, verify_lineage
from cujax.training.supervised import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Three runs, each starting from the model that the one before unlearned."""
    folder = tmp_path_factory.mktemp("chain")
    first = Experiment(
        data=Data(limit=700),
        training=Training(epochs=4),
        method=ContrastiveUnlearning(max_passes=5),
        forget=ForgetRandom(count=40, seed=3),
        workdir=str(folder / "a"),
    )
    runs = [prepare(first)]
    runs[0].unlearned()
    (folder / "ids.txt").write_text("\n".join(runs[0].split.retain.ids[::-1][:20]))
    for name, request in (("b", ForgetIds(str(folder / "ids.txt"))), ("c", ForgetClass(2))):
        given = str(runs[-1].workdir / "checkpoints" / "unlearned")
        runs.append(prepare(dataclasses.replace(first, forget=request, original=given, workdir=str(folder / name))))
        runs[-1].unlearned()
    last = runs[-1]
    report_on(last, last.original(), last.retrained(), last.unlearned(), last.workdir)
    return runs


def test_what_was_forgotten_is_in_no_later_set(chain):
    forgotten = set()
    for run in chain:
        for part in (run.split.retain, run.split.validation, run.split.forget):
            assert forgotten.isdisjoint(part.ids)
        forgotten |= set(run.split.forget.ids)
        assert set(run.unlearned().metadata.forgotten_ids) == forgotten
    assert set(chain[-1].retrained()[0].metadata.forgotten_ids) == forgotten


def test_the_last_model_knows_every_request_its_method_its_time_and_its_samples(chain):
    found = deletions(chain[-1].unlearned())
    random, listed, of_class = (deletion.request for deletion in found)
    assert random == "40 training samples, drawn at random with seed 3"
    assert listed.endswith("ids.txt")
    assert of_class.startswith("class 2")
    assert [set(deletion.ids) for deletion in found] == [set(run.split.forget.ids) for run in chain]
    assert {deletion.method for deletion in found} == {"ContrastiveUnlearning"}
    assert [deletion.created for deletion in found] == [run.unlearned().metadata.created for run in chain]


def test_the_report_says_how_earlier_samples_fare(chain):
    report = json.loads((chain[-1].workdir / "report.json").read_text())
    earlier = report["previous_requests"]
    assert [request["n"] for request in earlier] == [40, 20]
    assert [request["request"].split()[0] for request in earlier] == ["40", "the"]
    run = chain[-1]
    rows = run.split.previously_forgotten.indices[np.isin(run.split.previously_forgotten.ids, chain[1].split.forget.ids)]
    answers = prepare(dataclasses.replace(chain[1].experiment)).answers(run.unlearned())
    assert len(rows) == 20
    assert earlier[1]["unlearned"] == pytest.approx(np.mean(answers.forget.logits.argmax(1) == answers.forget.labels))
    assert all(0 <= request[model] <= 1 for request in earlier for model in ("original", "unlearned", "retrained"))
    assert "Earlier requests" in (run.workdir / "report.html").read_text()


def test_the_chain_is_verified_link_by_link(chain):
    links = verify_lineage(chain[-1].workdir / "checkpoints" / "unlearned")
    assert [link.model.kind for link in links] == ["original", "unlearned", "unlearned", "unlearned"]
    assert all(link.verified and not link.problem for link in links)
    assert [link.path.parents[1].name for link in links] == ["a", "a", "b", "c"]


def test_what_is_gone_damaged_or_another_is_told(chain, tmp_path):
    last, first = (run.workdir / "checkpoints" for run in (chain[-1], chain[0]))
    kept = tmp_path / "kept"
    (first / "original").rename(kept)
    try:
        links = verify_lineage(last / "unlearned")
        assert [link.verified for link in links] == [False, True, True, True]
        assert not any(link.problem for link in links)
        shutil.copytree(first / "unlearned", first / "original")
        assert "there is another model there" in verify_lineage(last / "unlearned")[0].problem
        for file in Path(first / "original").rglob("d/*"):
            file.write_bytes(file.read_bytes()[:-30] + bytes(30))
        assert "damaged" in verify_lineage(last / "unlearned")[0].problem
    finally:
        shutil.rmtree(first / "original", ignore_errors=True)
        kept.rename(first / "original")
    with pytest.raises(FileNotFoundError, match="nothing"):
        verify_lineage(tmp_path / "nothing")


def test_a_damaged_checkpoint_says_nothing_of_its_ancestors(chain, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(chain[0].workdir / "checkpoints" / "unlearned", copy)
    for file in copy.rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-30] + bytes(30))
    with pytest.raises(CheckpointError):
        verify_lineage(copy)
    assert load_checkpoint(chain[0].workdir / "checkpoints" / "unlearned").digest == chain[0].unlearned().digest
