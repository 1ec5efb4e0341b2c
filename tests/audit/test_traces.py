"""What a model still shows of what it was to forget: exact figures of networks that read labels off a mark in the image."""

from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_function
from cujax.audit.traces import Traces
from cujax.data.batches import DeviceImages
from cujax.data.requests import Part, Split
from cujax.model import Outputs, Variables
from cujax.training.predict import predict

CLASSES, EACH = 5, 40
LABELS = np.repeat(np.arange(CLASSES), EACH)
NUMBER = np.tile(np.arange(EACH), CLASSES)
VALIDATION = NUMBER < 8
MARKED = np.ones(len(LABELS), bool)


def apply(sight, model_state, images, *, train, key):
    """The tap and the logits see the mark, where there is one; the embedding sees nothing."""
    seen = sight * (images[:, 0, 0] == jnp.arange(1, CLASSES + 1)[None]).astype(jnp.float32)
    return Outputs(jnp.zeros((len(images), 2)), 10 * seen, OrderedDict(below=seen)), model_state


def traces(forget, marked, *, sight, untrained_sight=0.0, forgotten_classes=()):
    def part(rows):
        return Part(np.flatnonzero(rows).astype(np.int32), np.flatnonzero(rows).astype(str))

    nothing = part(np.zeros(len(LABELS), bool))
    kept = ~VALIDATION & ~forget
    split = Split(part(forget), part(kept), part(VALIDATION), nothing, nothing, forgotten_classes, forgotten_classes)
    marks = jnp.asarray(np.where(marked, LABELS + 1, 0).reshape(-1, 1, 1, 1), jnp.float32)
    images = DeviceImages(marks, jnp.asarray(LABELS, jnp.int32), jnp.zeros(1), jnp.ones(1))
    model = from_function(lambda key, images: (jnp.float32(untrained_sight), {}), apply, num_classes=CLASSES)
    variables = Variables(jnp.float32(sight), {})
    answers = predict(model, variables, images, split.forget.indices)
    held_out = predict(model, variables, images, split.validation.indices)
    held_out = held_out.take(np.isin(held_out.labels, answers.labels))
    return Traces(model, split, images).of(variables, answers, held_out)


def class_traces(**sights):
    return traces(~VALIDATION & (LABELS == 2), MARKED, forgotten_classes=(2,), **sights)


def test_a_class_is_read_where_a_probe_finds_it_and_an_untrained_network_shows_none_of_it():
    assert class_traces(sight=1.0) == {"loss": 0.0, "features": 0.5}, "the tap shows all of it, the embedding nothing"


def test_what_lies_in_the_images_is_no_trace_of_a_class():
    assert class_traces(sight=1.0, untrained_sight=1.0) == {"loss": 0.0, "features": 0.0}


def test_a_class_that_is_read_less_than_from_untrained_networks_earns_nothing():
    assert class_traces(sight=0.0, untrained_sight=1.0) == {"loss": 0.0, "features": 0.0}


@pytest.mark.parametrize("remembered", [True, False])
def test_samples_are_told_from_held_out_ones_on_either_side(remembered):
    samples = ~VALIDATION & (NUMBER >= 30)
    found = traces(samples, ~VALIDATION if remembered else ~samples, sight=1.0)
    # Without a mark a probe can but name one class for all: it is right on a fifth.
    assert found == {"loss": 0.5, "features": pytest.approx((1 - 1 / CLASSES) / 2)}


def test_samples_that_are_read_as_held_out_ones_show_no_trace():
    samples = ~VALIDATION & (NUMBER >= 30)
    for marked in (MARKED, ~VALIDATION & ~samples):
        assert traces(samples, marked, sight=1.0) == {"loss": 0.0, "features": 0.0}


def test_without_validation_images_of_the_class_nothing_can_be_said(monkeypatch):
    monkeypatch.setitem(globals(), "VALIDATION", VALIDATION & (LABELS != 2))
    with pytest.raises(ValueError, match="there are 0 held-out samples"):
        class_traces(sight=1.0)
