"""The 8x8 digits embedded in scikit-learn: no download."""

import numpy as np

from cujax.data.images import (
    DIGITS,
    Data,
    Images,
    Reader,
    Source,
    content_digest,
    hold_out_fifth,
    numbered_ids,
    pixel_statistics,
)
from cujax.progress import Progress


def _read(data: Data, progress: Progress) -> Source:
    del data, progress
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Images(pixels, bunch.target.astype(np.int32), numbered_ids("digits", len(pixels)))
    train, test = hold_out_fifth(everything)
    names = tuple(str(digit) for digit in range(10))
    mean, std = pixel_statistics(train)
    return Source(DIGITS, content_digest(train, test), train, test, names, mean, std)


READER = Reader(lambda data: data.source == DIGITS, _read)
