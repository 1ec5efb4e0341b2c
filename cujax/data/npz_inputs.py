"""Inputs other than images in a user's .npz file: tables, series, tokens; one array, or several named ones."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

_KEY = "inputs"


def holds_inputs(names: Iterable[str], prefix: str = "") -> bool:
    """Whether a file has arrays "inputs" or "inputs/NAME", after a prefix ("test_")."""
    return any(name == prefix + _KEY or name.startswith(f"{prefix}{_KEY}/") for name in names)


def checked_inputs(where: str, arrays: Mapping[str, np.ndarray], prefix: str = "") -> Any:
    """The array "inputs", or a dict of the arrays "inputs/NAME" by name: a pytree as a network takes it.

    Args:
        where: The file, for messages.
        arrays: All arrays of the file.
        prefix: "" or "test_".

    Raises:
        ValueError: if both forms are present, an array has no axis besides that of the rows, lengths differ, or numbers are
            not finite or of a kind or size that a network cannot take.

    >>> checked_inputs("t.npz", {"inputs/age": np.ones((2, 1)), "inputs/heart": np.zeros((2, 50, 3))})["heart"].dtype
    dtype('float32')
    """
    key = prefix + _KEY
    named = {name.removeprefix(f"{key}/"): array for name, array in arrays.items() if name.startswith(f"{key}/")}
    if key in arrays and named:
        raise ValueError(
            f"{where} contains both {key} and {key}/{next(iter(named))}; give either one array or several named ones."
        )
    if key in arrays:
        return as_network_takes(f"{where}: {key}", arrays[key])
    lengths = {name: len(array) if array.ndim else 0 for name, array in named.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: the arrays of {key} must have the same number of rows, but have {lengths}.")
    return {name: as_network_takes(f"{where}: {key}/{name}", named[name]) for name in sorted(named)}


def as_network_takes(where: str, array: np.ndarray) -> np.ndarray:
    """`[n, ...]` as float32, int32 or bool.

    Raises:
        ValueError: if it has no axis besides that of the rows, is empty, not numeric, or contains NaN, infinity or integers
            that need more than 32 bits; the message names the fix.
    """
    if array.ndim < 2 or 0 in array.shape:
        column = "; give array[:, None] for one number per row" if array.ndim == 1 and len(array) else ""
        raise ValueError(
            f"{where} must be [n, ...] with at least one axis after that of the rows, and not empty, but is "
            f"{array.shape}{column}."
        )
    return finite_numbers(where, array)


def finite_float32(where: str, array: np.ndarray, unit: str = "rows") -> np.ndarray:
    """`[n, ...]` as float32; raises ValueError, naming the rows, if a number is not finite in it. `unit` names a row."""
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(narrow).reshape(len(narrow), -1).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{where} contains NaN, infinity or numbers too large for float32 in {len(bad)} {unit}, the first at rows "
            f"{bad[:5].tolist()}; fix or leave out these {unit}."
        )
    return narrow


def finite_numbers(where: str, array: np.ndarray) -> np.ndarray:
    """Numbers as float32, int32 or bool; uint8 and smaller types are not changed.

    Raises:
        ValueError: if they are not numbers, NaN, infinite, or integers that need more than 32 bits; names the rows.
    """
    if array.dtype.kind == "f" or array.dtype == jax.numpy.bfloat16:
        narrow = finite_float32(where, array)
        return narrow if array.dtype.itemsize > 4 else array
    if array.dtype.kind in "iu":
        if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise ValueError(
                f"{where} contains integers that need more than 32 bits, up to {array.max()}; number tokens or codes from 0."
            )
        return array.astype(np.int32) if array.dtype.itemsize > 2 else array
    if array.dtype.kind != "b":
        raise ValueError(f"{where} must be numbers, but is {array.dtype}; encode text and dates as numbers.")
    return array
