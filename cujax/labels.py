"""Labels that are not a class: rejected if they can be inspected, and excluded from every loss if they cannot."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def counted_labels(name: str, labels: ArrayLike, mask: ArrayLike | None, classes: int | None = None) -> jax.Array:
    """Which rows count: those of the mask whose label is a class.

    Args:
        name: Name of the rows, for the message.
        labels: `[B]` integer.
        mask: `[B]` bool; all rows if not given.
        classes: The number of classes, if labels must be below it.

    Returns:
        `[B]` bool.

    Raises:
        ValueError: as `check_labels`, if labels and mask are concrete. If they are traced, such a row does not count.
    """
    check_labels(name, labels, mask, classes)
    labels = jnp.asarray(labels)
    allowed = labels >= 0 if classes is None else (labels >= 0) & (labels < classes)
    return allowed if mask is None else jnp.asarray(mask) & allowed


def check_labels(
    name: str, labels: ArrayLike, mask: ArrayLike | None, classes: int | None = None, *, wait: bool = True
) -> None:
    """Rejects rows that count but whose label is not a class; traced labels and those of other hosts are not checked.

    Args:
        name: As in `counted_labels`, like `labels`, `mask` and `classes`.
        labels: `[B]` integer.
        mask: `[B]` bool; all rows if not given.
        classes: The number of classes, if labels must be below it.
        wait: Whether to also check labels on an accelerator, which waits for their computation.

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
