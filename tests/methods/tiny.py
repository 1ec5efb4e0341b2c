"""A network of two dense layers, in JAX and in NumPy float64, and what a method would have the loop run on 12 images."""

import jax
import jax.numpy as jnp
import numpy as np

from cujax.adapters import from_function
from cujax.data.batches import DeviceImages
from cujax.data.requests import Part, Split
from cujax.methods.base import Loop, Unlearned
from cujax.methods.random_labels import random_labels
from cujax.model import Variables

PIXELS, HIDDEN, CLASSES = 4, 5, 3
KEY = jax.random.key(3)
MODES = []  # the mode of each traced call of the network


def init(key, images):
    keys = jax.random.split(key)
    params = {
        "hidden": {"bias": jnp.full(HIDDEN, 0.1), "kernel": jax.random.normal(keys[0], (PIXELS, HIDDEN)) / 2},
        "head": {"bias": jnp.zeros(CLASSES), "kernel": jax.random.normal(keys[1], (HIDDEN, CLASSES))},
    }
    return params, {"calls": jnp.int32(0)}


def apply(params, model_state, images, *, train, key):
    MODES.append(train)
    x = images.reshape(images.shape[0], -1)
    embedding = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    logits = embedding @ params["head"]["kernel"] + params["head"]["bias"][None]
    return (embedding, logits), {"calls": model_state["calls"] + 1}


MODEL = from_function(init, apply, num_classes=CLASSES, layers=("hidden", "head"))
ORIGINAL = Variables(*init(jax.random.key(0), None))

_rng = np.random.default_rng(0)
X = _rng.normal(size=(12, PIXELS))
Y = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
IMAGES = DeviceImages(jnp.asarray(X.reshape(12, 2, 2, 1), jnp.float32), jnp.asarray(Y, jnp.int32), jnp.zeros(1), jnp.ones(1))
LOOP = Loop(IMAGES)


def part(rows):
    rows = np.array(rows, np.int32)
    return Part(rows, rows.astype(str))


# Samples are forgotten: 3 of 12, of classes 0, 1 and 2; one held out of each class.
SPLIT = Split(part([0, 1, 2]), part([3, 4, 5, 6, 7, 8]), part([9, 10, 11]), part([]), part([]), (), ())
# Class 0 is forgotten.
CLASS_SPLIT = Split(part([0, 3, 6]), part([1, 2, 4, 5, 7, 8]), part([9, 10, 11]), part([]), part([]), (0,), (0,))


class Recorder(Loop):
    """The loop, but it keeps what a method would have it run instead of running it."""

    def run(self, model, state, phases, split, **options):
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "phases", phases)
        object.__setattr__(self, "options", options)
        return Unlearned(model, state.params, state.model_state, None)


def record(method, split=SPLIT, original=ORIGINAL, key=KEY):
    """What the method would have the loop run."""
    recorder = Recorder(IMAGES)
    method(MODEL, original, split, key=key, loop=recorder)
    return recorder


@jax.jit
def advance(step, state, batch):
    return step(state, batch)


def take(state, phase, batches=None):
    """The state after a step on each batch of a phase, and the batches."""
    batches = list(phase.batches) if batches is None else batches
    for batch in batches:
        state, metrics = advance(phase.step, state, phase.prepare(IMAGES, batch, KEY))
        assert metrics["finite"]
    return state, batches


def drawn_labels(step, rows, true_label_allowed=False):
    """What the step at this number draws for a batch, by the key that it has."""
    state_key = jax.random.split(KEY, 3)[0]
    label_key, _ = jax.random.split(jax.random.fold_in(state_key, step))
    classes = np.ones(CLASSES, bool)
    return np.asarray(random_labels(label_key, IMAGES.labels[rows.indices], classes, true_label_allowed))[rows.mask]


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def forward(params, x):
    """Embeddings and logits."""
    embedding = np.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return embedding, embedding @ params["head"]["kernel"] + params["head"]["bias"]


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def backward(params, x, d_logits):
    """The gradient of a loss with respect to the parameters, given that with respect to the logits."""
    embedding, _ = forward(params, x)
    d_hidden = (d_logits @ params["head"]["kernel"].T) * (1 - embedding**2)
    return {
        "hidden": {"bias": d_hidden.sum(0), "kernel": x.T @ d_hidden},
        "head": {"bias": d_logits.sum(0), "kernel": embedding.T @ d_logits},
    }


def backward_to_pixels(params, x, d_logits):
    """The gradient with respect to the input, `[B, PIXELS]`."""
    embedding, _ = forward(params, x)
    return (d_logits @ params["head"]["kernel"].T) * (1 - embedding**2) @ params["hidden"]["kernel"].T


def cross_entropy_gradient(params, x, labels):
    """Of the mean cross-entropy."""
    probabilities = np.exp(log_softmax(forward(params, x)[1]))
    return backward(params, x, (probabilities - np.eye(CLASSES)[labels]) / len(x))


def distillation_gradient(params, x, teacher_logits, temperature=1.0):
    """Of `T² · mean over rows of KL(teacher ‖ student)`."""
    student = np.exp(log_softmax(forward(params, x)[1] / temperature))
    teacher = np.exp(log_softmax(teacher_logits / temperature))
    return backward(params, x, temperature * (student - teacher) / len(x))


def combine(*weighted):
    """The sum of `weight * tree` over pairs."""
    weights, trees = zip(*weighted, strict=True)
    return jax.tree.map(lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *trees)


class Descent:
    """Stochastic gradient descent with momentum, and decay that is part of the gradient; or Adam, decay decoupled."""

    def __init__(self, method):
        self.method, self.step, self.first, self.second = method, 0, None, None

    def __call__(self, params, gradient, mask=None):
        method, zeros = self.method, jax.tree.map(np.zeros_like, params)
        first, second = self.first or zeros, self.second or zeros
        self.step += 1
        if method.optimizer == "sgd":
            gradient = combine((1, gradient), (method.weight_decay, params))
            self.first = combine((method.momentum, first), (1, gradient))
            updates = self.first
        else:
            self.first = combine((0.9, first), (0.1, gradient))
            self.second = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, second, gradient)
            updates = jax.tree.map(
                lambda m, s, p: (
                    m / (1 - 0.9**self.step) / (np.sqrt(s / (1 - 0.999**self.step)) + 1e-8) + method.weight_decay * p
                ),
                self.first,
                self.second,
                params,
            )
        if mask is not None:
            updates = jax.tree.map(lambda update, keep: np.where(keep, update, 0), updates, mask)
        return combine((1, params), (-method.learning_rate, updates))


def assert_follows(method, gradient_of, recorder, *, phase=0, number=0, mask=None):
    """Every step of a phase agrees with `gradient_of(params, batch, step)` in float64, and moves the parameters far."""
    chosen = recorder.phases(number)[phase]
    state, batches = take(recorder.state, chosen)
    params, descend = float64(recorder.state.params), Descent(method)
    for step, batch in enumerate(batches):
        params = descend(params, gradient_of(params, batch, step), mask)
    assert_close(state.params, params)
    assert int(state.step) == len(batches)
    distance = max(np.abs(a - b).max() for a, b in zip(*map(leaves, (state.params, recorder.state.params)), strict=True))
    assert distance > 0.01
    return state, batches


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_close(tree, expected, rtol=1e-5):
    """To a relative error of each array's own size."""
    for found, wanted in zip(leaves(tree), leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def counted(rows):
    """Indices of the rows of a batch that count."""
    return rows.indices[np.asarray(rows.mask)]


def label_of(rows):
    return Y[counted(rows)]
