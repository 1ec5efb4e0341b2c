"""Taking a run up again: from every position the same bits, metrics, checks and account as without a break."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cujax.adapters import from_function, from_linen
from cujax.data.batches import DeviceImages, gather, paired_batches
from cujax.data.requests import Part, Split
from cujax.methods import (
    ContrastiveUnlearning,
    FisherForgetting,
    InfluenceUnlearning,
    MarginMatching,
    Retrain,
    SalUn,
    SelectiveSynapticDampening,
)
from cujax.methods.base import Loop
from cujax.model import Variables
from cujax.networks.cnn import CNN
from cujax.step import UnlearnState, make_unlearn_step
from cujax.storage.checkpoints import from_plain, to_plain
from cujax.training.loop import Phase
from cujax.training.resume import Position
from cujax.training.supervised import Trainer, Training

CLASSES, N = 3, 60


def apply(params, model_state, images, *, train, key):
    """A linear network with a state that every training call moves, and dropout."""
    embedding = images.reshape(images.shape[0], -1)
    if train:
        embedding = embedding * jax.random.bernoulli(key, 0.9, embedding.shape)
        model_state = {"mean": 0.9 * model_state["mean"] + 0.1 * embedding.mean(0)}
    return (embedding, (embedding - model_state["mean"][None]) @ params["w"]), model_state


def init(key, images):
    return {"w": jax.random.normal(key, (16, CLASSES))}, {"mean": jnp.zeros(16)}


LINEAR = from_function(init, apply)
SMALL_CNN = from_linen(CNN(CLASSES, features=(8,), hidden_dim=16, embedding_dim=8))


def images_and_split():
    rng = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    pixels = rng.normal(size=(CLASSES, 4, 4, 1))[labels] + rng.normal(size=(N, 4, 4, 1)) / 2
    images = DeviceImages(jnp.asarray(pixels, jnp.float32), jnp.asarray(labels, jnp.int32), jnp.zeros(1), jnp.ones(1))

    def part(rows):
        return Part(np.flatnonzero(rows).astype(np.int32), np.flatnonzero(rows).astype(str))

    held_out, forget = np.arange(N) >= 48, labels == 1
    nothing = np.zeros(N, bool)
    split = Split(
        part(forget & ~held_out), part(~forget & ~held_out), part(held_out), part(nothing), part(nothing), (1,), (1,)
    )
    return images, split


IMAGES, SPLIT = images_and_split()


class Kept:
    """A resume point in memory: resumes from one state, keeps a copy of each, and counts the records logged until then."""

    def __init__(self, records, state=None):
        self.records, self.state, self.states = records, state, []

    def resume(self, like):
        return None if self.state is None else (from_plain(self.state[0], like, "here"), self.state[1])

    def due(self, steps):
        return True

    def keep(self, tree, record):
        self.states.append((to_plain(tree), record, len(self.records)))

    def raise_if_interrupted(self):
        pass


def without_seconds(cost):
    return dataclasses.replace(cost, seconds=0.0)


@pytest.mark.parametrize("steps_per_call", [1, 4])
@pytest.mark.parametrize("model", [LINEAR, SMALL_CNN], ids=["linear", "cnn"])
def test_training_goes_on_from_every_position_to_the_same_bits(model, steps_per_call):
    recipe = Training(epochs=3, batch_size=8, learning_rate=0.01, augmentation="crop_flip")

    def train(resume_point=None, log=None):
        options = {"resume_point": resume_point} if resume_point else {}
        trainer = Trainer(recipe, IMAGES, log=log or (lambda record: None), steps_per_call=steps_per_call, **options)
        return trainer.train(model, np.arange(45), jax.random.key(3))

    whole, records = train(), []
    kept = Kept(records)
    chex.assert_trees_all_equal(train(kept, records.append).variables, whole.variables)
    calls = {1: 18, 4: 6}[steps_per_call]
    assert len(kept.states) == calls
    assert kept.states[0][1]["position"] == {"passes": 0, "phases": 0, "batches": 18 // calls}
    for state in kept.states:
        rest = []
        again = train(Kept(rest, state), rest.append)
        chex.assert_trees_all_equal(again.variables, whole.variables)
        assert records[: state[2]] + rest == records
        assert without_seconds(again.cost) == without_seconds(whole.cost)


@pytest.mark.parametrize(("model", "steps_per_call"), [(LINEAR, 1), (LINEAR, 4), (SMALL_CNN, 1)])
def test_models_trained_together_are_those_trained_in_turn_and_go_on_to_the_same_bits(model, steps_per_call):
    recipe = Training(epochs=3, batch_size=8, learning_rate=0.01, augmentation="crop_flip")
    keys = [jax.random.key(number) for number in range(3)]

    def trainer(log, **options):
        return Trainer(recipe, IMAGES, log=log, steps_per_call=steps_per_call, **options)

    records = []
    kept = Kept(records)
    together = trainer(records.append, resume_point=kept).train_together(model, np.arange(45), keys)
    for number, (key, one) in enumerate(zip(keys, together, strict=True)):
        own = []
        alone = trainer(own.append).train(model, np.arange(45), key)
        chex.assert_trees_all_close(one.variables, alone.variables, rtol=1e-4, atol=1e-5)
        assert (one.cost.steps, one.cost.samples) == (alone.cost.steps, alone.cost.samples)
        assert one.cost.flops == pytest.approx(alone.cost.flops, rel=0.2)
        np.testing.assert_allclose([r["loss"][number] for r in records], [r["loss"] for r in own], rtol=1e-4, atol=1e-5)
    for state in kept.states[:: len(kept.states) - 2]:
        again = trainer(lambda record: None, resume_point=Kept([], state)).train_together(model, np.arange(45), keys)
        chex.assert_trees_all_equal([one.variables for one in again], [one.variables for one in together])


@functools.cache
def original():
    recipe = Training(epochs=20, batch_size=8, learning_rate=0.01)
    return Trainer(recipe, IMAGES).train(SMALL_CNN, np.arange(48), jax.random.key(1)).variables


@dataclasses.dataclass(frozen=True)
class Never:
    """No accuracy counts as forgotten."""

    def holds(self, observation):
        return None


def contrastive(loop, **options):
    options = {"learning_rate": 0.001, **options}
    method = ContrastiveUnlearning(forget_batch_size=6, retain_batch_size=10, retain_draws=2, max_passes=3, **options)
    return method(SMALL_CNN, original(), SPLIT, key=jax.random.key(2), loop=dataclasses.replace(loop, stop_rule=Never()))


def harmful(loop):
    """The last pass harms retained data too much: the state before it counts."""
    return contrastive(loop, learning_rate=0.005, unlearn_weight=3.0)


def two_phases(loop):
    """Passes of two phases, with steps of two kinds."""
    tx = optax.adam(0.05)
    state = UnlearnState.create(*LINEAR.init(jax.random.key(1), jnp.zeros((1, 4, 4, 1))), tx, jax.random.key(2))
    config = ContrastiveUnlearning()
    steps = [make_unlearn_step(LINEAR, tx, dataclasses.replace(config, unlearn_weight=weight)) for weight in (1.0, 0.0)]

    def phases(forget_pass):
        for number, step in enumerate(steps):
            yield Phase(
                step,
                gather,
                paired_batches(
                    SPLIT.forget.indices,
                    SPLIT.retain.indices,
                    forget_batch_size=6,
                    retain_batch_size=10,
                    retain_draws=1,
                    forget_pass=2 * forget_pass + number,
                    key=jax.random.key(5),
                ),
            )

    return loop.run(LINEAR, state, phases, SPLIT, max_passes=3, forgotten_accuracy=-1)


def matched(loop):
    """A method that looks at the network before each pass: targets of an interrupted pass are those of its start."""
    forget = np.flatnonzero(SPLIT.retain.indices % 5 == 0)
    split = dataclasses.replace(
        SPLIT,
        forget=Part(SPLIT.retain.indices[forget], SPLIT.retain.ids[forget]),
        retain=SPLIT.retain,
        forgotten_classes=(),
        absent_classes=(),
    )
    method = MarginMatching(
        training=Training(epochs=4, batch_size=8),
        batch_size=4,
        retain_batch_size=10,
        retain_draws=2,
        max_passes=2,
        scout_share=0.25,
    )
    return method(SMALL_CNN, original(), split, key=jax.random.key(2), loop=loop)


def retrained(loop):
    """A method that trains anew."""
    method = Retrain(Training(epochs=3, batch_size=8, learning_rate=0.01))
    return method(SMALL_CNN, original(), SPLIT, key=jax.random.key(2), loop=loop)


def test_retraining_goes_on_from_every_position_to_the_same_bits():
    whole, records = retrained(Loop(IMAGES)), []
    kept = Kept(records)
    retrained(Loop(IMAGES, log=records.append, resume_point=kept))
    assert len(kept.states) == whole.history.cost.steps > 3
    for state in kept.states[::3]:
        again = retrained(Loop(IMAGES, resume_point=Kept([], state)))
        chex.assert_trees_all_equal(again.variables, whole.variables)
        assert without_seconds(again.history.cost) == without_seconds(whole.history.cost)


class StoppedError(Exception):
    pass


class AskedToEnd(Kept):
    """A process that was asked to end."""

    def raise_if_interrupted(self):
        raise StoppedError


ONE_SHOT = [FisherForgetting(samples=20), InfluenceUnlearning(samples=20), SelectiveSynapticDampening(), SalUn()]


@pytest.mark.parametrize("method", ONE_SHOT, ids=lambda method: type(method).__name__)
def test_what_sums_gradients_ends_where_it_is_asked_to(method):
    variables = original()
    model = dataclasses.replace(SMALL_CNN, layers=tuple(variables.params))
    with pytest.raises(StoppedError):
        method(model, variables, SPLIT, key=jax.random.key(0), loop=Loop(IMAGES, resume_point=AskedToEnd([])))


@pytest.mark.parametrize("unlearn", [contrastive, two_phases, harmful, matched])
def test_unlearning_goes_on_from_every_position_to_the_same_bits(unlearn):
    tolerance = 0.1 if unlearn is harmful else 1.0
    whole, records = unlearn(Loop(IMAGES, tolerance)), []
    kept = Kept(records)
    unlearn(Loop(IMAGES, tolerance, log=records.append, resume_point=kept))
    assert len(kept.states) == whole.history.cost.steps - (4 if unlearn is matched else 0) > 3  # a scout keeps nothing
    if unlearn is harmful:
        assert whole.history.stop_rule == "retain_tolerance"
        assert 0 < whole.history.step < whole.history.cost.steps
    for state in kept.states:
        rest = []
        again = unlearn(Loop(IMAGES, tolerance, log=rest.append, resume_point=Kept(rest, state)))
        chex.assert_trees_all_equal(again.variables, whole.variables)
        assert records[: state[2]] + rest == records
        assert again.history.checks == whole.history.checks
        assert (again.history.stop_reason, again.history.step) == (whole.history.stop_reason, whole.history.step)
        assert without_seconds(again.history.cost) == without_seconds(whole.history.cost)


def test_a_position_in_a_later_phase_is_later():
    assert Position(1, 0, 5) < Position(1, 1, 0) < Position(2, 0, 0)


def test_a_state_comes_back_in_its_structure_and_its_key_as_a_key():
    state = UnlearnState.create(
        *LINEAR.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1))), optax.adam(0.1), jax.random.key(7, impl="rbg")
    )
    tree = {"state": state, "good": Variables(state.params, state.model_state)}
    again = from_plain(to_plain(tree), tree, "here")
    chex.assert_trees_all_equal_shapes_and_dtypes(again, tree)
    chex.assert_trees_all_equal(again["state"].opt_state, state.opt_state)
    assert jax.random.uniform(again["state"].key) == jax.random.uniform(state.key)
    assert not again["state"].params["w"].aval.weak_type
