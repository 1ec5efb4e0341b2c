"""Batch statistics computed anew, the retain set alone, the line to the original, few labelled samples: against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from cujax.adapters import from_function
from cujax.audit.evidence import Evidence, Line, RetainCourse
from cujax.audit.few_shot import few_shot_probe
from cujax.audit.from_retain import look_from_retain, straight_line, tune_on_retain
from cujax.audit.from_retain import metrics as metrics_from_retain
from cujax.audit.intervals import NotAvailable
from cujax.audit.recalibration import metrics as recalibration_metrics
from cujax.audit.recalibration import recalibrate
from cujax.data.batches import DeviceImages
from cujax.model import Variables
from cujax.training.supervised import Training

MOMENTUM, N = 0.9, 60
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, N)
PIXELS = 3 + 2 * (1.5 * np.eye(3, 4)[LABELS] + 0.3 * RNG.normal(size=(N, 4)))
IMAGES = DeviceImages(
    jnp.asarray(PIXELS.reshape(N, 2, 2, 1), jnp.float32), jnp.asarray(LABELS, jnp.int32), jnp.zeros(1), jnp.ones(1)
)
RETAIN, FORGET = np.flatnonzero(LABELS < 2), np.flatnonzero(LABELS == 2)
WEIGHTS = np.eye(4, 3)


def normalising(params, model_state, images, *, train, key):
    """One layer with batch statistics, kept as running averages, and a counter of calls."""
    x = images.reshape(len(images), -1)
    mean, variance = (x.mean(0), x.var(0)) if train else (model_state["mean"], model_state["var"])
    embedding = (x - mean[None]) / jnp.sqrt(variance + 1e-5)[None]
    state = model_state
    if train:
        averages = {"mean": x.mean(0), "var": x.var(0)}
        state = {name: MOMENTUM * model_state[name] + (1 - MOMENTUM) * now for name, now in averages.items()}
        state["calls"] = model_state["calls"] + 1
    return (embedding, embedding @ params), state


def plain(params, model_state, images, *, train, key):
    embedding = images.reshape(len(images), -1)
    return (embedding, embedding @ params), model_state


STATE = {"mean": jnp.zeros(4), "var": jnp.ones(4), "calls": jnp.int32(7)}
NORMALISING = from_function(lambda key, images: (jnp.zeros((4, 3)), STATE), normalising)
PLAIN = from_function(lambda key, images: (jnp.zeros((4, 3)), {}), plain)


def weights(values):
    return jnp.asarray(values, jnp.float32)


def test_statistics_are_those_of_the_images_in_float64_whatever_they_were():
    spoiled = {"mean": jnp.full(4, 50.0), "var": jnp.full(4, 9.0), "calls": jnp.int32(7)}
    found = recalibrate(NORMALISING, Variables(weights(WEIGHTS), spoiled), IMAGES, RETAIN)
    np.testing.assert_allclose(found.model_state["mean"], PIXELS[RETAIN].mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.model_state["var"], PIXELS[RETAIN].var(0), rtol=1e-3)
    assert int(found.model_state["calls"]) == 7, "a counter is no average"
    np.testing.assert_array_equal(found.params, WEIGHTS)


def test_a_network_without_batch_statistics_has_nothing_to_renew_and_the_metric_says_so():
    assert recalibrate(PLAIN, Variables(weights(WEIGHTS), {}), IMAGES, RETAIN) is None
    (metric,) = recalibration_metrics(())
    with pytest.raises(NotAvailable, match="no batch statistics"):
        metric.compute(None, Evidence(None, recalibrated=np.zeros(0, bool)))
    with pytest.raises(NotAvailable, match="level quick"):
        metric.compute(None, Evidence(None))
    assert metric.compute(None, Evidence(None, recalibrated=np.array([True, True, False, False]))).value == 0.5


def test_distance_and_accuracies_on_the_line_are_those_of_numpy():
    here, there = RNG.normal(size=(4, 3)), WEIGHTS
    line = straight_line(PLAIN, Variables(weights(here), {}), Variables(weights(there), {}), IMAGES, FORGET, RETAIN)
    assert line.distance == pytest.approx(np.linalg.norm(here - there), rel=1e-6)
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        expected = [np.mean((PIXELS[rows] @ ((1 - at) * here + at * there)).argmax(1) == LABELS[rows]) for at in line.points]
        np.testing.assert_allclose(getattr(line, name), expected, atol=1e-6)


def test_the_barrier_is_the_deepest_fall_below_the_chord():
    found = {metric.key: metric for metric in metrics_from_retain(())}
    line = Line(2.0, (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.3, 0.9, 1.0), (0.9, 0.8, 0.5, 0.7, 1.0))
    assert found["line_barrier"].compute(None, Evidence(None, line=line)).value == pytest.approx(0.95 - 0.5)
    assert found["line_forget_halfway"].compute(None, Evidence(None, line=line)).value == 0.3


def test_fine_tuning_on_the_retain_set_is_adamw_at_a_tenth_of_the_rate_in_float64():
    recipe = Training(batch_size=N, learning_rate=0.5)
    start = RNG.normal(size=(4, 3))
    found = tune_on_retain(PLAIN, Variables(weights(start), {}), IMAGES, RETAIN, recipe)
    w, m, v = start.copy(), np.zeros((4, 3)), np.zeros((4, 3))
    x, y = PIXELS[RETAIN], np.eye(3)[LABELS[RETAIN]]
    for step in range(2):  # a batch an epoch
        p = np.exp(x @ w)
        gradient = x.T @ (p / p.sum(1, keepdims=True) - y) / len(x)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 0.05 * (1 + np.cos(np.pi * step / 2)) / 2
        w -= rate * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
    np.testing.assert_allclose(found.params, w, atol=1e-4)
    course = look_from_retain(PLAIN, Variables(weights(start), {}), IMAGES, FORGET, RETAIN, recipe)
    np.testing.assert_array_equal(course.right, (PIXELS[FORGET] @ w).argmax(1) == 2)


def test_a_diverged_course_has_no_value():
    found = {metric.key: metric for metric in metrics_from_retain(())}
    diverged = Evidence(None, from_retain=RetainCourse((), diverged=True))
    with pytest.raises(NotAvailable, match="diverged"):
        found["accuracy_from_retain"].compute(None, diverged)


def clusters(rng, labels, centres):
    return centres[labels] + 0.1 * rng.normal(size=(len(labels), centres.shape[1]))


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_a_class_of_its_own_place_is_read_from_few_samples_and_one_that_shares_a_place_is_not(shots):
    rng = np.random.default_rng(1)
    labels, asked = np.repeat([0, 1, 2], 40), np.full(30, 2)
    apart, shared = np.array([[0.0, 0], [4, 0], [0, 4]]), np.array([[0.0, 0], [4, 0], [4, 0]])

    def read(centres):
        known = clusters(rng, labels, centres)
        return few_shot_probe(known, labels, clusters(rng, asked, centres), asked, classes=[2], shots=shots).mean()

    assert read(apart) > 0.9
    assert read(shared) < 0.8
    with pytest.raises(ValueError, match="there are 40 labelled samples of class 2, but 41 are needed"):
        few_shot_probe(labels[:, None], labels, labels[:, None], labels, classes=[2], shots=41)
