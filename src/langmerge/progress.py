"""How long work tells that it goes on. The library reports; only the command line draws."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of units finished since the last call."""


class Progress(Protocol):
    """Opens one task of `total` units and yields the function that advances it."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]: ...


@contextmanager
def silent(description: str, total: int):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Report nothing (the default everywhere)."""
    yield lambda _finished: None
