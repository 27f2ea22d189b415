"""Long work in whole steps: Ctrl-C waits for the end of one; and what the work took."""

import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Check = Callable[[], None]
"""Raises KeyboardInterrupt where one was asked for; called between steps."""


@contextmanager
def whole_steps() -> Iterator[Check]:
    """Ctrl-C takes effect where the work calls the yielded function, so that no step is left half done; a second one at once.

    In any other thread than the main one (to which alone Python sends interrupts) nothing changes, nor where interrupts are
    ignored, as in a job that a shell has put into the background.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)


def peak_memory() -> int:
    """Most bytes that this process has had resident so far, shared libraries included."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
