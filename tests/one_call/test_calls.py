"""`cujax.unlearn` and `cujax.audit_model` on a table: what they give, and what they refuse."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cujax
from cujax.data.batches import DeviceImages
from cujax.experiments.judging import verdict_without_retrained
from cujax.methods import ContrastiveUnlearning
from cujax.one_call.network import as_variables
from cujax.training.predict import accuracy, predict
from cujax.training.supervised import Trainer

RNG = np.random.default_rng(0)
CENTRES = 3 * RNG.normal(size=(4, 6))


def some(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    return (CENTRES[labels] + rng.normal(size=(n, 6))).astype(np.float32), labels


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        x = nn.relu(nn.Dense(16)(inputs))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(8)(x)))


MODEL = cujax.from_linen(Net(), embedding="head")
ROWS, LABELS = some(240, 1)
HELD_OUT, TEST = some(60, 2), some(80, 3)
RECIPE = cujax.TrainingRecipe(epochs=4, batch_size=32, learning_rate=0.01)
METHOD = ContrastiveUnlearning(max_passes=8, retain_batch_size=32)


@pytest.fixture(scope="module")
def trained():
    arrays = DeviceImages(jnp.asarray(ROWS), jnp.asarray(LABELS, jnp.int32), jnp.zeros(0), jnp.zeros(0))
    return Trainer(RECIPE, arrays).train(MODEL, np.arange(240, dtype=np.int32), jax.random.key(0)).variables


@pytest.fixture(scope="module")
def result(trained):
    given = {"params": trained.params, **trained.model_state}
    return cujax.unlearn(
        Net(), given, ROWS, LABELS, forget=2, embedding="head", validation=HELD_OUT, test=TEST, method=METHOD
    )


def test_a_class_is_forgotten_and_the_tree_is_as_given(result, trained):
    before = Net().apply({"params": trained.params, **trained.model_state}, ROWS, train=False).argmax(axis=1)
    after = np.asarray(Net().apply(result.variables, ROWS, train=False).argmax(axis=1))
    of_class = LABELS == 2
    assert np.mean(before[of_class] == 2) > 0.9
    assert np.mean(after[of_class] == 2) <= 0.3
    assert np.mean(after[~of_class] == LABELS[~of_class]) > 0.85
    assert set(result.variables) == {"params", "batch_stats"}
    assert result.split.forgotten_classes == (2,)
    assert len(result.split.validation) == 60
    assert result.history.checks[0].forget_accuracy > 0.9
    assert result.verdict.n_retrained == 0


def test_the_verdict_is_that_of_runs_without_retrained_models(result):
    again = verdict_without_retrained(result.cases[0], result.original, result.unlearned)
    assert again == result.verdict


def test_the_audit_compares_with_trained_models(result):
    report = cujax.audit_model(result, retrained=5, recipe=RECIPE)
    assert report.verdict.n_retrained == 5
    case = result.cases[0]
    for variables in report.retrained:
        found = predict(MODEL, variables, case.train_images, result.split.forget.indices)
        assert accuracy(found) == 0.0
    by_key = {metric.key: metric for metric in report.findings[0].metrics}
    answers = predict(MODEL, result.unlearned.variables, case.test_images, np.flatnonzero(TEST[1] == 2))
    assert by_key["forget_test_accuracy"].values["unlearned"].value == accuracy(answers)
    given = cujax.audit_model(result, retrained=report.retrained)
    assert given.verdict == report.verdict
    assert given.findings[0].level == "quick"


def test_what_an_audit_cannot_do_without_is_asked_for(result, trained):
    with pytest.raises(ValueError, match=r"recipe=cujax.TrainingRecipe"):
        cujax.audit_model(result, retrained=5)
    with pytest.raises(ValueError, match="is the original, parameter for parameter"):
        cujax.audit_model(result, retrained=[trained])
    bare = cujax.unlearn(MODEL, trained, ROWS, LABELS, forget=[0, 5, 9], method=METHOD)
    with pytest.raises(ValueError, match=r"0 test samples.*give test="):
        cujax.audit_model(bare, retrained=[])
    assert cujax.audit_model(bare, retrained=[], test=TEST).verdict.n_retrained == 0
    assert isinstance(bare.variables, cujax.Variables)
    assert bare.history.checks[0].target is None


def test_rows_and_a_mask_of_them_are_the_same_request(trained):
    mask = np.zeros(240, bool)
    mask[[3, 8, 9]] = True
    method = ContrastiveUnlearning(max_passes=1, retain_batch_size=32)
    one, other = (
        cujax.unlearn(MODEL, trained, ROWS, LABELS, forget=forget, method=method, validation=HELD_OUT)
        for forget in (np.array([9, 3, 8]), mask)
    )
    assert one.split.forget.indices.tolist() == other.split.forget.indices.tolist() == [3, 8, 9]
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_a_fraction_is_held_out_beside_the_forgotten_rows(trained):
    with pytest.warns(UserWarning, match="has not seen"):
        found = cujax.unlearn(MODEL, trained, ROWS, LABELS, forget=np.arange(40), validation=0.2, method=METHOD)
    assert found.split.forget.indices.tolist() == list(range(40))
    assert 0 < len(found.split.validation) <= 48
    assert not np.intersect1d(found.split.validation.indices, np.arange(40)).size


@pytest.mark.parametrize(
    "given",
    [
        lambda variables: types.SimpleNamespace(params=variables.params, batch_stats=variables.model_state["batch_stats"]),
        lambda variables: types.SimpleNamespace(params=variables.params, model_state=variables.model_state),
        lambda variables: types.SimpleNamespace(params={"params": variables.params, **variables.model_state}),
        lambda variables: {"params": variables.params, **variables.model_state},
    ],
)
def test_arrays_are_taken_as_people_have_them(trained, given):
    jax.tree.map(np.testing.assert_array_equal, as_variables(given(trained), MODEL, ROWS[:1]), trained)


def changed(rows, **where):
    rows = np.array(rows)
    for row, value in where.items():
        rows[int(row[1:])] = value
    return rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": changed(LABELS, _7=4)}, "below 4, the number of logits of the network, but row 7 is 4"),
        ({"labels": changed(LABELS, _3=-1)}, "row 3 is -1"),
        ({"labels": LABELS[:-1]}, r"\(239,\), but inputs have 240 rows"),
        ({"labels": LABELS.astype(float)}, r"labels.astype\(int\)"),
        ({"labels": np.eye(4)[LABELS]}, "argmax"),
        ({"inputs": changed(ROWS, _5=np.nan)}, r"NaN.*\[5\]"),
        ({"inputs": ROWS.astype(str)}, "must be numbers"),
        ({"forget": np.array([], int)}, "selects no row"),
        ({"forget": np.zeros(240, bool)}, "selects no row"),
        ({"forget": np.ones(239, bool)}, r"mask of shape \(239,\)"),
        ({"forget": np.ones(240, bool)}, "nothing would be retained"),
        ({"forget": np.ones(240, int)}, r"more than once; if it is a mask.*astype\(bool\)"),
        ({"forget": [240]}, "row 240, but rows go from 0 to 239"),
        ({"forget": [0.5]}, "row indices"),
        ({"forget": 4}, "class 4, but classes go from 0 to 3"),
        ({"forget": (1, 2)}, "ForgetClasses"),
        ({"forget": True}, "forget is True"),
        ({"forget": [1, 2], "validation": [2, 3]}, "row 2, which is among the validation rows"),
        ({"validation": (HELD_OUT[0][:, :5], HELD_OUT[1])}, "validation inputs must be like the inputs"),
        ({"validation": 1.5}, "above 0 and below 1"),
        ({"test": TEST[0]}, r"test must be a pair"),
        ({"embedding": "head"}, "the model has its embedding"),
    ],
)
def test_what_cannot_be_meant_is_refused(trained, arguments, said):
    complete = {"inputs": ROWS, "labels": LABELS, "forget": 2} | arguments
    with pytest.raises(ValueError, match=said):
        cujax.unlearn(MODEL, trained, method=METHOD, **complete)


def test_arrays_of_another_network_are_refused(trained):
    with pytest.raises(ValueError, match=r"missing are .*batch_stats"):
        cujax.unlearn(MODEL, {"params": trained.params}, ROWS, LABELS, forget=2)
    cut = jax.tree.map(lambda leaf: leaf, trained)
    cut.params["head"]["kernel"] = cut.params["head"]["kernel"][:, :3]
    with pytest.raises(ValueError, match=r"\(8, 3\), but the network has \(8, 4\)"):
        cujax.unlearn(MODEL, cut, ROWS, LABELS, forget=2)
    with pytest.raises(TypeError, match=r"must be a cujax\.Model"):
        cujax.unlearn(print, trained, ROWS, LABELS, forget=2)


def test_copies_are_refused_or_go_with_the_request(trained):
    rows = np.array(ROWS)
    rows[8] = rows[0]
    with pytest.raises(ValueError, match=r"with \(copies="):
        cujax.unlearn(MODEL, trained, rows, LABELS, forget=[0], method=METHOD)
    found = cujax.unlearn(MODEL, trained, rows, LABELS, forget=[0], method=METHOD, copies="with")
    assert found.split.forget.indices.tolist() == [0, 8]


def test_nothing_is_written_and_the_given_arrays_stay(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = jax.tree.map(np.array, trained)
    cujax.unlearn(MODEL, trained, ROWS, LABELS, forget=[1, 2], method=METHOD)
    assert list(tmp_path.iterdir()) == []
    jax.tree.map(np.testing.assert_array_equal, before, trained)


def test_the_requests_of_runs_are_taken(trained):
    found = cujax.unlearn(MODEL, trained, ROWS, LABELS, forget=cujax.ForgetClasses((0, 3)), method=METHOD)
    assert found.split.forgotten_classes == (0, 3)


def test_a_subject_is_forgotten_with_all_of_its_rows(trained):
    subjects = np.array([f"person-{row % 48}" for row in range(240)])
    found = cujax.unlearn(
        MODEL,
        trained,
        ROWS,
        LABELS,
        forget=cujax.ForgetSubject("person-7"),
        subjects=subjects,
        method=METHOD,
        validation=HELD_OUT,
    )
    assert found.split.forget.indices.tolist() == [7, 55, 103, 151, 199]
    with pytest.raises(ValueError, match=r"subjects are .* must be \[240\]"):
        cujax.unlearn(MODEL, trained, ROWS, LABELS, forget=cujax.ForgetSubject("a"), subjects=subjects[:9])
