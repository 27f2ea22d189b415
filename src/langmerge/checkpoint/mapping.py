"""Weight files as read-only memory."""

import mmap
import threading
from collections.abc import Sequence
from pathlib import Path

from langmerge.checkpoint.places import Stamp, opened_plain, reason, stamp_of
from langmerge.errors import CheckpointError

OPEN_FILES = 8
"""Files of one checkpoint that are mapped at once: each takes a descriptor, of which a process may have few (1024, 256)."""


class WeightFiles:
    """The weight files of one checkpoint, mapped when they are needed; for any number of threads.

    Args:
        stamps: the files as they were when their headers were read.
    """

    def __init__(self, stamps: Sequence[tuple[Path, Stamp]]) -> None:
        self._stamps = dict(stamps)
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def mapped(self, file: Path) -> mmap.mmap:
        """One file as read-only memory.

        The file must stay as it is: one that another program cuts short while it is read ends this process with SIGBUS,
        as the system has no other answer for memory without a file behind it. A file that was cut short or written to
        before it is mapped is found out here; one that is replaced by a rename does no harm. Either way a merge that is
        ended leaves no output.

        Raises:
            CheckpointError: it cannot be mapped, or has changed since it was opened.
        """
        if (known := self._maps.get(file)) is not None:
            return known
        with self._lock:
            if file not in self._maps:
                while len(self._maps) >= OPEN_FILES:
                    # Whoever still reads from it keeps it alive.
                    del self._maps[next(iter(self._maps))]
                self._maps[file] = self._map(file)
            return self._maps[file]

    def read(self, file: Path, start: int, size: int) -> bytes:
        """A copy of a few bytes of one file.

        A mapping fetches megabytes around what is looked at (Linux's read-ahead): good for weights that are read from
        the first to the last, bad for one bias in five gigabytes.

        Raises:
            CheckpointError: it cannot be read, or has changed since it was opened.
        """
        try:
            with opened_plain(file) as handle:
                handle.seek(start)
                found = handle.read(size)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {reason(error)}") from None
        if len(found) != size or stamp_of(file) != self._stamps[file]:
            raise changed(file)
        return found

    def _map(self, file: Path) -> mmap.mmap:
        try:
            with opened_plain(file) as handle:
                found = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {reason(error)}") from None
        if len(found) != self._stamps[file].size or stamp_of(file) != self._stamps[file]:
            raise changed(file)
        return found

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._maps.clear()


def changed(file: Path) -> CheckpointError:
    """The error for a file that is written to while it is read."""
    return CheckpointError(
        f"{file} has changed since it was opened: merge when nothing writes to it any more"
    )
