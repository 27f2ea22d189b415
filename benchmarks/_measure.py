"""Whole processes measured from outside: wall time in one run, memory in another; and the floor for both."""

import mmap
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

PERIOD = 0.02
"""Seconds between two looks at a process's memory."""

CHUNK = 1 << 20
"""Bytes that the floor touches at once."""

WINDOW = 1 << 24
"""Bytes of each input after which the floor lets mapped pages go."""


@dataclass(frozen=True)
class Memory:
    """Peaks over the life of a process and its children, in bytes.

    Attributes:
        private: pages that no other process has, of files it has mapped too (Private_Clean + Private_Dirty).
        anonymous: the part of them that has no file behind it, which the system cannot take back.
        resident: all pages, shared libraries included (VmHWM).
    """

    private: int = 0
    anonymous: int = 0
    resident: int = 0

    def highest(self, other: "Memory") -> "Memory":
        """The larger of each number."""
        return Memory(*(max(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)))

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Run:
    """One run of a process.

    Attributes:
        seconds: from its start to its end.
        cpu_seconds: of all threads, in the program and in the system.
        memory: peaks, if it was watched.
    """

    seconds: float
    cpu_seconds: float
    memory: Memory | None = None


def run_process(command: Sequence[str], *, log: Path, env: Mapping[str, str], watched: bool = False) -> Run:
    """Run a command to its end.

    Looking at the memory of a process that has mapped gigabytes takes milliseconds of a core and stops its page faults,
    so a watched run's time means nothing.

    Args:
        command: with its arguments.
        log: gets its output.
        env: added to the environment.
        watched: look at its memory all the time.

    Raises:
        RuntimeError: it failed; ends with the last line of its output.
    """
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **env})
        try:
            memory = _watch(process) if watched else None
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}: {''.join(last)} (all of it: {log})"
        )
    return Run(seconds, usage.ru_utime + usage.ru_stime, memory)


def _watch(process: "subprocess.Popen[bytes]") -> Memory:
    """Peaks until the process has ended; it is left to be waited for."""
    peak = Memory()
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        peak = peak.highest(sum(map(memory_of, _family(process.pid)), Memory()))
        time.sleep(PERIOD)
    return peak


def _family(pid: int) -> list[int]:
    """A process, its children, theirs and so on."""
    found = [pid]
    for one in found:
        for file in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def memory_of(pid: int) -> Memory:
    """What a process holds now (and has held at most, for `resident`); nothing once it has ended."""
    try:
        rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
        status = _kilobytes(Path(f"/proc/{pid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return Memory()
    private = rollup.get("Private_Clean", 0) + rollup.get("Private_Dirty", 0)
    return Memory(private, rollup.get("Anonymous", 0), status.get("VmHWM", 0))


def _kilobytes(file: Path) -> dict[str, int]:
    """The lines `Name:  123 kB` of a file in /proc, as bytes."""
    lines = [line.split() for line in file.read_text().splitlines() if line.endswith(" kB")]
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in lines}


def warm(files: Iterable[Path]) -> None:
    """Read files into the page cache."""
    buffer = bytearray(1 << 23)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def floor_seconds(files: Sequence[Path], out: Path, *, threads: int) -> float:
    """Seconds to read every input once, mapped, and to write an output of one input's size, without arithmetic.

    Args:
        files: the inputs, all of one size.
        out: is written, and removed.
        threads: that share the work.
    """
    started = time.perf_counter()
    read_all_write_one(files, out, threads=threads)
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


def read_all_write_one(files: Sequence[Path], out: Path, *, threads: int) -> None:
    """Read every input once and write the last one again, up to seven bytes at its end."""
    size = min(file.stat().st_size for file in files) // 8 * 8
    with ExitStack() as stack:
        maps = [_mapped(file, stack) for file in files]
        target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        stack.callback(os.close, target)
        os.posix_fallocate(target, 0, size)
        with ThreadPoolExecutor(threads) as pool:
            windows = range(0, size, WINDOW)
            list(pool.map(lambda start: _touch(maps, target, start, min(start + WINDOW, size)), windows))


def _mapped(file: Path, stack: ExitStack) -> mmap.mmap:
    with file.open("rb") as opened:
        return stack.enter_context(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def _touch(maps: Sequence[mmap.mmap], target: int, start: int, stop: int) -> None:
    """Read a window of every input, and write that of the last one."""
    for first in range(start, stop, CHUNK):
        size = min(CHUNK, stop - first)
        for one in maps:
            # The sum is thrown away: it makes the bytes pass through a core at the least cost.
            np.add.reduce(np.frombuffer(one, np.uint64, size // 8, first))
        with memoryview(maps[-1])[first : first + size] as written:
            os.pwrite(target, written, first)
    for one in maps:
        one.madvise(mmap.MADV_DONTNEED, start, stop - start)
