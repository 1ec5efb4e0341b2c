"""The benchmark measures what it says: its rows, its hand-written step, and what it compares with."""

import importlib.util
import json
import sys
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_linen
from cujax.batch import Batch, Examples
from cujax.benchmark import Benchmark, measure, read_earlier, tables
from cujax.benchmark.measure import _bare_step
from cujax.benchmark.pytorch import Counterpart
from cujax.methods import ContrastiveUnlearning
from cujax.model import Variables
from cujax.networks.cnn import CNN
from cujax.networks.resnet import ResNet
from cujax.step import UnlearnState, make_unlearn_step
from cujax.training.supervised import make_train_step

SMALL = Benchmark(network="small_cnn", image_size=8, channels=3, forget_batch_size=4, retain_batch_size=6, rounds=2, steps=2)


@pytest.fixture(scope="module")
def figures():
    return measure(SMALL)


def test_every_row_has_its_figures(figures):
    assert set(figures["steps"]) == {"forward", "bare", "training", "unlearning", "training loop", "unlearning loop"}
    for name, row in figures["steps"].items():
        assert row["images_per_second"] == pytest.approx(10 / (row["ms"] / 1e3))
        assert 0 < row["ms_least"] <= row["ms"]
        if not name.endswith("loop"):
            assert row["share_of_peak"] == pytest.approx(row["gflop"] / row["ms"] / figures["peak_tflops"])
            assert row["memory_mib"] > 0
    assert (
        figures["steps"]["forward"]["gflop"] < figures["steps"]["bare"]["gflop"] < 4 * figures["steps"]["forward"]["gflop"]
    )
    assert set(figures["pipeline"]) == {"from memory", "from PNG files"}
    assert json.loads(json.dumps(figures)) == figures


def test_the_step_written_by_hand_is_the_training_step():
    model = from_linen(ResNet(3, stage_sizes=(1,), width=8))
    tx, key = ContrastiveUnlearning().optimizer(), jax.random.key(0)
    examples = Examples(jax.random.normal(key, (6, 8, 8, 3)), jnp.arange(6) % 3, jnp.ones(6, bool))
    state = UnlearnState.create(*model.init(key, examples.inputs), tx, key)
    ours, metrics = jax.jit(make_train_step(model, tx))(state, examples)
    bare, loss = jax.jit(_bare_step, static_argnums=(0, 1))(model, tx, state, examples)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    chex.assert_trees_all_close(ours.params, bare.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(ours.model_state, bare.model_state, rtol=1e-4, atol=1e-6)


def test_a_given_peak_is_used(figures):
    given = measure(Benchmark(network="small_cnn", image_size=8, rounds=1, steps=1, peak_tflops=2.0))
    row = given["steps"]["training"]
    assert row["share_of_peak"] == pytest.approx(row["gflop"] / row["ms"] / 2.0)


def test_an_earlier_run_is_compared_row_by_row(figures, tmp_path):
    slower = json.loads(json.dumps(figures))
    for row in slower["steps"].values():
        row["ms"] *= 4
    (tmp_path / "earlier.json").write_text(json.dumps(slower))
    table = tables(figures, read_earlier(tmp_path / "earlier.json", SMALL))[1]
    cells = dict(zip(table.columns[0].cells, table.columns[1].cells, strict=True))
    assert [cells[f"{name}, time / earlier"] for name in figures["steps"]] == ["0.250"] * 6


def test_what_cannot_be_compared_is_told(figures, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.json does not exist; an earlier run writes it with --json"):
        read_earlier(tmp_path / "none.json", SMALL)
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(figures))
    with pytest.raises(ValueError, match="measured with other settings: network small_cnn there, cnn now"):
        read_earlier(path, Benchmark(image_size=8, channels=3, forget_batch_size=4, retain_batch_size=6))
    for content in ("{}", "no json", "[1]", '{"settings": {}, "steps": {}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="contains no figures of this benchmark"):
            read_earlier(path, SMALL)


def test_settings_out_of_range_are_told():
    with pytest.raises(ValueError, match="rounds must be at least 1, but is 0"):
        Benchmark(rounds=0)
    with pytest.raises(ValueError, match="peak_tflops must be positive, but is -1"):
        Benchmark(peak_tflops=-1.0)


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (extra [torch])"
)


@needs_torch
def test_pytorch_is_timed_beside_ours():
    found = measure(replace(SMALL, versus="torch"))
    for name in ("training", "unlearning"):
        assert found["steps"][f"PyTorch {name}"]["ms"] > 0
        assert found["ratios"][f"{name} / PyTorch {name}"] > 0


def _counterpart(module, classes=(0, 0, 1, 2, 0, 1, 2, 2)):
    images = jax.random.normal(jax.random.key(0), (8, 20, 20, 3))
    everything = Examples(images, jnp.array(classes), jnp.ones(8, bool))
    batch = Batch(*(jax.tree.map(lambda rows, part=part: rows[part], everything) for part in (slice(3), slice(3, None))))
    model, config = from_linen(module), ContrastiveUnlearning()
    tx = config.optimizer()
    state = UnlearnState.create(*model.init(jax.random.key(1), images), tx, jax.random.key(2))
    steps = {
        "training": (make_train_step(model, tx), everything),
        "unlearning": (make_unlearn_step(model, tx, config), batch),
    }
    metrics = {name: jax.jit(step)(state, examples)[1] for name, (step, examples) in steps.items()}
    figures = {name: (float(found["loss"]), float(found["gradient_norm"])) for name, found in metrics.items()}
    return Counterpart(module, Variables(state.params, state.model_state), batch, config), figures


@needs_torch
@pytest.mark.parametrize(
    "module",
    [
        ResNet(3, stage_sizes=(1, 2), width=4),
        ResNet(3, stage_sizes=(1, 1), width=4, bottleneck=True, stem="imagenet", head="linear"),
        CNN(3, features=(4, 8), hidden_dim=16),
    ],
    ids=["basic", "bottleneck", "cnn"],
)
@pytest.mark.parametrize("classes", [(0, 0, 1, 2, 0, 1, 2, 2), (0, 0, 0, 1, 1, 2, 2, 1)], ids=["samples", "class"])
def test_losses_and_gradients_are_those_of_pytorch(module, classes):
    pytorch, figures = _counterpart(module, classes)
    for name, (loss, norm) in figures.items():
        pytorch.check_same(name, loss, norm)
        with pytest.raises(RuntimeError, match=f"the {name} steps differ: loss"):
            pytorch.check_same(name, loss, 1.05 * norm)
        with pytest.raises(RuntimeError, match="Please report this"):
            pytorch.check_same(name, 1.05 * loss, norm)


@needs_torch
def test_what_pytorch_is_not_compared_on_is_told():
    with pytest.raises(ValueError, match="no counterpart of vit_tiny_32; choose one of cnn, "):
        Benchmark(network="vit_tiny_32", versus="torch")
    with pytest.raises(ValueError, match="compared in float32, but dtype is bfloat16"):
        Benchmark(dtype="bfloat16", versus="torch")


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"PyTorch is not installed; install cujax\[torch\]"):
        Benchmark(versus="torch")
