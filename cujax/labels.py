"""Labels that are no class: refused where they can be looked at, and no part of any loss where they cannot."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def counted_labels(name: str, labels: ArrayLike, mask: ArrayLike | None, classes: int | None = None) -> jax.Array:
    """Which rows count: those of the mask whose label is a class.

    Args:
        name: Of the rows, for the message.
        labels: `[B]` integer.
        mask: `[B]` bool; all rows if not given.
        classes: Their number, where labels must be below it.

    Returns:
        `[B]` bool.

    Raises:
        ValueError: as `check_labels`, where labels and mask are concrete. Where they are traced, such a row does not count.
    """
    check_labels(name, labels, mask, classes)
    labels = jnp.asarray(labels)
    allowed = labels >= 0 if classes is None else (labels >= 0) & (labels < classes)
    return allowed if mask is None else jnp.asarray(mask) & allowed


def check_labels(
    name: str, labels: ArrayLike, mask: ArrayLike | None, classes: int | None = None, *, wait: bool = True
) -> None:
    """Refuses labels of rows that count but are no class; traced ones, and those of other hosts, are not looked at.

    Args:
        name: As in `counted_labels`, and so are `labels`, `mask` and `classes`.
        labels: `[B]` integer.
        mask: `[B]` bool; all rows if not given.
        classes: Their number, where labels must be below it.
        wait: Whether to look at labels on an accelerator, too, which waits for what computes them.

    Raises:
        ValueError: if one is negative, or not below `classes`.
    """
    if not _is_readable(labels, wait) or not _is_readable(mask, wait):
        return
    values = np.asarray(labels) if mask is None else np.asarray(labels)[np.asarray(mask)]
    wrong = values[values < 0] if classes is None else values[(values < 0) | (values >= classes)]
    if wrong.size:
        allowed = "at least 0" if classes is None else f"from 0 to {classes - 1}"
        raise ValueError(
            f"{name} labels must be {allowed}, but {wrong.size} of {values.size} are not, such as {wrong[0]}; mask the rows "
            "that have no class, or correct their labels."
        )


def _is_readable(array: ArrayLike | None, wait: bool) -> bool:
    if isinstance(array, jax.core.Tracer):
        return False
    if not isinstance(array, jax.Array):
        return True
    return array.is_fully_addressable and (wait or all(device.platform == "cpu" for device in array.devices()))
