"""Turns plain arrays and a request into a source and a split; invalid input is rejected with a message."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from cujax.data.images import Images, Source, content_digest
from cujax.data.npz_inputs import finite_numbers
from cujax.data.request_kinds import Copies
from cujax.data.requests import ForgetClass, ForgetWhere, Request, Split, make_split, validation_rows
from cujax.model import Inputs, num_rows


@dataclass(frozen=True, eq=False)
class Given:
    """The caller's data, checked.

    Attributes:
        source: The samples; validation samples that were given separately are its last training rows.
        validation: The `validation` argument of `make_split`: "none", a fraction, or rows.
        rows: The number of rows in the caller's inputs.
    """

    source: Source
    validation: Any
    rows: int


def checked_rows(name: str, inputs: Any, labels: Any) -> Inputs:
    """Inputs on the host, in the form of `checked_arrays`; the labels only show how many rows there should be."""
    _check_stacked(name, inputs, np.shape(labels)[:1])
    inputs = jax.tree.map(np.asarray, inputs)
    if num_rows(inputs) == 0:
        raise ValueError(f"{name}inputs have no rows; give at least one sample.")
    return jax.tree_util.tree_map_with_path(
        lambda path, rows: finite_numbers(f"{name}inputs{jax.tree_util.keystr(path)}", rows), inputs
    )


def _check_stacked(name: str, inputs: Any, rows: tuple[int, ...]) -> None:
    """Raises ValueError for a list of rows, which as a tree of arrays would be a network's many inputs."""
    if not isinstance(inputs, list | tuple) or not inputs:
        return
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if (len(inputs),) == rows or () in lengths or (isinstance(inputs, list) and lengths != {rows}):
        place = f"{name.strip()}_inputs" if name else "inputs"
        raise ValueError(
            f"{name}inputs is a {type(inputs).__name__} of {len(inputs)} {_kind(inputs[0])}s, but must be an array with one "
            f"row for each label, or a tree of such arrays; give np.stack({place})."
        )


def _kind(entry: Any) -> str:
    if isinstance(entry, list | tuple | dict):
        return type(entry).__name__
    return "array" if np.ndim(entry) else "number"


def checked_arrays(name: str, inputs: Any, labels: Any, num_classes: int) -> tuple[Inputs, np.ndarray]:
    """Inputs and labels on the host.

    Args:
        name: "", or "test " or "validation ", for messages.
        inputs: A pytree of arrays, each `[n, ...]`.
        labels: `[n]` integers.
        num_classes: The number of logits.

    Raises:
        ValueError: if inputs are empty, not numeric or not finite, or differ in their number of rows; if labels are not
            integers, differ in number from the rows, or one has no logit.
    """
    inputs = checked_rows(name, inputs, labels)
    n = num_rows(inputs)
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(
            f"{name}labels are {labels.shape}, but {name}inputs have {n} rows; give one integer for each row"
            f"{', such as labels.argmax(axis=1) of one-hot rows' if labels.ndim == 2 else ''}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}labels are {labels.dtype}, but must be integers from 0 to {num_classes - 1}; if they are whole numbers, "
            "give labels.astype(int)."
        )
    for rows, rule in (
        (np.flatnonzero(labels < 0), "must count classes from 0"),
        (np.flatnonzero(labels >= num_classes), f"must be below {num_classes}, the number of logits of the network"),
    ):
        if len(rows):
            raise ValueError(f"{name}labels {rule}, but row {rows[0]} is {labels[rows[0]]}.")
    return inputs, labels.astype(np.int32)


def gathered(inputs: Any, labels: Any, num_classes: int, *, validation: Any, test: Any, subjects: Any = None) -> Given:
    """The samples of a call.

    Raises:
        ValueError: as `checked_arrays`, and if validation or test samples are of a different kind.
    """
    inputs, labels = checked_arrays("", inputs, labels, num_classes)
    n, held_out = len(labels), _validation(validation, len(labels))
    if isinstance(held_out, tuple):
        more = checked_pair("validation", held_out, inputs, num_classes)
        inputs = jax.tree.map(lambda own, others: np.concatenate([own, others]), inputs, more[0])
        labels = np.concatenate([labels, more[1]])
        held_out = np.arange(n, len(labels))
    named = None if subjects is None else _subjects(subjects, n)
    if named is not None:  # validation samples that were given apart are of nobody in the inputs
        named = np.concatenate([named, np.full(len(labels) - n, "", named.dtype)])
    train = Images(inputs, labels, _ids("row", len(labels)), named)
    empty = jax.tree.map(lambda rows: rows[:0], inputs), labels[:0]
    test_inputs, test_labels = empty if test is None else checked_pair("test", test, inputs, num_classes)
    tested = Images(test_inputs, test_labels, _ids("test", len(test_labels)))
    # Images that are float may be augmented where models are retrained; whatever is given reaches the network as it is.
    channels = inputs.shape[3] if isinstance(inputs, np.ndarray) and inputs.ndim == 4 and inputs.dtype.kind == "f" else 0
    statistics = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    names = tuple(map(str, range(num_classes)))
    source = Source("the given inputs", content_digest(train, tested), train, tested, names, *statistics)
    return Given(source, held_out, n)


def _ids(name: str, n: int) -> np.ndarray:
    return np.array([f"{name}_{row:08d}" for row in range(n)], str)


def checked_pair(name: str, pair: Any, like: Inputs, num_classes: int) -> tuple[Inputs, np.ndarray]:
    """A pair (inputs, labels) of samples of the same kind as others.

    Raises:
        ValueError: as `checked_arrays`, and if it is not a pair, or its rows are of a different kind.
    """
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"{name} must be a pair (inputs, labels), but is {type(pair).__name__}.")
    inputs, labels = checked_arrays(f"{name} ", *pair, num_classes)
    shapes = [jax.tree.map(lambda rows: (rows.shape[1:], rows.dtype.name), tree) for tree in (inputs, like)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} inputs must have the shape and dtype of the inputs, {shapes[1]} per row, but are {shapes[0]}."
        )
    return inputs, labels


def _subjects(subjects: Any, n: int) -> np.ndarray:
    """The subject of each row, `[n]` str."""
    array = np.asarray(subjects)
    if array.shape != (n,) or array.dtype.kind not in "iuU":
        raise ValueError(
            f"subjects are {array.dtype} of shape {array.shape}, but must be [{n}] strings or integers, one for each row."
        )
    return array.astype(str)


def _validation(validation: Any, n: int) -> Any:
    """The `validation` argument of `make_split` ("none", a fraction, rows), or the pair unchanged."""
    if validation is None:
        return "none"
    if isinstance(validation, tuple):
        return validation
    if isinstance(validation, float):
        if not 0 < validation < 1:
            raise ValueError(
                f"validation is {validation}, but a fraction must be above 0 and below 1; give None to hold out nothing."
            )
        return validation
    return _rows("validation", validation, n)


def _rows(name: str, given: Any, n: int) -> np.ndarray:
    """The rows, in ascending order, that indices or a mask select.

    Raises:
        ValueError: if it is neither, has the wrong length, is empty, or indices are repeated or do not exist.
    """
    array = np.asarray(given)
    if array.dtype == bool:
        if array.shape != (n,):
            raise ValueError(f"{name} is a mask of shape {array.shape}, but there are {n} rows; give [{n}] booleans.")
        array = np.flatnonzero(array)
    if array.size == 0:
        raise ValueError(f"{name} selects no rows; select at least one.")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} is {array.dtype} of shape {array.shape}, but must be row indices [k] (integers) or a mask "
            f"[{n}] (booleans)."
        )
    outside = array[(array < 0) | (array >= n)]
    if len(outside):
        raise ValueError(f"{name} holds row {outside[0]}, but rows go from 0 to {n - 1}.")
    unique, counts = np.unique(array, return_counts=True)
    if len(unique) < len(array):
        mask = "; if it is a mask, give it as booleans: .astype(bool)" if len(array) == n else ""
        raise ValueError(f"{name} holds row {unique[counts > 1][0]} more than once{mask}.")
    return unique


def split_of(given: Given, forget: Any, copies: Copies | None) -> Split:
    """The split of a call.

    Args:
        given: The samples.
        forget: A class (an int), several (`cujax.ForgetClasses`), row indices, a mask, or another request.
        copies: What to do with other samples with the same inputs; None for the request's own setting.

    Raises:
        ValueError: if the request names a class or rows that do not exist, nothing, everything, or validation rows.
    """
    request = _request(given, forget)
    if copies is not None:
        request = replace(request, copies=copies)
    validation = given.validation
    if isinstance(validation, float):
        validation = validation_rows(given.source, validation)
        if isinstance(request, ForgetWhere):
            asked = np.array([request.predicate(*row) for row in _ids_and_labels(given.source)], bool)
            validation = validation[~asked[validation]]
    split = make_split(given.source, request, validation=validation)
    if isinstance(given.validation, float) and not split.is_class_task:
        warnings.warn(
            f"validation={given.validation} treats rows of the inputs as samples that the model has not seen. If it was "
            "trained on them, unlearning ends too early: give validation=(inputs, labels) that it has not seen, or None.",
            UserWarning,
            stacklevel=4,
        )
    return split


def _ids_and_labels(source: Source) -> Iterable[tuple[str, int]]:
    return zip(source.train.ids.tolist(), source.train.labels.tolist(), strict=True)


def _request(given: Given, forget: Any) -> Request:
    if isinstance(forget, Request):
        return forget
    array = np.asarray(forget)
    if isinstance(forget, tuple):
        raise ValueError(
            f"forget is the tuple {forget}, which could mean classes or rows; give cujax.ForgetClasses({forget}) for "
            f"classes, np.array({list(forget)}) for rows."
        )
    if array.ndim == 0 and np.issubdtype(array.dtype, np.integer):
        num_classes = given.source.num_classes
        if not 0 <= array < num_classes:
            raise ValueError(
                f"forget is class {array}, but classes go from 0 to {num_classes - 1}; give row indices as an array."
            )
        return ForgetClass(f"label:{int(array)}")
    if array.ndim == 0:
        raise ValueError(
            f"forget is {forget!r}, but must be a class (an int), row indices, a mask of booleans, or a request such as "
            "cujax.ForgetClasses((2, 5))."
        )
    rows = _rows("forget", forget, given.rows)
    held_out = given.validation if isinstance(given.validation, np.ndarray) else np.array([], int)
    both = np.intersect1d(rows, held_out)
    if len(both):
        raise ValueError(
            f"forget holds row {both[0]}, which is among the validation rows; a row cannot be both forgotten and held out."
        )
    chosen = set(given.source.train.ids[rows].tolist())
    return ForgetWhere(lambda name, label: name in chosen)
