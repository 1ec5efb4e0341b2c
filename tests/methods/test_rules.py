"""Each rule against its formula in NumPy float64, step by step over a whole phase, momentum and decay included."""

import jax
import numpy as np
import pytest
from tiny import (
    CLASS_SPLIT,
    IMAGES,
    KEY,
    MODEL,
    MODES,
    ORIGINAL,
    SPLIT,
    X,
    Y,
    assert_close,
    assert_follows,
    backward,
    combine,
    counted,
    cross_entropy_gradient,
    distillation_gradient,
    drawn_labels,
    float64,
    forward,
    label_of,
    leaves,
    record,
    take,
)

from cujax.methods import (
    BadTeacher,
    Delete,
    FineTune,
    GradientAscent,
    L1Sparse,
    Munba,
    NegGradPlus,
    RandomLabels,
    SalUn,
    Scrub,
)
from cujax.methods.bad_teacher import mixed_batches
from cujax.methods.random_labels import random_labels
from cujax.methods.salun import largest

TEACHER = float64(ORIGINAL.params)


def test_fine_tuning():
    method = FineTune(learning_rate=0.3, batch_size=4, weight_decay=0.01)
    assert_follows(
        method, lambda params, rows, step: cross_entropy_gradient(params, X[counted(rows)], label_of(rows)), record(method)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradient_ascent(optimizer):
    method = GradientAscent(optimizer=optimizer, learning_rate=0.3, batch_size=2, weight_decay=0.01)

    def gradient(params, rows, step):
        return combine((-1, cross_entropy_gradient(params, X[counted(rows)], label_of(rows))))

    assert_follows(method, gradient, record(method))


def test_neg_grad_plus():
    method = NegGradPlus(learning_rate=0.3, batch_size=2, alpha=0.8)

    def gradient(params, batch, step):
        retain, forget = batch.retain, batch.forget
        return combine(
            (0.8, cross_entropy_gradient(params, X[counted(retain)], label_of(retain))),
            (-0.2, cross_entropy_gradient(params, X[counted(forget)], label_of(forget))),
        )

    assert_follows(method, gradient, record(method))


def test_neg_grad_plus_goes_round_the_forget_set_beside_one_pass_over_the_retain_set():
    """Trap: a loader made anew for each batch, so that the same few rows come again."""
    recorder = record(NegGradPlus(batch_size=1))
    orders = []
    for number in range(2):
        (phase,) = recorder.phases(number)
        batches = list(phase.batches)
        retain = np.concatenate([counted(batch.retain) for batch in batches])
        forget = np.concatenate([counted(batch.forget) for batch in batches])
        np.testing.assert_array_equal(np.sort(retain), SPLIT.retain.indices)
        assert sorted(forget[:3]) == sorted(forget[3:]) == SPLIT.forget.indices.tolist()
        orders += [tuple(forget[:3]), tuple(forget[3:])]
    assert len(set(orders)) > 1


def test_random_labels():
    method = RandomLabels(learning_rate=0.3, batch_size=2)

    def forget_gradient(params, rows, step):
        return cross_entropy_gradient(params, X[counted(rows)], drawn_labels(step, rows))

    recorder = record(method)
    _, batches = assert_follows(method, forget_gradient, recorder)
    np.testing.assert_array_equal(np.sort(np.concatenate([counted(rows) for rows in batches])), SPLIT.forget.indices)
    _, batches = assert_follows(
        method,
        lambda params, rows, step: cross_entropy_gradient(params, X[counted(rows)], label_of(rows)),
        recorder,
        phase=1,
    )
    np.testing.assert_array_equal(np.sort(np.concatenate([counted(rows) for rows in batches])), SPLIT.retain.indices)


def test_a_random_label_is_never_the_true_one_and_always_of_a_class_that_stays():
    labels = np.repeat(np.arange(5), 2000).astype(np.int32)
    classes = np.array([True, True, False, True, True])
    drawn = np.asarray(random_labels(jax.random.key(0), labels, classes))
    assert (drawn != labels).all()
    assert classes[drawn].all()
    shares = np.bincount(drawn[labels == 0], minlength=5) / 2000
    np.testing.assert_allclose(shares, [0, 1 / 3, 0, 1 / 3, 1 / 3], atol=0.04)
    shares = np.bincount(drawn[labels == 2], minlength=5) / 2000
    np.testing.assert_allclose(shares, [0.25, 0.25, 0, 0.25, 0.25], atol=0.04)
    allowed = np.asarray(random_labels(jax.random.key(0), labels, classes, True))
    np.testing.assert_allclose(np.mean(allowed[labels == 0] == 0), 0.25, atol=0.04)


def test_random_labels_are_drawn_anew_for_each_batch():
    rows = next(iter(record(RandomLabels()).phases(0)[0].batches))
    assert len({tuple(drawn_labels(step, rows)) for step in range(8)}) > 1


def test_a_single_class_has_no_other_label():
    alone = CLASS_SPLIT.__class__(
        SPLIT.forget.__class__(np.array([0, 3], np.int32), np.array(["0", "3"])),
        SPLIT.forget.__class__(np.array([6, 9], np.int32), np.array(["6", "9"])),
        SPLIT.validation, SPLIT.test, SPLIT.test, (), (), (0,),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"only class 0 is retained.*true_label_allowed"):
        record(RandomLabels(), alone)


@pytest.mark.parametrize("number", [0, 3])
def test_l1_sparse(number):
    method = L1Sparse(learning_rate=0.3, batch_size=4, alpha=0.05, max_passes=10)
    alpha = 0.05 * (1 - number / 10)

    def gradient(params, rows, step):
        signs = jax.tree.map(np.sign, params)
        return combine((1, cross_entropy_gradient(params, X[counted(rows)], label_of(rows))), (alpha, signs))

    assert_follows(method, gradient, record(method), number=number)


def departed(recorder):
    """The recorder, its student away from the teacher, where the divergence has a gradient."""
    moved = jax.tree.map(lambda leaf: leaf * 1.3 + 0.05, recorder.state.params)
    object.__setattr__(recorder, "state", recorder.state.__class__(recorder.state.step, moved, *_rest(recorder.state)))
    return recorder


def _rest(state):
    return state.model_state, state.opt_state, state.key


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adam", "weight_decay": 0.1}])
def test_scrub(settings):
    method = Scrub(learning_rate=0.2, batch_size=4, forget_batch_size=2, gamma=0.9, alpha=0.3, **settings)

    def away(params, rows, step):
        x = X[counted(rows)]
        return combine((-1, distillation_gradient(params, x, forward(TEACHER, x)[1], 4.0)))

    def near(params, rows, step):
        x = X[counted(rows)]
        return combine(
            (0.9, cross_entropy_gradient(params, x, label_of(rows))),
            (0.3, distillation_gradient(params, x, forward(TEACHER, x)[1], 4.0)),
        )

    recorder = departed(record(method))
    _, batches = assert_follows(method, away, recorder)
    np.testing.assert_array_equal(np.sort(np.concatenate([counted(rows) for rows in batches])), SPLIT.forget.indices)
    _, batches = assert_follows(method, near, recorder, phase=1)
    np.testing.assert_array_equal(np.sort(np.concatenate([counted(rows) for rows in batches])), SPLIT.retain.indices)


def test_scrub_maximises_first_and_only_in_the_first_passes():
    recorder = record(Scrub(max_steps=2, max_passes=4))
    assert [len(recorder.phases(number)) for number in range(4)] == [2, 2, 1, 1]
    for number in range(4):
        assert np.isin(counted(next(iter(recorder.phases(number)[-1].batches))), SPLIT.retain.indices).all()
    assert recorder.options["rewind"] is False
    assert record(Scrub(rewind=True)).options["rewind"] is True


def salient():
    """The half of the parameters with the largest gradient of the forget set, all together."""
    gradient = cross_entropy_gradient(TEACHER, X[SPLIT.forget.indices], Y[SPLIT.forget.indices])
    sizes = np.concatenate([np.abs(leaf).ravel() for leaf in leaves(gradient)])
    threshold = np.sort(sizes)[len(sizes) - round(len(sizes) / 2)]
    return jax.tree.map(lambda leaf: np.abs(leaf) >= threshold, gradient)


def test_salun():
    method, mask = SalUn(learning_rate=0.3, batch_size=2, weight_decay=0.1), salient()

    def forget_gradient(params, rows, step):
        return cross_entropy_gradient(params, X[counted(rows)], drawn_labels(step, rows))

    def retain_gradient(params, rows, step):
        return cross_entropy_gradient(params, X[counted(rows)], label_of(rows))

    recorder = record(method)
    for phase, gradient in enumerate((forget_gradient, retain_gradient)):
        state, _ = assert_follows(method, gradient, recorder, phase=phase, mask=mask)
        moved = jax.tree.map(lambda new, old: np.asarray(new != old), state.params, ORIGINAL.params)
        for found, wanted in zip(leaves(moved), leaves(mask), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_the_salient_parameters_are_a_share_of_all_together():
    tree = {"a": np.array([5.0, -4.0]), "b": np.array([[1.0, 0.0], [3.0, -2.0]])}
    assert [leaf.tolist() for leaf in leaves(largest(tree, 1 / 3))] == [[True, True], [[False, False], [False, False]]]
    assert sum(leaf.sum() for leaf in leaves(largest(jax.tree.map(np.zeros_like, tree), 0.5))) == 3


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_saliency_does_not_depend_on_the_batch_size(batch_size):
    mask = record(SalUn(batch_size=batch_size)).phases(0)[0].step.args[0].mask
    for found, wanted in zip(leaves(mask), leaves(salient()), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_what_saliency_takes_is_on_the_account():
    spent = record(SalUn(batch_size=2)).options["spent"]
    assert (spent.steps, spent.samples) == (0, 4)
    assert spent.flops > 0


def test_bad_teacher():
    method = BadTeacher(learning_rate=0.05, batch_size=3, retain_share=0.5, weight_decay=0.1)
    recorder = record(method)
    bad = float64(MODEL.init(jax.random.split(KEY, 4)[1], np.zeros((1, 2, 2, 1), np.float32)).params)
    assert not np.allclose(bad["head"]["kernel"], TEACHER["head"]["kernel"], atol=0.1)

    def gradient(params, batch, step):
        forget, retain = X[counted(batch.forget)], X[counted(batch.retain)]
        teacher = np.concatenate([forward(bad, forget)[1], forward(TEACHER, retain)[1]])
        return distillation_gradient(params, np.concatenate([forget, retain]), teacher)

    # From the second step on, Adam's update hardly depends on the divergence's scale: this learns its direction.
    assert_follows(method, gradient, recorder)
    assert_follows(BadTeacher(optimizer="sgd", learning_rate=0.3, batch_size=3, retain_share=0.5), gradient,
                   record(BadTeacher(optimizer="sgd", learning_rate=0.3, batch_size=3, retain_share=0.5)))  # fmt: skip


def test_bad_teacher_takes_the_forget_set_and_the_same_share_of_the_retain_set_in_every_pass():
    recorder, used = record(BadTeacher(batch_size=2, retain_share=0.5)), []
    for number in range(2):
        (phase,) = recorder.phases(number)
        batches = list(phase.batches)
        assert sorted(np.concatenate([counted(b.forget) for b in batches])) == SPLIT.forget.indices.tolist()
        used.append(sorted(np.concatenate([counted(b.retain) for b in batches])))
    assert used[0] == used[1]
    assert len(used[0]) == 3
    assert np.isin(used[0], SPLIT.retain.indices).all()


@pytest.mark.parametrize(("n_forget", "n_retain", "batch_size"), [(9, 40, 16), (3, 100, 8), (50, 7, 10), (1, 1, 64)])
def test_mixed_batches_hold_every_row_once_in_one_shape(n_forget, n_retain, batch_size):
    forget, retain = np.arange(n_forget), np.arange(1000, 1000 + n_retain)
    batches = list(mixed_batches(forget, retain, batch_size, jax.random.key(0)))
    assert len(batches) == -(-(n_forget + n_retain) // batch_size)
    for rows, name in ((forget, "forget"), (retain, "retain")):
        parts = [getattr(batch, name) for batch in batches]
        assert sorted(np.concatenate([counted(part) for part in parts])) == rows.tolist()
        assert len({part.indices.shape for part in parts}) == 1
        assert np.isin(np.concatenate([part.indices for part in parts]), rows).all()
        sizes = [part.mask.sum() for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_delete():
    method = Delete(learning_rate=0.3, batch_size=2)

    def gradient(params, rows, step):
        x, labels = X[counted(rows)], label_of(rows)
        answers = forward(TEACHER, x)[1]
        answers[np.arange(len(x)), labels] = -np.inf
        return distillation_gradient(params, x, answers)

    assert_follows(method, gradient, record(method))


@pytest.mark.parametrize("method", [Scrub, Delete, BadTeacher])
def test_teachers_answer_in_eval_mode_and_the_student_learns_in_train_mode(method):
    recorder = record(method(momentum=0.123456))
    for phase in recorder.phases(0):
        jax.clear_caches()
        MODES.clear()
        state, _ = take(recorder.state, phase, [next(iter(phase.batches))])
        assert MODES.count(True) >= 1
        assert MODES.count(False) == (2 if method is BadTeacher else 1)
        assert int(state.model_state["calls"]) == 1


def test_the_published_defaults():
    """As in the table of the methods' public code."""

    def of(method):
        return method.optimizer, method.learning_rate, method.momentum, method.weight_decay, method.max_passes

    assert of(FineTune()) == ("sgd", 0.01, 0.9, 5e-4, 10)
    assert of(NegGradPlus()) == ("sgd", 0.01, 0.9, 0.0, 5)
    assert of(RandomLabels()) == of(SalUn()) == ("sgd", 0.013, 0.9, 5e-4, 10)
    assert of(Munba()) == ("sgd", 0.01, 0.9, 5e-4, 10)
    assert of(L1Sparse()) == ("sgd", 0.01, 0.9, 5e-4, 10)
    assert of(Scrub()) == ("sgd", 5e-4, 0.9, 5e-4, 3)
    assert of(Scrub.small()) == ("adamw", 5e-4, 0.9, 0.1, 10)
    assert (Scrub().gamma, Scrub().alpha, Scrub().temperature, Scrub().max_steps) == (0.99, 0.001, 4.0, 2)
    small = Scrub.small()
    assert (small.gamma, small.alpha, small.temperature, small.max_steps) == (1.0, 0.5, 2.0, 3)
    assert (BadTeacher().optimizer, BadTeacher().learning_rate, BadTeacher().max_passes) == ("adamw", 1e-4, 1)
    assert (BadTeacher().batch_size, BadTeacher().retain_share) == (256, 0.3)
    assert of(Delete()) == ("sgd", 1e-4, 0.9, 0.0, 20)
    assert Delete().batch_size == 128
    assert SalUn().salient_share == 0.5


def test_the_network_of_these_tests_is_the_same_in_numpy():
    embedding, logits = forward(TEACHER, X)
    outputs, _ = MODEL.apply(*ORIGINAL, IMAGES.images, train=False)
    assert_close((outputs.embedding, outputs.logits), (embedding, logits))
    random = np.random.default_rng(1).normal(size=logits.shape)
    found = jax.grad(lambda params: (MODEL.apply(params, {"calls": 0}, IMAGES.images, train=True)[0].logits * random).sum())(
        ORIGINAL.params
    )
    assert_close(found, backward(TEACHER, X, random))


@pytest.mark.parametrize("settings", [{"learning_rate": 0.3}, {"learning_rate": 0.01, "optimizer": "adamw"}])
def test_scrubs_first_ascent_departs_from_the_teacher(settings):
    """A student equal to its teacher has no gradient of the divergence where train mode changes nothing."""
    method = Scrub(weight_decay=0.0, forget_batch_size=2, batch_size=4, **settings)
    recorder = record(method)
    state, phase = recorder.state, recorder.phases(0)[0]
    distances = []
    for batch in [*phase.batches] * 5:
        state, _ = take(state, phase, [batch])
        moved = [
            np.asarray(new) - np.asarray(old) for new, old in zip(leaves(state.params), leaves(ORIGINAL.params), strict=True)
        ]
        distances.append(np.sqrt(sum((part**2).sum() for part in moved)))
    start = recorder.state.params
    apart = [np.asarray(new) - np.asarray(old) for new, old in zip(leaves(start), leaves(ORIGINAL.params), strict=True)]
    size = np.sqrt(sum((part**2).sum() for part in apart))
    assert 0 < size < 0.01 * np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in leaves(ORIGINAL.params)))
    assert distances[-1] > 2 * size
    assert recorder.options["original"] is ORIGINAL
