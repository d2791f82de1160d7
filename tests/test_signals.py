"""The first signal asks, a second Ctrl-C interrupts; signals to real runs: `test_resume.py`."""

import os
import signal

import pytest

from quintic.distributed.signals import GracefulShutdown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number: signal.Signals) -> None:
    with GracefulShutdown() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number.name


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_ctrl_c_after_any_signal_interrupts_at_once(first: signal.Signals) -> None:
    with GracefulShutdown() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == first.name


def test_schedulers_may_repeat_sigterm() -> None:
    with GracefulShutdown() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"


def test_the_handlers_from_before_come_back_also_after_an_error() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(RuntimeError, match="bug"), GracefulShutdown():
        assert [signal.getsignal(number) for number in numbers] != before
        raise RuntimeError("bug")
    assert [signal.getsignal(number) for number in numbers] == before
