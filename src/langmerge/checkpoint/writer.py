"""safetensors output of known layout, written at known places in any order."""

import contextlib
import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langmerge.checkpoint.header import DTYPES
from langmerge.checkpoint.places import INDEX, SINGLE
from langmerge.errors import OutputError


@dataclass(frozen=True)
class Slot:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Stored size."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def shards_of(slots: Sequence[Slot], max_bytes: int) -> list[list[Slot]]:
    """Slots cut into files of at most `max_bytes` (a larger tensor gets a file of its own), order kept."""
    shards: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if shards[-1] and size + slot.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += slot.nbytes
    return shards


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes."""

    file: int
    start: int
    nbytes: int
    shard: str


class WeightWriter:
    """Weight files of known layout, written in any order and by any thread; use as a context manager.

    The disk's space is taken at the start, so that a disk which fills up later cannot stop the work half-way.

    Args:
        folder: an existing folder.
        slots: the tensors, in the order of the files.
        max_shard: largest file, in bytes.
        single: name of the file where there is one.

    Raises:
        OutputError: the disk has not enough space.
        OSError: a file cannot be made.
    """

    def __init__(
        self, folder: Path, slots: Sequence[Slot], *, max_shard: int = 5_000_000_000, single: str = SINGLE
    ) -> None:
        shards = shards_of(slots, max_shard)
        self._total = sum(slot.nbytes for slot in slots)
        _check_space(folder, self._total)
        count = len(shards)
        names = (
            [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
            if count > 1
            else [single]
        )
        self._folder = folder
        self._files: list[int] = []
        self._places: dict[str, _Place] = {}
        self._written, self._lock = 0, threading.Lock()
        try:
            for name, shard in zip(names, shards, strict=True):
                self._lay_out(name, shard)
        except OSError:
            self._close()
            raise

    def __enter__(self) -> "WeightWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._close()
        if kind is not None:
            return
        if self._written != self._total:
            raise ValueError(f"{self._written} of {self._total} bytes were written")
        if len(self._files) > 1:
            weight_map = {tensor: place.shard for tensor, place in self._places.items()}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:
            for file in self._files:
                stack.callback(os.close, file)

    def _lay_out(self, name: str, shard: Sequence[Slot]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        file = os.open(self._folder / name, flags, 0o666)
        self._files.append(file)
        # Wide entries first: none begins at an address that its dtype does not suit.
        shard = sorted(shard, key=lambda slot: -DTYPES[slot.dtype].itemsize)
        header = header_of(shard)
        end = len(header)
        for slot in shard:
            self._places[slot.name] = _Place(file, end, slot.nbytes, name)
            end += slot.nbytes
        _take_space(file, end)
        _write_all(file, header, 0)
        os.truncate(file, end)

    def write(self, tensor: str, start: int, data: Any) -> None:
        """Write bytes of a tensor from its byte `start` on; every byte must be written once before the end.

        Raises:
            ValueError: they reach beyond the tensor.
            OSError: the disk refuses them.
        """
        place = self._places[tensor]
        left = memoryview(data).cast("B")
        if start < 0 or start + len(left) > place.nbytes:
            raise ValueError(f"tensor {tensor!r} has {place.nbytes} bytes, not {start} + {len(left)}")
        _write_all(place.file, left, place.start + start)
        with self._lock:
            self._written += len(left)


def _check_space(folder: Path, total: int) -> None:
    if (free := shutil.disk_usage(folder).free) < total:
        raise OutputError(
            f"the output needs {total / 1e6:,.1f} MB, the disk has {free / 1e6:,.1f} MB left: "
            "make room, or choose another disk"
        )


def _take_space(file: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        # A file system that cannot say beforehand.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _write_all(file: int, data: Any, place: int) -> None:
    left = memoryview(data).cast("B")
    while len(left):
        written = os.pwrite(file, left, place)
        left, place = left[written:], place + written


def header_of(slots: Sequence[Slot]) -> bytes:
    """The beginning of a safetensors file whose tensors lie one behind the other in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for slot in slots:
        header[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [offset, offset + slot.nbytes],
        }
        offset += slot.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
