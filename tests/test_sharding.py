"""What is spread over devices equals what one computes; what devices tell each other; unused accelerators."""

import contextlib
import dataclasses
import math
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from many_devices import MODEL, POLICIES, assert_same, on_mesh, on_one_device, run, settings, start
from PIL import Image

from cujax import (
    ContrastiveUnlearning,
    Data,
    ForgetClass,
    ForgetRandom,
    IndexBatch,
    Loop,
    Rows,
    from_linen,
    gather,
    load_source,
    make_split,
    make_unlearn_step,
    sharding,
)
from cujax.data.batches import DeviceImages, StreamedImages, placed, to_device
from cujax.data.decoding import ImageFiles
from cujax.experiments.config import Experiment
from cujax.experiments.run import prepare
from cujax.networks.resnet import ResNet
from cujax.sharding import check_batch_size, data_mesh, replicate, shard, shard_own, unused_accelerator
from cujax.training.loop import _advance
from cujax.training.predict import predict
from cujax.training.supervised import Trainer, Training, fresh_variables


@pytest.fixture
def machine(monkeypatch):
    """Pretends that this machine has the given device files, and that no platform was chosen."""

    def have(*files):
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        monkeypatch.setattr(Path, "exists", lambda path: str(path) in files)

    return have


def test_no_accelerator_no_warning(machine):
    machine()
    assert unused_accelerator() is None


@pytest.mark.parametrize(("file", "kind", "extra"), [("/dev/nvidia0", "GPU", "cuda"), ("/dev/accel0", "TPU", "tpu")])
def test_an_unused_accelerator_is_told_with_its_remedy(machine, file, kind, extra):
    machine(file)
    warning = unused_accelerator()
    assert f"has a {kind}" in warning
    assert f"uv run --extra {extra}" in warning


def test_a_cpu_chosen_on_purpose_is_no_reason_to_warn(machine, monkeypatch):
    machine("/dev/nvidia0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert unused_accelerator() is None


def test_a_batch_size_that_devices_cannot_share_is_refused_with_the_nearest():
    mesh = data_mesh()
    check_batch_size("training.batch_size", 64, mesh)
    check_batch_size("training.batch_size", 63, None)
    with pytest.raises(ValueError, match=r"training.batch_size is 60, but 8 devices .* make it 56 or 64"):
        check_batch_size("training.batch_size", 60, mesh)
    with pytest.raises(ValueError, match=r"is 5, .* make it 8\."):
        check_batch_size("training.batch_size", 5, mesh)


def test_an_experiment_with_such_a_size_is_refused_before_anything_is_written(tmp_path):
    for changes in ({"training": Training(batch_size=60)}, {"method": ContrastiveUnlearning(forget_batch_size=60)}):
        with pytest.raises(ValueError, match=r"batch_size is 60, but 8 devices .* 56 or 64"):
            prepare(Experiment(workdir=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("policy", POLICIES)
def test_eight_devices_equal_one(policy):
    assert_same(on_one_device(policy), run(policy, place=on_mesh(data_mesh())))


@pytest.mark.parametrize(
    ("axes", "is_set"),
    [
        ({"rows": AxisType.Explicit}, True),
        ({"rows": AxisType.Explicit}, False),
        ({"rows": AxisType.Explicit, "more": AxisType.Auto}, True),
    ],
)
def test_a_mesh_of_the_callers_own_serves_as_well(axes, is_set):
    mesh = jax.make_mesh((8,) if len(axes) == 1 else (4, 2), tuple(axes), axis_types=tuple(axes.values()))
    types = []

    def place(state, batch):
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        types.append(jax.tree.map(jax.typeof, state))
        return state, jax.device_put(batch, NamedSharding(mesh, PartitionSpec("rows")))

    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        result = run(place=place, n_steps=2)
    assert types[0] == types[1]
    first, expected = (
        {name: value for name, value in each.items() if name.startswith("first")} for each in (result, on_one_device())
    )
    assert_same(expected, first)


def sizes_by_collective(text):
    """`(collective, dtype, number of elements)` of each operand of every collective in a compiled program."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"
    found = []
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        for dtype, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", shapes)):
            found.append((kind, dtype, math.prod(int(n) for n in dimensions.split(",") if n)))
    return found


def images_of(kind, n=48):
    """Images on a mesh, and indices of a batch in them: whole on every device, or each device's own."""
    rng, mesh = np.random.default_rng(0), data_mesh()
    pixels, labels = rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8), rng.integers(0, 10, n).astype(np.int32)
    mean, std = replicate((jnp.zeros(3), jnp.ones(3)), mesh)
    if kind == "streamed":
        stored = shard_own((pixels.reshape(8, 6, 8, 8, 3), labels.reshape(8, 6)), mesh)
        forget, retain = np.tile(np.arange(2), 8), np.tile(np.arange(2, 6), 8)
    else:
        stored, forget, retain = replicate((pixels, labels), mesh), np.arange(16), np.arange(16, 48)
    batch = IndexBatch(*(Rows(rows[None].astype(np.int32), np.ones((1, len(rows)), bool)) for rows in (forget, retain)))
    return DeviceImages(*stored, mean, std, "crop_flip"), shard(batch, mesh, axis=1)


@pytest.mark.parametrize(("policy", "kind"), [("joint", "whole"), ("retain_only", "whole"), ("joint", "streamed")])
def test_what_devices_tell_each_other_in_a_step(policy, kind):
    images, batch = images_of(kind)
    config, state = settings(policy), replicate(start(policy), data_mesh())
    step = make_unlearn_step(MODEL, config.optimizer(), config)
    with sharding.on_mesh(images.mesh):
        found = sizes_by_collective(_advance.lower(gather, step, state, images, batch).compile().as_text())
    assert {kind for kind, _, _ in found} == {"all-gather", "all-reduce"}
    embeddings = 32 * 128
    gathered = [each[1:] for each in found if each[0] == "all-gather"]
    assert gathered.count(("f32", embeddings)) == 1
    # The retain labels, the mask, and the indices that labels are taken at.
    assert len(gathered) <= 4
    assert set(gathered) == {("f32", embeddings), ("s32", 32), ("pred", 32)}
    summed = [n for kind, _, n in found if kind == "all-reduce"]
    assert summed.count(embeddings) == 1, "the transpose of the gather"
    summed.remove(embeddings)
    n_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    n_statistics = sum(leaf.size for leaf in jax.tree.leaves(state.model_state))
    passes = {"joint": 1, "retain_only": 2}[policy]
    # The gradient (of each pass by itself, where the compiler adds them later); of each pass two sums a channel forward and
    # two backward, those of BatchNorm's own scale and shift; a few scalars. And nothing else.
    assert n_params <= sum(summed) <= passes * (n_params + 2 * n_statistics) + 16


def test_images_read_from_disk_are_each_devices_own_and_the_same(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8), rng.integers(0, 10, 30).astype(np.int32)
    paths = np.array([str(tmp_path / f"{number}.png") for number in range(30)])
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    rows = [Rows(rng.permutation(30)[:n].astype(np.int32), np.arange(n) < n - 1) for n in (11, 16)]
    mean, std = jnp.full(3, 0.5), jnp.full(3, 0.25)
    mesh = data_mesh()
    in_memory = DeviceImages(jnp.asarray(pixels), jnp.asarray(labels), mean, std)
    streamed = StreamedImages(ImageFiles(paths, (8, 8, 3), False), labels, *replicate((mean, std), mesh))
    ((arrays, batch),) = placed(streamed, [IndexBatch(*rows)])
    assert arrays.images.shape == (8, 4, 8, 8, 3)
    assert {shard.data.shape for shard in arrays.images.addressable_shards} == {(1, 4, 8, 8, 3)}
    key = jax.random.key(0)
    found = jax.jit(gather)(arrays, shard(batch, mesh), key)
    expected = gather(in_memory, IndexBatch(*rows), key)
    for n, part, other in ((11, found.forget, expected.forget), (16, found.retain, expected.retain)):
        np.testing.assert_allclose(part.inputs[:n], other.inputs, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(part.labels[:n], other.labels)
        np.testing.assert_array_equal(part.mask, np.resize(other.mask, len(part.mask)) & (np.arange(len(part.mask)) < n))


@pytest.fixture(scope="module")
def digits():
    """Digits and a small network with BatchNorm."""
    source = load_source(Data("digits", limit=600))
    model = from_linen(ResNet(10, stage_sizes=(1,), width=8))
    return source, model


@pytest.mark.parametrize("request_", [ForgetClass(5), ForgetRandom(count=37)], ids=["class", "a_few"])
def test_a_whole_run_ends_alike_on_one_device_and_on_eight(digits, request_):
    """The 37 samples are filled up to 40, so they are forgotten with frozen statistics: else fillers would be seen."""
    source, model = digits
    split = make_split(source, request_)
    joint = request_ == ForgetClass(5)
    method = ContrastiveUnlearning(max_passes=3, learning_rate=0.05, batch_norm="joint" if joint else "frozen")
    runs = []
    for mesh in (None, data_mesh()):
        images = to_device(source, source.train, mesh)
        if joint:
            original = Trainer(Training(epochs=1), images).train(model, split.retain.indices, jax.random.key(0)).variables
        else:
            original = fresh_variables(model, images, jax.random.key(0))
        result = method(model, original, split, key=jax.random.key(1), loop=Loop(images))
        runs.append((original, result, predict(model, result.variables, images, split.retain.indices[:77])))
    (original, one, seen), (original_there, eight, seen_there) = runs
    for check, there in zip(one.history.checks, eight.history.checks, strict=True):
        # One sample more or less: rounding may decide on which side of zero a ReLU lies.
        assert dataclasses.asdict(there) == pytest.approx(dataclasses.asdict(check), abs=0.02)
    assert (one.history.stop_rule, one.history.step) == (eight.history.stop_rule, eight.history.step)
    assert one.history.cost.steps == eight.history.cost.steps
    chex.assert_trees_all_close(original, original_there, rtol=1e-2, atol=1e-2)
    chex.assert_trees_all_close(one.variables, eight.variables, rtol=1e-2, atol=1e-2)
    assert seen_there.logits.shape == (77, 10)
    np.testing.assert_allclose(seen.logits, seen_there.logits, rtol=1e-2, atol=1e-2)
