"""`cujax.unlearn` and `cujax.audit_model` on a table: what they give, and what they refuse."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cujax
from cujax.data.batches import DeviceImages
from cujax.experiments.judging import verdict_without_retrained
from cujax.methods import ContrastiveUnlearning, ShrinkPerturb
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


def test_a_request_that_was_not_carried_out_is_the_first_thing_said(trained):
    """Retraining for one epoch harms the network, so that the original is returned."""
    short = cujax.TrainingRecipe(epochs=1, batch_size=200, learning_rate=1e-5)
    unlearned = cujax.unlearn(MODEL, trained, ROWS, LABELS, forget=np.arange(8), validation=HELD_OUT, test=TEST,
                              method=ShrinkPerturb(shrink=0.01, training=short))  # fmt: skip
    np.testing.assert_array_equal(unlearned.variables.params["head"]["kernel"], trained.params["head"]["kernel"])
    assert str(unlearned).startswith("UNCHANGED: the parameters are those of the original; nothing was forgotten.\n")
    assert "raise the share of the epochs" in str(unlearned)
    audited = cujax.audit_model(unlearned, retrained=1, recipe=RECIPE)
    assert str(audited).startswith("UNCHANGED")


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
        ({"validation": (HELD_OUT[0][:, :5], HELD_OUT[1])}, "validation inputs must have the shape and dtype of the inputs"),
        ({"validation": 1.5}, "above 0 and below 1"),
        ({"method": "retrain_short"}, "method is 'retrain_short', but must be a method with its settings"),
        ({"test": TEST[0]}, r"test must be a pair"),
        ({"embedding": "head"}, "a cujax.Model already has an embedding"),
    ],
)
def test_what_cannot_be_meant_is_refused(trained, arguments, said):
    complete = {"inputs": ROWS, "labels": LABELS, "forget": 2} | arguments
    with pytest.raises(ValueError, match=said):
        cujax.unlearn(MODEL, trained, **{"method": METHOD} | complete)


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


class NnxNet(nnx.Module):
    """Logits alone, with dropout."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, rows):
        return self.head(self.dropout(nnx.relu(self.hidden(rows))))


@pytest.mark.parametrize("form", [lambda net: net, nnx.state], ids=["module", "state"])
def test_an_nnx_state_comes_back_as_one(form):
    net = NnxNet(nnx.Rngs(0))
    rows, labels = np.eye(60, 4, dtype=np.float32), np.arange(60) % 3
    method = cujax.ContrastiveUnlearning(max_passes=1, retain_batch_size=16)
    result = cujax.unlearn(net, form(net), rows, labels, forget=1, copies="keep", method=method, embedding="head")
    nnx.update(net, result.variables)
    net.eval()
    np.testing.assert_allclose(
        net(rows), result.model.apply(*result.unlearned.variables, rows, train=False)[0].logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("given", ["a module", "a module and its constructor"])
def test_an_nnx_module_is_unlearned_judged_and_updated(given):
    net = NnxNet(nnx.Rngs(0))
    made = cujax.from_nnx(net, constructor=NnxNet, embedding="head")
    network, options = (net, {"embedding": "head"}) if given == "a module" else (made, {})
    rng = np.random.default_rng(0)
    labels = np.arange(150) % 3
    rows = (np.eye(3, 4)[labels] * 3 + rng.normal(size=(150, 4))).astype(np.float32)
    test = rows[120:], labels[120:]
    method = cujax.ContrastiveUnlearning(max_passes=1, retain_batch_size=32)
    before = made.variables_of(net)
    result = cujax.unlearn(network, before, rows[:120], labels[:120], forget=2, test=test, method=method, **options)
    made.update(net, result.variables)
    net.eval()
    np.testing.assert_allclose(
        net(rows), result.model.apply(*result.variables, rows, train=False)[0].logits, rtol=1e-5, atol=1e-5
    )
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, result.variables)), strict=True))
    recipe = cujax.TrainingRecipe(epochs=1, batch_size=40)
    if given == "a module":
        with pytest.raises(ValueError, match="constructor="):
            cujax.audit_model(result, retrained=2, recipe=recipe)
        others = [made.init(jax.random.key(seed), rows[:1]) for seed in (1, 2)]
        assert cujax.audit_model(result, retrained=others).verdict.n_retrained == 2
    else:
        assert cujax.audit_model(result, retrained=2, recipe=recipe).verdict.n_retrained == 2
