"""Ctrl-C between steps."""

import signal

import pytest

from langmerge.learned.steps import peak_memory, whole_steps


def test_an_interrupt_waits_for_the_end_of_the_step() -> None:
    done: list[int] = []

    def work() -> None:
        with whole_steps() as check:
            for step in range(3):
                if step == 1:
                    signal.raise_signal(signal.SIGINT)
                done.append(step)
                check()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [0, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_ignores_interrupts_goes_on_ignoring_them() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with whole_steps() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_peak_memory_is_in_bytes() -> None:
    assert 10_000_000 < peak_memory() < 10**12
