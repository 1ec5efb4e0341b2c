"""The inner loop: order, keys, the log, the account, compilations and the guard, on steps whose results are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cujax.batch import Batch, Examples, IndexBatch, Rows
from cujax.data.batches import DeviceImages, StreamedImages, gather, preprocess
from cujax.step import UnlearnState
from cujax.training.loop import Cost, NotFiniteError, Phase, Stepper

IMAGES = DeviceImages(
    jax.random.normal(jax.random.key(0), (12, 2, 2, 1)), jnp.arange(12, dtype=jnp.int32), jnp.zeros(1), jnp.ones(1)
)


def fold(factor, bad_step, state: UnlearnState, examples: Examples):
    """params <- factor * params + sum of the labels that count; not finite at one step, which leaves the state alone."""
    finite = state.step != bad_step
    total = jnp.sum(jnp.where(examples.mask, examples.labels, 0)).astype(jnp.float32)
    loss = jnp.where(finite, state.params, jnp.nan)
    stepped = UnlearnState(state.step + 1, factor * state.params + total, {}, state.opt_state, state.key)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), stepped, state), {"loss": loss, "finite": finite}


def run(batches, log=lambda record: None, factor=0.5, bad_step=-1, state=None):
    """The state after a run of `fold` over the batches, from the start if no other state is given."""
    step = jax.tree_util.Partial(fold, factor, bad_step)
    return Stepper(IMAGES, log).run(start() if state is None else state, Phase(step, preprocess, batches))


def start(seed=0, params=1.0):
    return UnlearnState.create(jnp.asarray(params, jnp.float32), {}, optax.identity(), jax.random.key(seed))


def rows(*indices, counted=None):
    counted = len(indices) if counted is None else counted
    return Rows(np.array(indices, np.int32), np.arange(len(indices)) < counted)


BATCHES = [rows(1, 2), rows(3, 4), rows(5, 6), rows(7, 1, counted=1)]


def expected_params(sums, factor=0.5):
    values = [1.0]
    for total in sums:
        values.append(factor * values[-1] + total)
    return values


def test_a_step_a_batch_in_order_each_logged_with_its_own_metrics():
    records = []
    state = run(iter(BATCHES), records.append)
    values = expected_params([3, 7, 11, 7])
    assert float(state.params) == values[-1]
    assert int(state.step) == 4
    assert records == [{"step": n + 1, "loss": values[n], "finite": True} for n in range(4)]


def test_steps_are_counted_on_from_run_to_run():
    records = []
    loop, step = Stepper(IMAGES, records.append), jax.tree_util.Partial(fold, 0.5, -1)
    state = loop.run(start(), Phase(step, preprocess, BATCHES[:1]))
    state = loop.run(state, Phase(step, preprocess, BATCHES[1:]))
    assert loop.steps == 4
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert float(state.params) == expected_params([3, 7, 11, 7])[-1]


def test_nothing_to_do_costs_nothing_and_changes_nothing():
    records = []
    loop = Stepper(IMAGES, records.append)
    state = loop.run(start(), Phase(jax.tree_util.Partial(fold, 0.5, -1), preprocess, []))
    assert float(state.params) == 1.0
    assert dataclasses.replace(loop.cost, seconds=0.0) == Cost(0.0, 0, 0, 0.0)
    assert records == []


def test_one_compilation_serves_short_batches_later_runs_and_other_values():
    traces = []

    def step(factor, state, examples):
        traces.append(examples.labels.shape)
        return fold(factor, -1, state, examples)

    def run(state, factor, batches):
        loop = Stepper(IMAGES, lambda record: None)
        return loop.run(state, Phase(jax.tree_util.Partial(step, factor), preprocess, batches))

    state = run(start(), 0.25, BATCHES)
    assert traces == [(2,)]
    state = run(run(state, 0.75, BATCHES), 0.75, BATCHES)
    assert traces == [(2,)]
    run(state, 0.75, [rows(1, 2, 3)])
    assert traces == [(2,), (3,)]


def test_the_state_is_used_up():
    state = start()
    after = run(BATCHES, state=state)
    assert state.params.is_deleted()
    assert not after.params.is_deleted()


@pytest.mark.parametrize("bad_step", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_ends_the_run_and_is_the_last_record(bad_step):
    records = []
    with pytest.raises(NotFiniteError, match=rf"not finite at step {bad_step + 1} \(loss nan\)"):
        run(BATCHES, records.append, bad_step=bad_step)
    assert [record["step"] for record in records] == list(range(1, bad_step + 2))
    assert [record["finite"] for record in records] == [True] * bad_step + [False]


def test_an_infinite_gradient_beside_a_finite_loss_is_caught():
    def step(state, examples):
        return state, {"loss": jnp.float32(2.0), "finite": jnp.bool_(False)}

    with pytest.raises(NotFiniteError, match=r"at step 1 \(loss 2.0\)"):
        Stepper(IMAGES, lambda record: None).run(start(), Phase(jax.tree_util.Partial(step), preprocess, BATCHES))


@pytest.mark.parametrize("steps_per_call", [2, 3, 4, 7, 100])
def test_many_steps_in_one_compiled_call_are_the_same_steps(steps_per_call):
    batches = BATCHES + BATCHES[:3]
    expected_records, records = [], []
    expected = run(batches, expected_records.append)
    step = jax.tree_util.Partial(fold, 0.5, -1)
    loop = Stepper(IMAGES, records.append, steps_per_call)
    state = loop.run(start(), Phase(step, preprocess, iter(batches)))
    assert float(state.params) == float(expected.params)
    assert int(state.step) == 7
    assert records == expected_records
    assert loop.cost.steps == 7
    assert loop.cost.samples == 7 * 2


@pytest.mark.parametrize("bad_step", [0, 2, 5, 6])
def test_a_step_that_is_not_finite_among_many_in_a_call_is_the_last_record(bad_step):
    records = []
    loop = Stepper(IMAGES, records.append, 3)
    with pytest.raises(NotFiniteError, match=rf"not finite at step {bad_step + 1} "):
        loop.run(start(), Phase(jax.tree_util.Partial(fold, 0.5, bad_step), preprocess, BATCHES + BATCHES[:3]))
    assert [record["step"] for record in records] == list(range(1, bad_step + 2))


def test_many_steps_a_call_are_traced_once_for_each_length_and_their_operations_counted_one_by_one():
    traces = []

    def step(state, examples):
        traces.append(examples.labels.shape)
        return matrix_product(state, examples)

    def cost(steps_per_call, n):
        loop = Stepper(IMAGES, lambda record: None, steps_per_call)
        loop.run(start(params=np.ones((4, 1000))), Phase(jax.tree_util.Partial(step), preprocess, BATCHES[:1] * n))
        return loop.cost

    assert cost(4, 9).flops == 9 * cost(1, 1).flops
    # The body of a scan of four is traced for its operations, for its types and once more; then a single step.
    assert len(traces) <= 4
    before = len(traces)
    cost(4, 9)
    assert len(traces) == before


class Files:
    """Stands in for files on disk: the same images, and what was read."""

    image_shape = IMAGES.images.shape[1:]

    def __init__(self):
        self.reads = []

    def read(self, rows):
        self.reads.append(rows.tolist())
        return np.asarray(IMAGES.images)[rows]


@pytest.mark.parametrize("steps_per_call", [None, 4])
def test_streamed_images_give_the_same_steps_and_are_read_a_batch_at_a_time(steps_per_call):
    def step(state: UnlearnState, batch: Batch):
        total = jnp.sum(batch.forget.inputs) + 2 * jnp.sum(batch.retain.inputs) + jnp.sum(batch.retain.labels)
        state = UnlearnState(state.step + 1, state.params + total, {}, state.opt_state, state.key)
        return state, {"loss": total, "finite": jnp.bool_(True)}

    batches = [IndexBatch(rows(n, n + 1, counted=1), rows(7, n, 3)) for n in range(5)]
    phase = Phase(jax.tree_util.Partial(step), gather, batches)
    expected_records, records, files = [], [], Files()
    expected = Stepper(IMAGES, expected_records.append).run(start(), phase)
    streamed = StreamedImages(files, np.asarray(IMAGES.labels), IMAGES.mean, IMAGES.std)
    state = Stepper(streamed, records.append, steps_per_call).run(start(), phase)
    assert float(state.params) == float(expected.params)
    assert records == expected_records
    assert sorted(files.reads) == sorted([n, n + 1, 7, n, 3] for n in range(5))


def draw_in_preparation(arrays, index_batch, key):
    return jax.random.uniform(key)


def log_the_draw(state, draw):
    stepped = UnlearnState(state.step + 1, state.params + draw, {}, state.opt_state, state.key)
    return stepped, {"loss": draw, "finite": jnp.bool_(True)}


def draws(seed, sizes):
    """What was drawn at each step of runs over so many batches."""
    records = []
    loop, step = Stepper(IMAGES, records.append), jax.tree_util.Partial(log_the_draw)
    state = start(seed)
    for n in sizes:
        state = loop.run(state, Phase(step, draw_in_preparation, BATCHES[:1] * n))
    return [record["loss"] for record in records], float(state.params)


def test_what_is_drawn_depends_on_the_key_and_the_step_alone():
    whole, total = draws(0, [6])
    assert len(set(whole)) == 6
    for split in range(1, 6):
        assert draws(0, [split, 6 - split]) == (whole, total)
    assert not set(whole) & set(draws(1, [6])[0])


def matrix_product(state, batch):
    """One product of known size; forget and retain rows together."""
    images = [batch] if isinstance(batch, Examples) else [batch.forget, batch.retain]
    flat = jnp.concatenate([part.inputs.reshape(part.inputs.shape[0], -1) for part in images])
    loss = jnp.max(flat @ state.params)
    return state, {"loss": loss, "finite": jnp.isfinite(loss)}


@pytest.mark.parametrize("n", [1, 5])
def test_the_account_counts_every_row_that_was_passed_and_the_products_it_took(n):
    pair = IndexBatch(rows(1, 2, 3, counted=2), rows(4, 5, 6, 7, 8))
    loop = Stepper(IMAGES, lambda record: None)
    loop.run(start(params=np.ones((4, 1000))), Phase(jax.tree_util.Partial(matrix_product), gather, [pair] * n))
    cost = loop.cost
    assert (cost.steps, cost.samples) == (n, n * (3 + 5))
    product = 2 * 8 * 4 * 1000
    assert n * product <= cost.flops <= n * 1.5 * product
    if n > 1:
        assert cost.seconds > 0


def test_flops_are_unknown_where_the_compiler_gives_none(monkeypatch):
    monkeypatch.setattr("cujax.training.loop.flops_of", lambda lowered: None)
    loop = Stepper(IMAGES, lambda record: None)
    loop.run(start(params=np.ones((4, 1000))), Phase(jax.tree_util.Partial(matrix_product), preprocess, BATCHES))
    assert loop.cost.flops is None
    assert loop.cost.steps == 4


def test_the_step_gets_the_images_at_the_indices():
    seen = []

    def step(state: UnlearnState, batch: Batch):
        metrics = {"finite": jnp.bool_(True), "loss": jnp.float32(0)}
        metrics |= {"forget": jnp.sum(batch.forget.inputs), "retain": jnp.sum(batch.retain.inputs)}
        return state, metrics

    batches = [IndexBatch(rows(2, 9), rows(4, 0, 3))]
    Stepper(IMAGES, seen.append).run(start(), Phase(jax.tree_util.Partial(step), gather, batches))
    images = np.asarray(IMAGES.images, np.float64)
    assert seen[0]["forget"] == pytest.approx(images[[2, 9]].sum(), rel=1e-5)
    assert seen[0]["retain"] == pytest.approx(images[[4, 0, 3]].sum(), rel=1e-5)
