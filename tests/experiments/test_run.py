"""Runs from data to checkpoints: continued, refused, chained, reproducible."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import cujax
from cujax.data.id_lists import hashed_id
from cujax.data.images import Data
from cujax.data.requests import ForgetClass, ForgetClasses, ForgetIds, ForgetRandom, ForgetWhere
from cujax.experiments.audit import Audit
from cujax.experiments.config import Experiment
from cujax.experiments.identity import describe
from cujax.experiments.reference_models import ReferenceModels
from cujax.experiments.request_words import describe_request
from cujax.experiments.run import prepare
from cujax.experiments.user_files import build_model
from cujax.methods import BadTeacher, ContrastiveUnlearning, MaskLogit, Retrain, SelectiveSynapticDampening, Unsir
from cujax.sharding import data_mesh
from cujax.storage.checkpoints import CheckpointError, Metadata, save_checkpoint
from cujax.storage.lineage import describe_lineage
from cujax.training.supervised import Training

METHOD = ContrastiveUnlearning(max_passes=2, learning_rate=0.05, unlearn_weight=1.0)


@pytest.fixture
def experiment(tmp_path):
    return Experiment(data=Data(limit=400), training=Training(epochs=2), method=METHOD, workdir=str(tmp_path / "run"))


def elsewhere(experiment, name, **changes):
    """The same experiment in another folder beside its own."""
    return dataclasses.replace(experiment, workdir=f"{experiment.workdir}-{name}", **changes)


def bytes_of(directory):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(directory).rglob("*") if path.is_file()}


def test_the_same_command_continues_without_computing_again(experiment):
    run = prepare(experiment)
    first = [run.original(), *run.retrained(), run.unlearned()]
    before = bytes_of(experiment.workdir)
    again = prepare(experiment)
    second = [again.original(), *again.retrained(), again.unlearned()]
    assert [checkpoint.digest for checkpoint in first] == [checkpoint.digest for checkpoint in second]
    chex.assert_trees_all_equal(first[-1].variables, second[-1].variables)
    assert bytes_of(experiment.workdir) == before


def test_the_same_seed_gives_the_same_bits_and_another_does_not(experiment):
    runs = [prepare(experiment), prepare(elsewhere(experiment, "same")), prepare(elsewhere(experiment, "other", seed=1))]
    for name in ("original", "unlearned"):
        first, same, other = (getattr(run, name)().variables for run in runs)
        chex.assert_trees_all_equal(first, same)
        assert not np.array_equal(first.params["head"]["kernel"], other.params["head"]["kernel"])


def test_an_interrupted_run_keeps_what_is_complete_and_ends_the_same(experiment, monkeypatch):
    whole = prepare(elsewhere(experiment, "whole")).unlearned()

    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    run = prepare(experiment)
    with monkeypatch.context() as patched:
        patched.setattr("cujax.methods.base.Loop._observe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.unlearned()
    assert [path.name for path in (run.workdir / "checkpoints").iterdir()] == ["original"]
    chex.assert_trees_all_equal(prepare(experiment).unlearned().variables, whole.variables)


def test_another_configuration_in_the_same_folder_is_refused_and_changes_nothing(experiment):
    prepare(experiment).original()
    before = bytes_of(experiment.workdir)
    with pytest.raises(FileExistsError, match=r"seed: 0 there, 7 now[\s\S]*--workdir"):
        prepare(dataclasses.replace(experiment, seed=7))
    assert bytes_of(experiment.workdir) == before


def test_a_folder_of_something_else_is_refused(experiment):
    folder = Path(experiment.workdir)
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        prepare(experiment)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget": ForgetClass(11)}, "class 11 does not exist.*10 classes"),
        ({"method": dataclasses.replace(METHOD, retain_batch_size=5000)}, r"retain_batch_size is 5000.*at most 3[12]\d\b"),
        ({"training": Training(batch_size=5000)}, r"training.batch_size is 5000.*at most 3[12]\d\b"),
        ({"network": "resnet"}, "'resnet' does not exist; choose one of.*small_cnn.*PATH.py:FUNCTION"),
        ({"forget": ForgetWhere(lambda name, label: False)}, "nothing to forget"),
        ({"forget": ForgetWhere(lambda name, label: True)}, "nothing would be retained"),
        ({"data": Data("missing.npz")}, "missing.npz does not exist"),
        ({"original": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(experiment, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(dataclasses.replace(experiment, **changes))
    assert not Path(experiment.workdir).exists()


def test_retrained_models_start_afresh_each_with_a_seed_of_its_own(experiment):
    run = prepare(dataclasses.replace(experiment, retrained=2))
    kernels = [np.asarray(c.variables.params["head"]["kernel"]) for c in (run.original(), *run.retrained())]
    for first in range(3):
        for second in range(first):
            correlation = np.corrcoef(kernels[first].ravel(), kernels[second].ravel())[0, 1]
            assert abs(correlation) < 0.3


def test_requests_chain_and_never_bring_back_what_was_forgotten(experiment):
    run = prepare(experiment)
    first = run.unlearned()
    given = str(run.workdir / "checkpoints" / "unlearned")
    before = bytes_of(run.workdir)
    chained = prepare(elsewhere(experiment, "next", original=given, forget=ForgetClass(3)))
    second = chained.unlearned()
    assert set(chained.split.retain.ids).isdisjoint(first.metadata.forgotten_ids)
    assert chained.split.absent_classes == (3, 5)
    assert chained.split.forgotten_classes == (3,)
    assert set(second.metadata.forgotten_ids) == set(first.metadata.forgotten_ids) | set(chained.split.forget.ids)
    assert second.metadata.parent_digest == first.digest
    assert [ancestor.kind for ancestor in second.metadata.lineage] == ["original", "unlearned"]
    assert [line.split()[0] for line in describe_lineage(second).splitlines()] == ["original", "unlearned", "unlearned"]
    assert bytes_of(run.workdir) == before
    with pytest.raises(ValueError, match="nothing to forget"):
        prepare(elsewhere(experiment, "again", original=given, forget=ForgetClass(5)))


def test_no_file_names_a_forgotten_sample_after_two_requests_with_hashed_ids(experiment, tmp_path):
    hashed = dataclasses.replace(experiment, hashed_ids=True, retrained=1, training=Training(epochs=1))
    runs = [prepare(hashed)]
    given = str(runs[0].workdir / "checkpoints" / "unlearned")
    runs[0].unlearned()
    runs.append(prepare(elsewhere(hashed, "next", original=given, forget=ForgetRandom(count=4))))
    forgotten = set()
    for run in runs:
        method = run.experiment.method
        Audit(run, "quick").findings(run.original(), run.unlearned(), method)
        shared = ReferenceModels(run, epath.Path(tmp_path / "shared"))
        shared.retrained(1)
        shared.unlearned_shadow(method, 0, 2)
        forgotten |= {*run.split.forget.ids.tolist(), *run.split.previously_forgotten.ids.tolist()}
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(forgotten) > 30 and any(hashed_id(min(forgotten)).encode() in content for content in files.values())
    found = {str(path) for path, content in files.items() if any(name.encode() in content for name in forgotten)}
    assert found == set()


def test_an_original_of_other_data_noise_or_network_is_refused(experiment, tmp_path):
    run = prepare(experiment)
    run.original()
    given = str(run.workdir / "checkpoints" / "original")
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", images=images, labels=np.arange(200) % 10)
    for changes, error, message in (
        ({"data": Data(str(tmp_path / "other.npz"))}, ValueError, "was trained on digits"),
        ({"data": Data(limit=400, label_noise=0.2)}, ValueError, "label-noise 0.0, but is 0.2 now"),
        ({"data": Data(limit=500)}, ValueError, "limit 400, but is 500 now"),
        ({"network": "cnn"}, CheckpointError, r"another network[\s\S]*missing: .*conv_2"),
    ):
        with pytest.raises(error, match=message):
            prepare(elsewhere(experiment, "x", original=given, **changes))


def test_an_unfinished_checkpoint_cannot_be_unlearned(experiment, tmp_path):
    model = build_model("small_cnn", 10)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    save_checkpoint(tmp_path / "partial", variables, Metadata("progress"))
    with pytest.raises(CheckpointError, match="unfinished"):
        prepare(dataclasses.replace(experiment, original=str(tmp_path / "partial")))


def test_an_imported_original_can_be_unlearned(experiment, tmp_path):
    model = build_model("small_cnn", 10)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    save_checkpoint(tmp_path / "mine", cujax.import_checkpoint(variables.params, model, (8, 8, 1)), Metadata("original"))
    run = prepare(dataclasses.replace(experiment, original=str(tmp_path / "mine"), retrained=0))
    assert run.unlearned().metadata.lineage[0].kind == "original"
    assert run.retrained() == []


def test_retraining_as_a_method_takes_the_recipe_of_the_experiment(experiment):
    run = prepare(dataclasses.replace(experiment, method=Retrain()))
    assert run.experiment.method == Retrain(experiment.training)
    unlearned, original = run.unlearned(), run.original()
    assert unlearned.metadata.record["cost"]["steps"] == 2 * -(-len(run.split.retain) // 64)
    kernels = [np.asarray(c.variables.params["head"]["kernel"]).ravel() for c in (original, unlearned, *run.retrained())]
    assert (np.abs(np.corrcoef(kernels)[np.triu_indices(3, 1)]) < 0.3).all()


def test_a_masked_model_is_masked_when_it_is_audited_and_cannot_be_unlearned_further(experiment):
    first = prepare(dataclasses.replace(experiment, method=MaskLogit()))
    first.unlearned()
    run = prepare(dataclasses.replace(experiment, method=MaskLogit()))
    unlearned, original = run.answers(run.unlearned()), run.answers(run.original())
    assert np.isneginf(unlearned.test.logits[:, 5]).all()
    assert np.isfinite(original.test.logits).all()
    np.testing.assert_array_equal(np.delete(unlearned.test.logits, 5, 1), np.delete(original.test.logits, 5, 1))
    given = str(run.workdir / "checkpoints" / "unlearned")
    with pytest.raises(CheckpointError, match="made by mask_logit: its parameters have forgotten nothing"):
        prepare(elsewhere(experiment, "next", original=given, forget=ForgetClass(3)))


def test_a_method_that_returns_another_model_cannot_be_saved(experiment):
    @dataclasses.dataclass(frozen=True)
    class Swaps:
        def __call__(self, model, original, split, *, key, loop):
            result = METHOD(model, original, split, key=key, loop=loop)
            return dataclasses.replace(result, model=build_model("cnn", 10))

    with pytest.raises(ValueError, match="Swaps returned another model"):
        prepare(dataclasses.replace(experiment, method=Swaps())).unlearned()


def test_all_passes_are_made_where_the_run_may_not_end_early(experiment):
    method = dataclasses.replace(METHOD, max_passes=4, forgotten_accuracy=0.999)
    runs = [prepare(elsewhere(experiment, str(early), method=method, stop_early=early)) for early in (True, False)]
    assert [len(run.unlearned().metadata.record["checks"]) for run in runs] == [2, 5]


def test_label_noise_is_recorded_by_id(experiment):
    run = prepare(dataclasses.replace(experiment, data=Data(limit=400, label_noise=0.1), forget=ForgetRandom(count=20)))
    recorded = (run.workdir / "redrawn_ids.txt").read_text().split()
    assert recorded == list(run.source.redrawn_ids)
    assert len(recorded) == round(0.1 * len(run.source.train))


def test_a_network_of_ones_own_is_found_by_path(tmp_path):
    path = tmp_path / "networks.py"
    path.write_text(
        "from cujax.networks.cnn import CNN\nimport cujax\ndef mine(n): return cujax.from_linen(CNN(n))\nx = 3\n"
    )
    assert build_model(f"{path}:mine", 7) == build_model("cnn", 7)
    with pytest.raises(ValueError, match=r"has no 'absent'; it has .*mine"):
        build_model(f"{path}:absent", 7)
    with pytest.raises(FileNotFoundError, match=r"nothere\.py does not exist"):
        build_model(f"{tmp_path}/nothere.py:mine", 7)


def test_too_few_logits_are_told(experiment, tmp_path):
    path = tmp_path / "networks.py"
    path.write_text("from cujax.networks.cnn import CNN\nimport cujax\ndef mine(n): return cujax.from_linen(CNN(n - 3))\n")
    with pytest.raises(ValueError, match="10 classes, but the network has 7 logits"):
        prepare(dataclasses.replace(experiment, network=f"{path}:mine"))


@pytest.mark.parametrize("n", [16, 24])
def test_too_few_images_to_hold_any_out_are_told(experiment, tmp_path, n):
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", images=images, labels=np.arange(n) % 4)
    with pytest.raises(
        ValueError, match=r"few\.npz has no (validation|test) sample of the retained classes.*6 training images"
    ):
        prepare(dataclasses.replace(experiment, data=Data(str(tmp_path / "few.npz")), forget=ForgetClass(1)))


def test_configurations_and_requests_become_plain_data():
    experiment = Experiment(forget=ForgetClasses((1, 2)))
    plain = json.loads(json.dumps(describe(experiment)))
    assert plain["forget"] == {"type": "ForgetClasses", "labels": [1, 2], "copies": "refuse"}
    assert plain["method"]["type"] == "ContrastiveUnlearning"
    assert describe_request(ForgetRandom(fraction=0.1)) == "ForgetRandom(fraction=0.1, seed=0)"


@pytest.mark.parametrize("changes", [{"retrained": -1}, {"retain_tolerance": 0.0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Experiment(**changes)


@pytest.mark.parametrize("changes", [{"save_steps": 0}, {"save_seconds": -1.0}])
def test_impossible_intervals_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Experiment(**changes)


def test_where_it_is_saved_how_often_is_no_other_experiment(experiment):
    prepare(experiment)
    prepare(dataclasses.replace(experiment, save_steps=3, save_seconds=None))


def test_a_disk_that_fills_up_ends_the_run_and_what_is_complete_stands(experiment, monkeypatch):
    experiment = dataclasses.replace(experiment, save_steps=5)
    run = prepare(experiment)
    original = run.original()
    with monkeypatch.context() as patched:

        def full(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        patched.setattr("orbax.checkpoint.v1.save", full)
        with pytest.raises(OSError, match=r"could not be written .*No space left.*run the same command again"):
            run.retrained()
    again = prepare(experiment)
    assert again.missing() == ["retrained_0", "unlearned"]
    assert again.original().digest == original.digest
    assert len(again.retrained()) == 1


@pytest.mark.parametrize("method", [BadTeacher, SelectiveSynapticDampening, Unsir], ids=lambda method: method.__name__)
def test_what_a_method_holds_beside_the_state_is_placed_on_all_devices(experiment, method, monkeypatch):
    """Teachers and importances start on one device, as an original does that was loaded."""
    monkeypatch.setattr("cujax.experiments.run.data_mesh", data_mesh)
    original = prepare(dataclasses.replace(experiment, retrained=0)).original()
    where = str(Path(experiment.workdir) / "checkpoints" / "original")
    unlearned = prepare(elsewhere(experiment, "from", method=method(), original=where, retrained=0)).unlearned()
    chex.assert_trees_all_equal_shapes(original.variables, unlearned.variables)


@pytest.mark.parametrize("when", ["between models", "during a model"])
def test_a_folder_that_goes_away_ends_the_run_in_a_sentence_and_it_starts_anew(experiment, when):
    run = prepare(dataclasses.replace(experiment, save_steps=1))
    if when == "between models":
        run.original()
        shutil.rmtree(run.workdir)
    else:

        @contextlib.contextmanager
        def progress(description, total):
            yield lambda n=1, note="": shutil.rmtree(run.workdir, ignore_errors=True)

        run.progress = progress
    with pytest.raises(OSError, match=r"was deleted or moved while it was in use; restore it"):
        run.original() and run.retrained()
    assert len(prepare(experiment).retrained()) == experiment.retrained


def test_a_disk_with_too_little_space_is_told_before_anything_is_written(experiment, monkeypatch):
    run = prepare(experiment)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match=r"original needs \d.*MB, but 0.0 MB are free there. Free space"):
        run.original()
    monkeypatch.undo()
    assert run.missing() == ["original", "retrained_0", "unlearned"]


def test_an_original_that_has_seen_every_image_can_forget_any(experiment, tmp_path):
    held_out = prepare(experiment).split.validation.ids.tolist()
    (tmp_path / "list.txt").write_text("\n".join(held_out[:5]))
    request = ForgetIds(str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match=r"are validation images.*--no-validation"):
        prepare(elsewhere(experiment, "held", forget=request))
    run = prepare(elsewhere(experiment, "all", forget=request, validation=False, retain_tolerance=1.0))
    assert sorted(run.split.forget.ids.tolist()) == sorted(held_out[:5])
    record = run.unlearned().metadata.record
    assert "no sample is held out" in record["stop_reason"]
    assert record["stop_rule"] == "max_passes"
    assert len(run.retrained()) == experiment.retrained


def test_an_original_that_does_not_say_what_it_has_seen_is_remarked_on(experiment, tmp_path):
    (tmp_path / "unseen.txt").write_text("\n".join(prepare(experiment).split.retain.ids[:20].tolist()))
    save_checkpoint(tmp_path / "brought", prepare(experiment).original().variables, Metadata("original"))

    def told(name, **changes) -> str:
        remarks = []
        prepare(elsewhere(experiment, name, original=str(tmp_path / "brought"), **changes), notify=remarks.append)
        return " ".join(remarks)

    assert re.search(r"does not record what it was trained on.*--no-validation.*--validation-ids FILE", told("tenth"))
    assert "trained on" not in told("none", validation=False)
    assert "trained on" not in told("named", validation_ids=str(tmp_path / "unseen.txt"))


@pytest.mark.parametrize(("limit", "tolerance", "few"), [(300, 0.05, True), (300, 0.2, False), (1500, 0.05, False)])
def test_a_tolerance_of_few_errors_is_remarked_on(experiment, limit, tolerance, few):
    remarks = []
    small = elsewhere(experiment, "small", data=Data(limit=limit), retain_tolerance=tolerance)
    split = prepare(small, notify=remarks.append).split
    retained = int(np.isin(prepare(small).source.train.labels[split.validation.indices], split.retained_classes).sum())
    assert (tolerance * retained < 3) == few
    assert any(f"on the {retained} validation samples of retained classes" in remark for remark in remarks) == few


def test_a_class_without_validation_still_ends_by_the_rule(experiment):
    record = prepare(elsewhere(experiment, "none", validation=False, method=MaskLogit())).unlearned().metadata.record
    assert record["stop_rule"] == "stop_rule"


def test_other_validation_images_are_another_experiment(experiment, tmp_path):
    run = prepare(elsewhere(experiment, "named", validation=False))
    (tmp_path / "unseen.txt").write_text("\n".join(run.split.retain.ids[:20].tolist()))
    named = elsewhere(experiment, "named", validation_ids=str(tmp_path / "unseen.txt"))
    with pytest.raises(FileExistsError, match="validation"):
        prepare(named)
    first = prepare(elsewhere(experiment, "other", validation_ids=str(tmp_path / "unseen.txt")))
    assert len(first.split.validation) == 20
    (tmp_path / "moved.txt").write_text((tmp_path / "unseen.txt").read_text())
    again = prepare(elsewhere(experiment, "other", validation_ids=str(tmp_path / "moved.txt")))
    assert again.identity == first.identity
