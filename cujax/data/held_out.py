"""Chooses the held-out training samples, on which no model trains: they show when to stop."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np

from cujax.data.id_lists import rows_of_file
from cujax.data.images import Source, rows_of_some_subjects

VALIDATION_FRACTION = 0.1
# A tenth of each class, none, those that a file names, another fraction of each class, or rows of the training samples.
Validation = Literal["tenth", "none"] | str | float | np.ndarray


def validation_rows(source: Source, validation: Validation) -> np.ndarray:
    """The rows of `source.train` on which no model trains.

    A fraction selects those rows of each class whose ids have the lowest SHA-256 or, if subjects are known, the rows of
    whole subjects, so that no subject is in two parts.

    Raises:
        ValueError: if a file names ids that do not exist.
        FileNotFoundError: if the file does not exist.
    """
    train = source.train
    if isinstance(validation, np.ndarray):
        return validation
    if validation == "none":
        return np.array([], int)
    if isinstance(validation, str) and validation != "tenth":
        return rows_of_file(Path(validation).expanduser(), source)
    fraction = validation if isinstance(validation, float) else VALIDATION_FRACTION
    if train.subjects is not None:
        return rows_of_some_subjects(train.subjects, fraction)
    digests = np.array([hashlib.sha256(name.encode()).hexdigest() for name in train.ids.tolist()])
    chosen = []
    for label in np.unique(train.labels):
        rows = np.flatnonzero(train.labels == label)
        chosen.append(rows[np.argsort(digests[rows])[: round(fraction * len(rows))]])
    return np.concatenate(chosen)
