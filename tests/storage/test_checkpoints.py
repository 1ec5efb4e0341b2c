"""Checkpoints come back as they were, or are refused: never silently other numbers."""

import errno
import json
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from cujax.adapters import from_linen
from cujax.data.requests import ids_digest
from cujax.model import Variables, abstract_variables
from cujax.networks.cnn import CNN
from cujax.storage import checkpoints
from cujax.storage.checkpoints import (
    Ancestor,
    CheckpointError,
    Metadata,
    load_checkpoint,
    load_progress,
    save_checkpoint,
    save_progress,
    to_plain,
)
from cujax.storage.imports import import_checkpoint
from cujax.storage.lineage import describe_lineage
from cujax.storage.orbax import remove_leftovers

# When a load fails half-way, Orbax leaves coroutines of its own unawaited.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHAPE = (8, 8, 1)
MODEL = from_linen(CNN(3, features=(4, 4), hidden_dim=8, embedding_dim=5))
METADATA = Metadata(
    "unlearned",
    source="digits",
    source_version="1",
    config={"seed": 3, "nested": {"rate": 0.1, "none": None, "list": [1, 2]}},
    request="ForgetClass(label=5)",
    forgotten_ids=("a", "ä", "c"),
    lineage=(Ancestor("original", "0" * 64, "", 0, ids_digest(())),),
    record={"cost": {"steps": 4}},
)


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))


@pytest.fixture(scope="module")
def saved(variables, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "checkpoint"
    return directory, save_checkpoint(directory, variables, METADATA)


def test_arrays_and_metadata_come_back(saved, variables):
    directory, written = saved
    loaded = load_checkpoint(directory)
    chex.assert_trees_all_equal(loaded.variables, variables)
    assert loaded.metadata == written.metadata == METADATA
    assert loaded.digest == written.digest
    assert loaded.metadata.parent_digest == "0" * 64


def test_metadata_carries_its_schema_and_that_of_0_1_and_of_a_later_version_are_known(saved, variables, tmp_path):
    _, written = saved
    assert written.metadata.schema == checkpoints.SCHEMA
    fixture = Path(__file__).parents[1] / "fixtures" / "workdir_0_1" / "checkpoints" / "original"
    assert load_checkpoint(fixture).metadata.schema == 1
    save_checkpoint(tmp_path / "later", variables, replace(METADATA, schema=checkpoints.SCHEMA + 1))
    with pytest.raises(CheckpointError, match=r"written by a newer version of cujax.*update cujax"):
        load_checkpoint(tmp_path / "later")


def test_a_digest_is_compared_with_what_lies_at_a_path(saved, tmp_path):
    directory, written = saved
    assert checkpoints.digest_problem(directory, written.digest) == ""
    assert checkpoints.digest_problem(directory, "0" * 64).endswith(f"its digest is {written.digest}")
    assert checkpoints.digest_problem(tmp_path / "none", written.digest) == "there is no checkpoint there now"
    assert checkpoints.digest_problem(tmp_path, written.digest) == "the checkpoint there now has no digest"


def test_any_tree_of_arrays_comes_back_in_the_structure_asked_for(tmp_path):
    params = {"layers": [jnp.ones(2), (jnp.arange(3), jnp.full((2, 2), 0.1, jnp.bfloat16))], "scalar": jnp.float32(7)}
    tree = Variables(params, {"batch_stats": {"mean": jnp.zeros(3)}})
    save_checkpoint(tmp_path / "x", tree, Metadata("original"))
    loaded = load_checkpoint(tmp_path / "x", like=tree)
    chex.assert_trees_all_equal(loaded.variables, tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded.variables, tree)
    plain = load_checkpoint(tmp_path / "x").variables.params
    np.testing.assert_array_equal(plain["layers"][1][0], np.arange(3))


def test_nothing_is_overwritten(saved, variables):
    directory, _ = saved
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="never overwritten; choose another"):
        save_checkpoint(directory, variables, Metadata("original"))
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def damaged_copies(directory, target, count=100):
    """Copies of a checkpoint, each file in its turn with one byte flipped at random, or cut short."""
    rng = np.random.default_rng(0)
    files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    shutil.copytree(directory, target)
    for number in range(count):
        path = files[number % len(files)]
        content = (directory / path).read_bytes()
        where = int(rng.integers(max(len(content), 1)))
        cut = not content or rng.random() < 0.3
        flipped = (
            content[:where] + bytes([content[where] ^ (1 << int(rng.integers(8)))]) + content[where + 1 :]
            if content
            else b""
        )
        (target / path).write_bytes(content[:where] if cut else flipped)
        yield path
        (target / path).write_bytes(content)


def test_damage_is_refused_or_harmless_never_silent(saved, variables, tmp_path):
    directory, written = saved
    refused, target = [], tmp_path / "damaged"
    for path in damaged_copies(directory, target):
        try:
            loaded = load_checkpoint(target)
        except CheckpointError as error:
            assert str(target) in str(error)
            assert "copy" in str(error), error
            refused.append(path)
        else:
            chex.assert_trees_all_equal(loaded.variables, variables)
            assert loaded.metadata == written.metadata
    assert len(refused) >= 40
    assert any(path.name == "_CHECKPOINT_METADATA" for path in refused)


def test_damaged_progress_is_refused_or_harmless_never_silent(variables, tmp_path):
    tree = {"state": variables, "key": jax.random.key(3)}
    arrays, record = to_plain(tree), {"position": {"passes": 1}, "metrics_bytes": 12}
    save_progress(tmp_path / "progress", arrays, record)
    refused, target = 0, tmp_path / "damaged"
    for _ in damaged_copies(tmp_path / "progress", target, count=200):
        try:
            loaded, metadata = load_progress(target)
        except CheckpointError:
            refused += 1
        else:
            chex.assert_trees_all_equal(dict(loaded), arrays)
            assert metadata.record == record
    assert refused >= 30


def test_changed_array_data_is_refused_by_name(saved, variables, tmp_path):
    """Orbax itself loads such numbers without a word."""
    directory, _ = saved
    changed = jax.tree.map(jnp.copy, variables)
    changed.params["head"]["kernel"] = changed.params["head"]["kernel"].at[0, 0].add(1e-3)
    stored = ocp.metadata(directory).custom_metadata
    ocp.save(tmp_path / "forged", changed._asdict(), custom_metadata=stored)
    with pytest.raises(CheckpointError, match=r"params/head/kernel.*does not match its digest"):
        load_checkpoint(tmp_path / "forged")


@pytest.mark.parametrize("change", [{"kind": "original"}, {"forgotten_ids": ["a"]}, {"request": ""}, {"lineage": []}])
def test_changed_metadata_is_refused(saved, variables, tmp_path, change):
    directory, _ = saved
    stored = json.loads(json.dumps(ocp.metadata(directory).custom_metadata))
    stored["cujax"]["metadata"] |= change
    ocp.save(tmp_path / "forged", variables._asdict(), custom_metadata=stored)
    with pytest.raises(CheckpointError, match=r"metadata .* does not match its digest"):
        load_checkpoint(tmp_path / "forged")


def test_a_checkpoint_of_another_network_is_told_by_names_and_shapes(saved):
    directory, _ = saved
    for other, message in (
        (
            CNN(3, features=(4, 4, 4), hidden_dim=8, embedding_dim=5),
            r"missing: params/conv_2/bias, params/conv_2/kernel \(2",
        ),
        (CNN(3, features=(4,), hidden_dim=8, embedding_dim=5), "unknown to the network: params/conv_1/bias"),
        (
            CNN(4, features=(4, 4), hidden_dim=8, embedding_dim=5),
            r"params/head/bias is float32 \(3,\), the network's is float32 \(4,\)",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(directory, like=abstract_variables(from_linen(other), SHAPE))


def test_what_is_not_a_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read as an Orbax checkpoint"):
        load_checkpoint(tmp_path / "empty")


def test_a_foreign_orbax_directory_is_imported_not_loaded(variables, tmp_path):
    ocp.save(tmp_path / "foreign", {"params": variables.params})
    with pytest.raises(CheckpointError, match=r"not written by cujax[\s\S]*cujax.import_checkpoint"):
        load_checkpoint(tmp_path / "foreign")
    chex.assert_trees_all_equal(import_checkpoint(tmp_path / "foreign", MODEL, SHAPE), variables)


def test_plain_trees_are_imported_after_comparing_names_and_shapes(variables):
    params = jax.tree.map(np.asarray, variables.params)
    for tree in (params, {"params": params}, {"params": params, "model_state": {}}, variables):
        chex.assert_trees_all_equal(import_checkpoint(tree, MODEL, SHAPE), variables)
    for wrong, message in (
        ({name: value for name, value in params.items() if name != "head"}, r"missing: params/head/bias"),
        (params | {"extra": np.zeros(1)}, "unknown to the network: params/extra"),
        (
            params | {"head": {"kernel": np.zeros((2, 2), np.float32), "bias": params["head"]["bias"]}},
            r"head/kernel is float32 \(2, 2\)",
        ),
        (params | {"head": jax.tree.map(lambda leaf: leaf.astype(np.float16), params["head"])}, "head/bias is float16"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(wrong, MODEL, SHAPE)


def test_flax_batch_statistics_are_imported():
    import flax.linen as nn

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1))
            return x, nn.Dense(2)(x)

    model = from_linen(Normed())
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    as_flax_has_it = {"params": variables.params, **variables.model_state}
    chex.assert_trees_all_equal(import_checkpoint(as_flax_has_it, model, SHAPE), variables)


def test_the_lineage_names_every_ancestor(variables, tmp_path):
    original = save_checkpoint(tmp_path / "0", variables, Metadata("original"))
    first = save_checkpoint(
        tmp_path / "1",
        variables,
        Metadata("unlearned", request="first", forgotten_ids=("a",), lineage=(original.as_ancestor(),)),
    )
    second = Metadata(
        "unlearned", request="second", forgotten_ids=("a", "b"), lineage=(*first.metadata.lineage, first.as_ancestor())
    )
    loaded = load_checkpoint(save_checkpoint(tmp_path / "2", variables, second) and tmp_path / "2")
    lines = describe_lineage(loaded).splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == [c.digest[:12] for c in (original, first, loaded)]
    assert "nothing forgotten (0 ids" in lines[0]
    assert "forgot second (2 ids" in lines[2]
    assert loaded.metadata.parent_digest == first.digest


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of .*'other'"):
        Metadata("other")


def test_relative_paths_work(variables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Path("here"), variables, Metadata("original"))
    assert load_checkpoint("here").metadata.kind == "original"


def test_saves_from_several_threads_do_not_disturb_each_other(variables, tmp_path):
    def save(number):
        return save_checkpoint(tmp_path / str(number), variables, Metadata("original", source=str(number)))

    with ThreadPoolExecutor(4) as threads:
        written = list(threads.map(save, range(8)))
    for number, checkpoint in enumerate(written):
        assert load_checkpoint(tmp_path / str(number)).digest == checkpoint.digest


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_told_and_leaves_nothing(saved, variables, tmp_path):
    """The limit on the size of a file stands in for a full disk."""
    directory, written = saved
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"full could not be written .*Free space.*run the same command again"):
            save_checkpoint(tmp_path / "full", variables, METADATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert load_checkpoint(directory).digest == written.digest
    assert save_checkpoint(tmp_path / "full", variables, METADATA).digest == written.digest


def test_leftovers_go_though_a_thread_of_orbax_still_writes_to_them(tmp_path, monkeypatch):
    (tmp_path / "a.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    folder = epath.Path(tmp_path)
    remove, tries = type(folder).rmtree, []

    def busy_at_first(self, **options):
        tries.append(self)
        if len(tries) == 1:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(self, **options)

    monkeypatch.setattr(type(folder), "rmtree", busy_at_first)
    remove_leftovers(folder)
    assert len(tries) == 2
    assert list(tmp_path.iterdir()) == []
