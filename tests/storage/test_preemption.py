"""Requests to end: at once, postponed, or insisted upon."""

import signal

import pytest

from cujax.storage.preemption import Interruption, Preempted


def ask(number=signal.SIGTERM):
    signal.raise_signal(number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_request_ends_at_once_where_nothing_is_to_be_saved(number, error):
    with Interruption().handled(), pytest.raises(error):
        ask(number)


def test_a_request_waits_where_something_is_and_is_granted_at_the_end():
    interruption, reached = Interruption(), []
    with interruption.handled(), pytest.raises(Preempted), interruption.postponed():
        with interruption.postponed():
            reached.append("inner")
        ask()
        reached.append(interruption.asked)
    assert reached == ["inner", True]


def test_a_second_request_does_not_wait():
    interruption = Interruption()
    with interruption.handled(), interruption.postponed():
        ask(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)
        interruption._asked = None


def test_an_error_is_not_hidden_by_a_request():
    interruption = Interruption()
    with interruption.handled(), pytest.raises(ValueError, match="broken"), interruption.postponed():
        ask()
        raise ValueError("broken")


def test_afterwards_signals_do_what_they_did():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption().handled():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
