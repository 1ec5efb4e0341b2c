"""Weights that other programs saved are read as they are, and what is exported loads back bit by bit."""

import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training import train_state
from safetensors.flax import save_file

from cujax import (
    CheckpointError,
    Metadata,
    export_weights,
    from_linen,
    from_nnx,
    import_checkpoint,
    read_import,
    save_checkpoint,
)
from cujax.storage.imports import check_logits

SHAPE = (4, 4, 1)
pytestmark = pytest.mark.filterwarnings("ignore")


class Normed(nn.Module):
    dtype: type = jnp.float32
    boxed: bool = False

    @nn.compact
    def __call__(self, images, train):
        init = nn.initializers.lecun_normal()
        kernel_init = nn.with_partitioning(init, (None, "model")) if self.boxed else init
        x = nn.Dense(6, param_dtype=self.dtype, kernel_init=kernel_init)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3, name="head", param_dtype=self.dtype)(x)


MODEL = from_linen(Normed(), embedding="head")
VARIABLES = MODEL.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
FLAX = {"params": VARIABLES.params, **VARIABLES.model_state}


class TrainState(train_state.TrainState):
    batch_stats: dict


def a_train_state(variables=FLAX):
    return TrainState.create(apply_fn=None, tx=optax.adam(1e-3), **variables)


def assert_imported(source, left_out=(), **options):
    imported = read_import(source, MODEL, SHAPE, **options)
    chex.assert_trees_all_equal(imported.variables, VARIABLES)
    chex.assert_trees_all_equal_dtypes(imported.variables, VARIABLES)
    assert imported.left_out == tuple(left_out)
    return imported


def standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def managed(root, steps, **items):
    with ocp.CheckpointManager(root) as manager:
        for step, shift in steps.items():
            moved = jax.tree.map(lambda leaf, shift=shift: leaf + shift if hasattr(leaf, "dtype") else leaf, items)
            saves = {name: ocp.args.StandardSave(tree) for name, tree in moved.items()}
            alone = set(items) == {"default"}
            manager.save(step, args=saves["default"] if alone else ocp.args.Composite(**saves))


def test_a_manager_of_train_states_gives_its_latest_step_or_the_one_asked_for(tmp_path):
    managed(tmp_path / "run", {1: 1.0, 5: 0.0}, default=a_train_state())
    imported = assert_imported(tmp_path / "run", ["opt_state", "step"])
    assert imported.where.endswith("run/5")
    assert_imported(tmp_path / "run" / "5", ["opt_state", "step"])
    first = import_checkpoint(tmp_path / "run", MODEL, SHAPE, step=1)
    chex.assert_trees_all_close(first.params, jax.tree.map(lambda leaf: leaf + 1, VARIABLES.params))
    with pytest.raises(FileNotFoundError, match=r"holds the steps \[1, 5\], but not step 3"):
        import_checkpoint(tmp_path / "run", MODEL, SHAPE, step=3)
    with pytest.raises(FileNotFoundError, match="contains no steps"):
        import_checkpoint(tmp_path / "run" / "5" / "default", MODEL, SHAPE, step=3)


@pytest.mark.parametrize(
    ("items", "left_out"),
    [
        ({"params": VARIABLES.params, "state": VARIABLES.model_state}, []),
        ({"params": VARIABLES.params, "state": VARIABLES.model_state["batch_stats"]}, []),
        (
            {"params": VARIABLES.params, "batch_stats": VARIABLES.model_state["batch_stats"], "opt": {"m": jnp.ones(2)}},
            ["opt"],
        ),
        ({"state": a_train_state(), "losses": {"last": jnp.ones(1)}}, ["losses", "opt_state", "step"]),
        ({"params": FLAX}, []),
    ],
    ids=["collections", "statistics", "batch_stats", "train_state", "all_as_params"],
)
def test_items_of_a_manager_have_the_names_that_people_give_them(items, left_out, tmp_path):
    managed(tmp_path / "run", {2: 0.0}, **items)
    assert_imported(tmp_path / "run", left_out)


def test_single_orbax_directories_are_read(tmp_path):
    standard(tmp_path / "whole", a_train_state())
    assert_imported(tmp_path / "whole", ["opt_state", "step"])
    standard(tmp_path / "variables", FLAX)
    assert_imported(tmp_path / "variables")
    ocp.PyTreeCheckpointer().save(tmp_path / "older" / "checkpoint_7", FLAX)
    assert_imported(tmp_path / "older")


@pytest.mark.parametrize(
    ("tree", "left_out"),
    [(FLAX, []), (a_train_state(), ["opt_state", "step"]), ({"model": FLAX, "epoch": 3}, ["epoch"])],
    ids=["variables", "state", "wrapped"],
)
def test_msgpack_files_are_read(tree, left_out, tmp_path):
    (tmp_path / "net.msgpack").write_bytes(serialization.to_bytes(tree))
    assert_imported(tmp_path / "net.msgpack", left_out)
    (tmp_path / "checkpoint_12").write_bytes(serialization.to_bytes(tree))
    (tmp_path / "net.msgpack").unlink()
    assert_imported(tmp_path, left_out)


@pytest.mark.parametrize("separator", ["/", "."])
def test_safetensors_files_are_read(separator, tmp_path):
    flat = {jax.tree_util.keystr(path, simple=True, separator=separator): leaf for path, leaf in _paths(FLAX)}
    save_file(flat, tmp_path / "net.safetensors")
    assert_imported(tmp_path / "net.safetensors")


def _paths(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def test_boxed_parameters_are_unboxed(tmp_path):
    boxed = dict(Normed(boxed=True).init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False))
    assert isinstance(boxed["params"]["Dense_0"]["kernel"], nn.Partitioned)
    boxed["params"]["Dense_0"]["kernel"] = boxed["params"]["Dense_0"]["kernel"].replace_boxed(
        VARIABLES.params["Dense_0"]["kernel"]
    )
    boxed["params"]["Dense_0"]["bias"], boxed["params"]["head"] = FLAX["params"]["Dense_0"]["bias"], FLAX["params"]["head"]
    assert_imported(boxed)
    standard(tmp_path / "boxed", boxed)
    assert_imported(tmp_path / "boxed")


def test_bfloat16_is_kept_or_cast_as_told(tmp_path):
    half = dict(VARIABLES.params)
    for name in ("Dense_0", "head"):
        half[name] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), half[name])
    (tmp_path / "half.msgpack").write_bytes(serialization.to_bytes({**FLAX, "params": half}))
    kept = import_checkpoint(tmp_path / "half.msgpack", from_linen(Normed(jnp.bfloat16), embedding="head"), SHAPE)
    with pytest.raises(CheckpointError, match=r"params/Dense_0/kernel is bfloat16 .*the network's is float32[\s\S]*cast"):
        import_checkpoint(tmp_path / "half.msgpack", MODEL, SHAPE)
    cast = import_checkpoint(tmp_path / "half.msgpack", MODEL, SHAPE, cast=True)
    for name in ("Dense_0", "head"):
        np.testing.assert_array_equal(kept.params[name]["kernel"], half[name]["kernel"])
        assert kept.params[name]["kernel"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(cast.params[name]["kernel"], half[name]["kernel"].astype(jnp.float32))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(16, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        return self.head(self.dropout(self.norm(self.first(images.reshape(len(images), -1)))))


def test_nnx_states_are_read(tmp_path):
    module = NnxNet(nnx.Rngs(3))
    model = from_nnx(module, embedding="head")
    wanted = model.variables_of(module)
    _, state = nnx.split(module)
    for source in (module, state, nnx.to_pure_dict(state), nnx.state(module, nnx.Not(nnx.RngState))):
        chex.assert_trees_all_equal(import_checkpoint(source, model, SHAPE), wanted)
    standard(tmp_path / "nnx", nnx.state(module, nnx.Not(nnx.RngState)))
    chex.assert_trees_all_equal(import_checkpoint(tmp_path / "nnx", model, SHAPE), wanted)
    managed(tmp_path / "run", {4: 0.0}, default=nnx.state(module, nnx.Not(nnx.RngState)))
    chex.assert_trees_all_equal(import_checkpoint(tmp_path / "run", model, SHAPE), wanted)
    other = NnxNet(nnx.Rngs(9))
    model.update(other, import_checkpoint(tmp_path / "nnx", model, SHAPE))
    module.eval(), other.eval()
    images = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    np.testing.assert_array_equal(module(images), other(images))


def test_what_cannot_be_read_is_told_and_only_what_is_damaged_is_called_so(tmp_path):
    (tmp_path / "net.msgpack").write_bytes(serialization.to_bytes(FLAX)[:-40])
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"params": 1}))
    (tmp_path / "pickled").write_bytes(pickle.dumps({"params": np.zeros(3)}))
    (tmp_path / "net.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("net.msgpack", "truncated, or of another kind"),
        ("net.pkl", "pickles are never opened.*flax.serialization.to_bytes"),
        ("pickled", "cannot be read as a file of flax.serialization.to_bytes"),
        ("net.safetensors", "cannot be read as safetensors"),
        ("folder", "cannot be read as an Orbax checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            import_checkpoint(tmp_path / name, MODEL, SHAPE)
        assert ("damaged" in str(caught.value)) == (name == "net.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        import_checkpoint(tmp_path / "nothing", MODEL, SHAPE)
    with pytest.raises(ValueError, match="a tree has no steps"):
        import_checkpoint(FLAX, MODEL, SHAPE, step=3)


def test_differences_are_listed(tmp_path):
    managed(tmp_path / "run", {2: 0.0}, default=a_train_state())
    with pytest.raises(CheckpointError, match=r"run/2 belongs to another network[\s\S]*missing: model_state/batch_stats"):
        import_checkpoint(tmp_path / "run", from_linen(Wide(), embedding="head"), SHAPE)


class Wide(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(7)(images.reshape(len(images), -1))
        return nn.Dense(3, name="head")(nn.BatchNorm(use_running_average=not train, name="norm")(x))


@pytest.mark.parametrize("name", ["net.safetensors", "net.msgpack", "net"])
def test_exports_load_back_bit_by_bit(name, tmp_path):
    dtypes = from_linen(Normed(jnp.bfloat16), embedding="head")
    for number, model in enumerate((MODEL, dtypes)):
        variables = model.init(jax.random.key(1), jnp.zeros((1, *SHAPE)))
        checkpoint = save_checkpoint(tmp_path / f"checkpoint_{number}", variables, Metadata("original"))
        path = tmp_path / str(number) / name
        export_weights(checkpoint if number else variables, path)
        back = import_checkpoint(path, model, SHAPE)
        chex.assert_trees_all_equal(back, variables)
        chex.assert_trees_all_equal_dtypes(back, variables)
        with pytest.raises(FileExistsError, match="not overwritten"):
            export_weights(variables, path)
        assert [entry.name for entry in path.parent.iterdir()] == [name]
    with pytest.raises(ValueError, match=r"\.safetensors or \.msgpack"):
        export_weights(VARIABLES, tmp_path / "net.pt")


def test_exports_are_what_other_programs_read(tmp_path):
    export_weights(VARIABLES, tmp_path / "net.msgpack")
    restored = serialization.from_bytes(FLAX, (tmp_path / "net.msgpack").read_bytes())
    chex.assert_trees_all_equal(restored, FLAX)
    export_weights(VARIABLES, tmp_path / "net")
    with ocp.StandardCheckpointer() as checkpointer:
        chex.assert_trees_all_equal(checkpointer.restore(tmp_path / "net", FLAX), FLAX)


def test_nnx_weights_are_exported_and_loaded_back(tmp_path):
    module = NnxNet(nnx.Rngs(3))
    model = from_nnx(module, embedding="head")
    for name in ("net.safetensors", "net.msgpack", "net"):
        export_weights(model.variables_of(module), tmp_path / name)
        chex.assert_trees_all_equal(import_checkpoint(tmp_path / name, model, SHAPE), model.variables_of(module))


def test_logits_of_the_source_are_compared(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
    dense, head = (jax.tree.map(np.asarray, VARIABLES.params[name]) for name in ("Dense_0", "head"))
    hidden = (inputs.reshape(5, -1) @ dense["kernel"] + dense["bias"]) / np.sqrt(1 + 1e-5)
    logits = hidden @ head["kernel"] + head["bias"]
    np.savez(tmp_path / "right.npz", inputs=inputs, logits=logits)
    assert check_logits(MODEL, VARIABLES, tmp_path / "right.npz") < 1e-5
    logits[3, 1] += 0.002
    np.savez(tmp_path / "wrong.npz", inputs=inputs, logits=logits)
    with pytest.raises(ValueError, match=r"by up to 0\.002 \(input 3\), more than 0\.001"):
        check_logits(MODEL, VARIABLES, tmp_path / "wrong.npz")
    logits[2, 0] = np.nan
    np.savez(tmp_path / "nan.npz", inputs=inputs, logits=logits)
    with pytest.raises(ValueError, match=r"nan \(input 2\)"):
        check_logits(MODEL, VARIABLES, tmp_path / "nan.npz")
    np.savez(tmp_path / "other.npz", inputs=inputs)
    with pytest.raises(ValueError, match=r"must contain `inputs` and `logits`, but contains \['inputs'\]"):
        check_logits(MODEL, VARIABLES, tmp_path / "other.npz")
    np.savez(tmp_path / "shape.npz", inputs=inputs, logits=logits[:, :2])
    with pytest.raises(ValueError, match=r"shape \(5, 2\), but the network's \(5, 3\)"):
        check_logits(MODEL, VARIABLES, tmp_path / "shape.npz")
