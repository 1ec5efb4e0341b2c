"""What `cujax.unlearn` says of inputs, arrays and networks that come in another form than it takes."""

import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import cujax
from cujax.one_call.network import as_variables

RNG = np.random.default_rng(0)
ROWS, LABELS = RNG.normal(size=(60, 5, 2)).astype(np.float32), np.arange(60) % 3
METHOD = cujax.ContrastiveUnlearning(max_passes=1, retain_batch_size=16)


class Net(nn.Module):
    @nn.compact
    def __call__(self, rows):
        inputs = jax.tree.leaves(rows)
        flat = [row.reshape(len(row), -1) for row in inputs]
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(sum(nn.Dense(6)(one) for one in flat)))
        return nn.Dense(3, name="head")(nn.relu(x))


VARIABLES = Net().init(jax.random.key(0), ROWS[:1])
MODEL = cujax.from_linen(Net(), embedding="head")


def unlearned(inputs=ROWS, labels=LABELS, variables=VARIABLES, **options):
    return cujax.unlearn(Net(), variables, inputs, labels, forget=0, embedding="head", method=METHOD, **options)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (list(ROWS), "^inputs is a list of 60 arrays"),
        (tuple(ROWS), "^inputs is a tuple of 60 arrays"),
        (list(ROWS[:59]), "^inputs is a list of 59 arrays"),
        (ROWS.tolist(), "^inputs is a list of 60 lists"),
        (ROWS[:59].tolist(), "^inputs is a list of 59 lists"),
        (list(range(60)), "^inputs is a list of 60 numbers"),
    ],
)
def test_a_list_of_rows_is_refused_with_the_way_to_stack_it(inputs, said):
    with pytest.raises(ValueError, match=rf"{said}.*give np.stack\(inputs\)") as caught:
        unlearned(inputs)
    assert len(str(caught.value)) < 200
    assert np.stack(inputs).shape[0] == len(inputs)


def test_lists_of_rows_are_refused_wherever_inputs_are_given():
    for name in ("test", "validation"):
        with pytest.raises(ValueError, match=rf"^{name} inputs is a list of 60 arrays.*give np.stack\({name}_inputs\)"):
            unlearned(**{name: (list(ROWS), LABELS)})


@pytest.mark.parametrize("form", [list, tuple])
def test_several_arrays_are_the_inputs_of_a_network_of_several(form):
    inputs = form([ROWS, ROWS[:, 0]])
    variables = Net().init(jax.random.key(0), jax.tree.map(lambda rows: rows[:1], inputs))
    assert unlearned(inputs, variables=variables).split.forgotten_classes == (0,)


def test_inputs_of_many_lengths_are_named_in_a_short_message():
    with pytest.raises(ValueError, match="and 52 more; stack samples along the first axis") as caught:
        unlearned({"a": ROWS, "b": [np.ones(k + 1) for k in range(59)]})
    assert len(str(caught.value)) < 400


def test_what_a_restored_dict_holds_beside_the_arrays_is_left_out_and_named():
    restored = {**VARIABLES, "step": np.int32(7), "opt_state": {"mu": VARIABLES["params"]}}
    with pytest.warns(UserWarning, match="contains opt_state, step in addition to the arrays of the network") as warned:
        taken = as_variables(restored, MODEL, ROWS[:1])
    assert len(warned) == 1
    own = VARIABLES["params"], {"batch_stats": VARIABLES["batch_stats"]}
    jax.tree.map(np.testing.assert_array_equal, tuple(taken), own)
    with pytest.warns(UserWarning, match="opt_state, step"):
        assert set(unlearned(variables=restored).variables) == {"params", "batch_stats"}


def test_a_dict_in_the_form_of_our_variables_is_taken_without_a_word():
    ours = {"params": VARIABLES["params"], "model_state": {"batch_stats": VARIABLES["batch_stats"]}, "step": None}
    with warnings.catch_warnings(action="error"):
        taken = as_variables(ours, MODEL, ROWS[:1])
    assert set(taken.model_state) == {"batch_stats"}


def test_missing_arrays_are_refused_whatever_else_there_is():
    with pytest.warns(UserWarning, match="opt_state"), pytest.raises(ValueError, match=r"missing are .*batch_stats"):
        as_variables({"params": VARIABLES["params"], "opt_state": {"a": np.ones(2)}}, MODEL, ROWS[:1])


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(10, 3, rngs=rngs)

    def __call__(self, rows):
        return self.head(rows.reshape(len(rows), -1))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_logits_alone_are_refused_by_shape_and_the_way_out_is_an_argument_of_the_call(kind):
    network = Net() if kind == "linen" else Plain(nnx.Rngs(0))
    variables = VARIABLES if kind == "linen" else nnx.state(network)
    said = r"^the network returned one array \(1, 3\) float32, but must.*give embedding=\"NAME\".*cujax\.unlearn"
    with pytest.raises(ValueError, match=said) as caught:
        cujax.unlearn(network, variables, ROWS, LABELS, forget=0, method=METHOD)
    assert "racer" not in str(caught.value)
