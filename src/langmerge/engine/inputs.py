"""What a tensor is merged from, a chunk at a time: mapped bytes where rows agree, gathered rows where they do not."""

import mmap
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from langmerge.checkpoint import CHUNK, DTYPES, Checkpoint, TensorInfo
from langmerge.engine.plan import Plan, Rows, TensorPlan
from langmerge.engine.statistics import Statistics
from langmerge.methods import statistics_of

STEP = CHUNK
"""Entries that are merged at once: few enough for a cache, enough to forget what Python takes for each."""

PIECE = 4 * STEP
"""Entries that a thread works on before it takes the next piece, and before the pages it has read are let go."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


class Span(NamedTuple):
    """The entries of one input in a chunk: bytes of `buffer` from `offset` on."""

    buffer: Any
    offset: int
    dtype: str
    entries: int

    def stored(self) -> np.ndarray[Any, Any]:
        """As they are stored, flat."""
        return np.frombuffer(self.buffer, DTYPES[self.dtype], self.entries, self.offset)

    def floats(self) -> Floats:
        """As float32, flat."""
        with np.errstate(over="ignore"):
            return np.asarray(self.stored(), dtype=np.float32)


class TensorInputs:
    """The inputs of one tensor.

    Attributes:
        tensor: its plan.
        entries: of the output.
        width: entries of a row (the first axis); of the whole tensor where it has no more than one axis.
    """

    def __init__(self, plan: Plan, tensor: TensorPlan) -> None:
        self.tensor = tensor
        self.entries = int(np.prod(tensor.shape, dtype=np.int64))
        # The entries of a vector are rows where rows are looked up: the bias of a head.
        rows = tensor.shape[0] if len(tensor.shape) > 1 or (tensor.gathered and tensor.shape) else 1
        self.width = max(1, self.entries // max(1, rows))
        self._holders: list[tuple[Checkpoint, TensorInfo]] = []
        for source, info in zip(tensor.sources, tensor.inputs, strict=True):
            self._holders.append((plan.sources[source], info))
        self._base = (plan.base, tensor.base) if plan.base is not None and tensor.base is not None else None
        self._statistics: list[Statistics] = []
        self._by_entry = False
        if tensor.statistics:
            self._statistics = [plan.statistics[source] for source in tensor.sources]
            self._by_entry = statistics_of(tensor.method, tensor.parameters) == "fisher"

    @property
    def has_base(self) -> bool:
        """Whether the base has this tensor."""
        return self._base is not None

    def everything(self) -> list[tuple[Checkpoint, TensorInfo]]:
        """The tensors that are read, the base's last."""
        return [*self._holders, *([self._base] if self._base else [])]

    def pieces(self, *, sees: str = "entry") -> list[tuple[int, int]]:
        """Ranges of entries for one thread each; whole rows where rows are looked up or looked along."""
        if sees == "tensor" or self.entries == 0:
            return [(0, self.entries)]
        step = self.step(sees) * max(1, PIECE // self.step(sees))
        return [(start, min(start + step, self.entries)) for start in range(0, self.entries, step)]

    def step(self, sees: str) -> int:
        """Entries of a chunk: fixed, so that the number of threads cannot change where chunks begin."""
        if sees == "tensor":
            return max(1, self.entries)
        if sees == "row" and len(self.tensor.shape) < 2:
            # A vector is one row, also where its entries are looked up one by one.
            return max(1, self.entries)
        if sees == "row" or self.tensor.gathered:
            return self.width * max(1, STEP // self.width)
        return STEP

    def chunks(self, start: int, stop: int, *, sees: str = "entry") -> Iterator[tuple[int, int]]:
        """The chunks of a piece."""
        step = self.step(sees)
        for first in range(start, stop, step):
            yield first, min(first + step, stop)

    def spans(self, start: int, stop: int) -> tuple[Span | None, list[Span]]:
        """The base's and the sources' entries in a range."""
        if self.tensor.gathered:
            return self._gathered(start // self.width, stop // self.width)
        spans = [
            Span(buffer, offset + start * width, dtype, stop - start)
            for buffer, offset, width, dtype in self._mapped
        ]
        return (spans.pop() if self._base else None), spans

    @cached_property
    def _mapped(self) -> list[tuple[Any, int, int, str]]:
        """Buffer, offset, bytes of an entry and dtype of everything that is read, the base last."""
        return [
            (checkpoint.mapped(info.file), info.offset, DTYPES[info.dtype].itemsize, info.dtype)
            for checkpoint, info in self.everything()
        ]

    def _gathered(self, first: int, last: int) -> tuple[Span | None, list[Span]]:
        """Rows in the output's order. A source without a row takes the base's; where that has none either, both take the
        mean of the sources that have it: see docs/vocabulary.md.
        """
        maps = [self.tensor.rows.get(source) for source in self.tensor.sources]
        found = [
            _rows(c.array(info.name), m, first, last)
            for (c, info), m in zip(self._holders, maps, strict=True)
        ]
        lacks = [_missing(m, first, last) for m in maps]
        base = None
        if self._base:
            base = _rows(self._base[0].array(self._base[1].name), self.tensor.base_rows, first, last)
            bare = _missing(self.tensor.base_rows, first, last)
            if bare.any():
                base[bare] = _mean_of_holders(found, lacks)[bare]
        if any(lack.any() for lack in lacks):
            fill = base if base is not None else _mean_of_holders(found, lacks)
            for rows, lack in zip(found, lacks, strict=True):
                rows[lack] = fill[lack]
        return _span(base) if base is not None else None, [_span(rows) for rows in found]

    def statistics(self, start: int, stop: int) -> list[Floats]:
        """What the method reads of every source beside its weights, as float32: a Fisher's entries in the range (flat), or
        the whole Gram; empty for most methods.
        """
        arrays = [one.array(self.tensor.name) for one in self._statistics]
        if not self._by_entry:
            return [np.asarray(one, dtype=np.float32) for one in arrays]
        if not self.tensor.gathered:
            return [np.asarray(one.reshape(-1)[start:stop], dtype=np.float32) for one in arrays]
        found = []
        for source, one in zip(self.tensor.sources, arrays, strict=True):
            rows = self.tensor.rows.get(source)
            first, last = start // self.width, stop // self.width
            taken = _rows(one, rows, first, last)
            # Nothing is known of a row that the source does not have.
            taken[_missing(rows, first, last)] = 0
            found.append(taken.reshape(-1))
        return found

    def let_go(self, start: int, stop: int) -> None:
        """Unmap the pages of a range: what has been read is not needed again, and memory stays small."""
        if not self.tensor.gathered:
            for checkpoint, info in self.everything():
                _unmap(checkpoint.mapped(info.file), info, start, stop)
        for one, info in zip(self._statistics, self.tensor.statistics, strict=True):
            whole = not self._by_entry or self.tensor.gathered
            _unmap(one.files.mapped(info.file), info, *((0, info.entries) if whole else (start, stop)))


def _unmap(mapped: mmap.mmap, info: TensorInfo, start: int, stop: int) -> None:
    """Let the pages go that lie within a range of a tensor's entries."""
    width = DTYPES[info.dtype].itemsize
    first = -(-(info.offset + start * width) // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (info.offset + stop * width) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _rows(array: np.ndarray[Any, Any], rows: Rows | None, first: int, last: int) -> Floats:
    taken = array[first:last] if rows is None else array[np.maximum(rows[first:last], 0)]
    with np.errstate(over="ignore"):
        return np.array(taken, dtype=np.float32)


def _missing(rows: Rows | None, first: int, last: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.zeros(last - first, dtype=bool) if rows is None else rows[first:last] < 0


def _mean_of_holders(found: list[Floats], lacks: list[np.ndarray[Any, np.dtype[np.bool_]]]) -> Floats:
    shape = (-1, *[1] * (found[0].ndim - 1))
    total = sum(np.where(lack.reshape(shape), 0, rows) for rows, lack in zip(found, lacks, strict=True))
    holders = np.maximum(sum((~lack).astype(np.float32) for lack in lacks), 1).reshape(shape)
    return np.asarray(total / holders, dtype=np.float32)


def _span(rows: Floats) -> Span:
    flat = np.ascontiguousarray(rows).reshape(-1)
    return Span(flat, 0, "F32", flat.size)
