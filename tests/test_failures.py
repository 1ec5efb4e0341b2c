"""A part that fails."""

import pytest

from cujax.failures import Failure, attempt
from cujax.storage.preemption import Preempted


class NothingThereError(Exception):
    pass


def raising(error):
    raise error


def test_a_value_passes():
    assert attempt(lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NothingThereError("there are none"), "there are none"),
        (TypeError("no"), "TypeError: no"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_an_error_is_a_reason(error, reason):
    assert attempt(lambda: raising(error), expected=(NothingThereError,)) == Failure(reason)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, Preempted, SystemExit])
def test_an_interruption_is_no_failure(stopped):
    with pytest.raises(stopped):
        attempt(lambda: raising(stopped()))
