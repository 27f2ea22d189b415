"""A folder that appears by one rename, and the hidden folder beside it in which it is made."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from langmerge.checkpoint.places import reason
from langmerge.errors import OutputError

_LOCK, _NEW, _OLD = "lock", "new", "old"


@dataclass(frozen=True)
class Workplace:
    """A hidden folder of this run: `.<name>.<random>.tmp` with `lock`, `new` and sometimes `old` in it.

    The lock is held as long as the process lives, however it ends: whoever gets it later has found a leftover.
    """

    own: Path
    lock: int

    @property
    def new(self) -> Path:
        """What becomes the output."""
        return self.own / _NEW

    @property
    def old(self) -> Path:
        """Where an old output steps aside."""
        return self.own / _OLD

    @classmethod
    def make(cls, parent: Path, name: str) -> "Workplace":
        """A new one, locked before anything is put into it.

        Raises:
            OSError: no folder can be made there.
        """
        while True:
            # A name of its own: process ids come again (in containers always), and so would a killed run's leftover.
            own = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent))
            try:
                lock = _locked(own, os.O_CREAT | os.O_EXCL)
            except OSError:
                own.rmdir()
                raise
            # Until it is locked, another run may take it for a leftover and remove it: then the next.
            if lock is None:
                continue
            made = cls(own, lock)
            try:
                made.new.mkdir()
            except OSError:
                made.remove()
                raise
            return made

    def remove(self) -> None:
        """Remove it; the lock last, so that a kill in between leaves what the next run knows for a leftover."""
        for path in (self.new, self.old):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            if {entry.name for entry in os.scandir(self.own)} <= {_LOCK}:
                (self.own / _LOCK).unlink(missing_ok=True)
                self.own.rmdir()
        os.close(self.lock)


def _locked(own: Path, flags: int) -> int | None:
    """The lock file of a workplace, open and locked; None where another has it or the folder is gone."""
    import fcntl

    try:
        lock = os.open(own / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    except OSError as error:
        if flags and error.errno != errno.ENOENT:
            raise
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been locked, and removed with its folder, between the two calls.
        if os.fstat(lock).st_nlink:
            return lock
    except BlockingIOError:
        pass
    except OSError:
        # A file system without locks: what is made anew needs none there, for nobody can take it for a leftover.
        if flags:
            return lock
    os.close(lock)
    return None


def leftovers(parent: Path, name: str) -> Iterator[Workplace]:
    """What killed runs of this user left behind, locked; never what a living run works in."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.tmp")
    with os.scandir(parent) as entries:
        found = [Path(entry) for entry in entries if pattern.fullmatch(entry.name) and _is_own(entry)]
    for own in found:
        if (lock := _locked(own, 0)) is not None:
            yield Workplace(own, lock)
        else:
            # Killed before the lock was made, or after it was removed. A living run that has got no further makes
            # itself another.
            with contextlib.suppress(OSError):
                own.rmdir()


def _is_own(entry: "os.DirEntry[str]") -> bool:
    try:
        return (
            entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        )
    except OSError:
        return False


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Raise unless `out` can become a new folder.

    Raises:
        OutputError: it exists and `overwrite` is off, or no folder can be made beside it.
    """
    if os.path.lexists(out):
        if not overwrite:
            raise OutputError(f"output {out} exists already: choose another place, or say --overwrite")
        if out.is_symlink() or not out.is_dir():
            raise OutputError(f"output {out} is a file or a link, not a folder: choose another place")
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output {out} cannot be written: {parent} is not a folder one may write to")


def check_outside(out: Path, inputs: Iterable[Path]) -> None:
    """Raise where replacing `out` would remove what is read.

    Raises:
        OutputError: an input lies in `out`.
    """
    for place in inputs:
        if place.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"output {out} holds the input {place}: choose another place")


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` by one rename when the block ends well, and vanishes otherwise.

    A process that is killed leaves `out` as it was, or whole; what else it left is removed by the next run to the same
    place. (This is about processes: after a power cut, the file system decides what was written.)

    Raises:
        OutputError: see `check_output`; also when the disk is full or writing fails.
    """
    check_output(out, overwrite=overwrite)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in leftovers(parent, out.name):
            _put_back(out, leftover)
            leftover.remove()
        work = Workplace.make(parent, out.name)
    except OSError as error:
        raise OutputError(f"output {out} cannot be written: {reason(error)}") from error
    try:
        yield work.new
        _appear(out, work, overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"output {out} cannot be written: {reason(error)}") from error
    finally:
        work.remove()


def _put_back(out: Path, leftover: Workplace) -> None:
    """A run that was killed between the two renames of `_replace` has left no output, only the old one."""
    if leftover.old.exists() and not os.path.lexists(out):
        leftover.old.rename(out)


def _appear(out: Path, work: Workplace, *, overwrite: bool) -> None:
    """Give the new folder its name."""
    check_output(out, overwrite=overwrite)
    try:
        if not _rename2(work.new, out, _NOREPLACE):
            work.new.rename(out)
    except OSError as error:
        if not overwrite or error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        _replace(out, work)


def _replace(out: Path, work: Workplace) -> None:
    """Put the new folder in the place of the old: exchanged in one step where the system can."""
    if _rename2(out, work.new, _EXCHANGE):
        return
    # rename(2) cannot replace a folder that is not empty: the old one steps aside first, and back if need be.
    out.rename(work.old)
    try:
        work.new.rename(out)
    except OSError:
        work.old.rename(out)
        raise


_NOREPLACE, _EXCHANGE = 1, 2


def _rename2(one: Path, other: Path, flags: int) -> bool:
    """Linux's renameat2; False where system or file system have no such call.

    Raises:
        OSError: it failed.
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here = -100
    if rename(here, os.fsencode(one), here, os.fsencode(other), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))
