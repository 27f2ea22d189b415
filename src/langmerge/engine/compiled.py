"""Merging by the compiled kernels: one pass over all sources, without torch."""

import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from langmerge.checkpoint import chunk_digest
from langmerge.engine.inputs import Span
from langmerge.engine.passes import Chunk, Job, Measuring, MergedChunk, Pass, non_finite_fault
from langmerge.engine.plan import TensorPlan
from langmerge.kernels import DTYPE_CODES, ELECTIONS, OPERATIONS
from langmerge.methods.mixing import mixing_of
from langmerge.methods.streams import keep_below, source_keys, stream_key

OWN = frozenset({"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"})
"""Methods with a kernel of their own; those of `mixing_of` are a linear combination."""

SELECTED = 1 << 23
"""Entries up to which a tensor's trim threshold is selected at once; larger ones are counted in passes."""

_HASHED = 241
"""Bytes from which on the merge kernel hashes an input."""

_SAMPLE = 1 << 20
_RUN = 1 << 12
_BUCKET = 15
_BUCKETS = 1 << 16
_BRACKET = 8
_BRACKETS = 128

_Array = np.ndarray[Any, Any]


class CompiledBackend:
    """Measures and merges by the compiled kernels.

    Args:
        kernels: the extension module.
    """

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels

    def handles(self, tensor: TensorPlan) -> bool:
        """Whether these kernels can merge a tensor; the rest is torch's."""
        dtypes = {tensor.dtype, *(info.dtype for info in tensor.inputs)}
        dtypes |= {tensor.base.dtype} if tensor.base else set()
        by_kernel = tensor.method in OWN or mixing_of(tensor.method, tensor.parameters) is not None
        about_base = self._about_base(tensor)
        return by_kernel and dtypes <= DTYPE_CODES.keys() and (tensor.base is not None or not about_base)

    def sees(self, tensor: TensorPlan) -> str:  # noqa: ARG002
        """Every kernel works entry by entry."""
        return "entry"

    @staticmethod
    def _about_base(tensor: TensorPlan) -> bool:
        if mixing := mixing_of(tensor.method, tensor.parameters):
            return mixing[0] == "base"
        return tensor.method != "linear"

    def measure(self, jobs: Sequence[Job]) -> Measuring | None:
        """What has to be known before the tensors of these jobs (one, or all of a model) can be merged."""
        tensor = jobs[0].inputs.tensor
        if tensor.method == "ties" and min(_per_source(tensor, "density")) < 1:
            return self._thresholds(jobs)
        if mixing_of(tensor.method, tensor.parameters):
            return self._gram(jobs[0])
        return None

    def _gram(self, job: Job) -> Measuring:
        about = mixing_of(job.inputs.tensor.method, job.inputs.tensor.parameters)
        assert about is not None

        def work(job: Job, start: int, stop: int) -> _Array:
            total = np.zeros((n, n))
            for first, last in job.inputs.chunks(start, stop):
                base, sources = job.inputs.spans(first, last)
                out = np.empty((n, n))
                around = triple(base) if base is not None and about[0] == "base" else None
                if not self._kernels.gram(last - first, tuple(map(triple, sources)), around, out):
                    raise non_finite_fault(job)
                total += out
            job.inputs.let_go(start, stop)
            return total

        n = len(job.inputs.tensor.sources)
        parts = yield Pass([(job, *piece) for piece in job.inputs.pieces()], work)
        job.known["gram"] = sum(parts, np.zeros((n, n)))

    def _thresholds(self, jobs: Sequence[Job]) -> Measuring:
        size = sum(job.inputs.entries for job in jobs)
        tensor = jobs[0].inputs.tensor
        ranks = np.array([max(1, int(density * size)) for density in _per_source(tensor, "density")])
        if size == 0:
            return
        if len(jobs) == 1 and size <= SELECTED:
            parts = yield Pass([(jobs[0], 0, size)], self._selecting(ranks))
            bounds = parts[0]
        else:
            bounds = yield from self._counted(jobs, size, ranks)
        for job in jobs:
            job.known["thresholds"] = bounds

    def _selecting(self, ranks: _Array) -> Any:
        def work(job: Job, start: int, stop: int) -> _Array:
            base, sources = job.inputs.spans(start, stop)
            out = np.empty(len(ranks), np.float32)
            space = np.empty(stop - start, np.uint32)
            self._kernels.select(stop - start, tuple(map(triple, sources)), triple(base), ranks, space, out)
            job.inputs.let_go(start, stop)
            return out

        return work

    def _counted(self, jobs: Sequence[Job], size: int, ranks: _Array) -> Any:
        """Thresholds of more entries than one wants to hold: a sample says about where, one pass counts exactly.

        The sample only saves time: where it has misled, all is counted in coarse buckets first.
        """
        n = len(ranks)
        everything = [(job, *piece) for job in jobs for piece in job.inputs.pieces()]
        whole = np.zeros(n, np.uint32)
        counts = _Counts(self._kernels, whole, 1 << 31, _BUCKET)
        yield Pass(_sampled(jobs, size), counts.work)
        for job in jobs:
            job.inputs.let_go(0, job.inputs.entries)
        share = counts.total()[:, 1:].sum(axis=1) / size
        # Fewer buckets for many sources: their histograms must stay small.
        wide = max(1, min(_BRACKET, _BRACKETS // n))
        low = self._brackets(counts.total(), np.maximum(1, np.round(ranks * share)).astype(np.int64), wide)
        width = wide << _BUCKET
        while True:
            counts = _Counts(self._kernels, low, width, 0)
            yield Pass(everything, counts.work)
            total = counts.total()
            above, inside = total[:, 0], total[:, 1:].sum(axis=1)
            if bool(((above < ranks) & (ranks <= above + inside)).all()):
                return np.array([_threshold(total[s], low[s], ranks[s]) for s in range(n)], np.uint32).view(
                    np.float32
                )
            counts = _Counts(self._kernels, whole, 1 << 31, _BUCKET)
            yield Pass(everything, counts.work)
            low = self._brackets(counts.total(), ranks, wide)

    @staticmethod
    def _brackets(counts: _Array, ranks: _Array, wide: int) -> _Array:
        """For each source, bits around the bucket that holds the rank."""
        from_above = counts[:, :0:-1].cumsum(axis=1)
        buckets = [
            _BUCKETS - 1 - int(np.searchsorted(row, rank))
            for row, rank in zip(from_above, ranks, strict=True)
        ]
        return np.array([max(0, bucket - wide // 2) << _BUCKET for bucket in buckets], np.uint32)

    # What is too large for float32 becomes infinity, and the kernel notices.
    @np.errstate(over="ignore", invalid="ignore")
    def operation(self, job: Job) -> "Operation":
        """The kernel's arguments for a tensor whose measures are known."""
        tensor = job.inputs.tensor
        weights = np.array(tensor.weights, np.float32)
        if mixing := mixing_of(tensor.method, tensor.parameters):
            # An empty tensor has not been measured. The weights are the float32 numbers that torch is given.
            gram = job.known.get("gram", np.zeros((len(weights), len(weights))))
            mixed = mixing[1](gram, weights.astype(np.float64), xp=np)
            return Operation(
                self._kernels, "combine", np.asarray(mixed, np.float32), about_base=mixing[0] == "base"
            )
        parameters = tensor.parameters
        n = len(weights)
        bounds, streams = np.zeros(n, np.float32), np.zeros((n, 2), np.uint64)
        if tensor.method == "ties" and "thresholds" in job.known:
            bounds = job.known["thresholds"]
        if tensor.method in ("dare_linear", "dare_ties"):
            shares = _per_source(tensor, "density")
            bounds = np.array(shares, np.float32)
            keys = source_keys(tensor.name, tensor.sources, n)
            streams[:, 0] = [stream_key(parameters["seed"], key) for key in keys]
            streams[:, 1] = [keep_below(share) for share in shares]
        return Operation(
            self._kernels,
            tensor.method if tensor.method in OPERATIONS else "combine",
            weights,
            about_base=tensor.method != "linear",
            scale=parameters.get("scale", 1.0),
            election=parameters.get("election", "sum"),
            normalize=bool(parameters.get("normalize")),
            bounds=bounds,
            streams=streams,
        )


class Operation:
    """One kernel with everything but the chunk."""

    def __init__(
        self,
        kernels: ModuleType,
        name: str,
        weights: _Array,
        *,
        about_base: bool,
        scale: float = 1.0,
        election: str = "sum",
        normalize: bool = False,
        bounds: _Array | None = None,
        streams: _Array | None = None,
    ) -> None:
        self._merge = kernels.merge
        self._settings = (
            OPERATIONS[name],
            about_base,
            ELECTIONS[election],
            normalize,
            weights,
            bounds,
            streams,
        )
        self._scale, self._n = scale, len(weights)

    def merge(self, chunk: Chunk, out: Any, dtype: str) -> MergedChunk:
        """Merge a chunk into `out`, and hash those of its inputs (the base last)."""
        spans, hashing = chunk.inputs, chunk.hashing
        squares = np.zeros(self._n + 1)
        hashed = digests = None
        # The kernel has the formula of long inputs only.
        if inside := [i for i in hashing if spans[i].stored().nbytes >= _HASHED]:
            hashed, digests = bytearray(self._n + 1), np.empty((self._n + 1, 16), np.uint8)
            for i in inside:
                hashed[i] = 1
        op, about_base, election, normalize, weights, bounds, streams = self._settings
        finite = self._merge(
            chunk.sources[0].entries,
            tuple(map(triple, chunk.sources)),
            triple(chunk.base),
            op, about_base, election, normalize, weights, bounds, streams, chunk.start, self._scale,
            (out, 0, DTYPE_CODES[dtype]),
            squares, hashed, digests,
        )  # fmt: skip
        return MergedChunk(
            finite,
            squares,
            [
                digests[i].tobytes()
                if digests is not None and i in inside
                else chunk_digest(spans[i].stored())
                for i in hashing
            ],
        )


class _Counts:
    """Histograms of magnitudes; whole numbers, so every thread may add to its own in any order."""

    def __init__(self, kernels: ModuleType, low: _Array, span: int, shift: int) -> None:
        self._kernels, self._low, self._span, self._shift = kernels, low, span, shift
        self._own = threading.local()
        self._all: list[_Array] = []
        self._lock = threading.Lock()

    def work(self, job: Job, start: int, stop: int) -> None:
        """Count a piece."""
        counts = getattr(self._own, "counts", None)
        if counts is None:
            counts = self._own.counts = np.zeros((len(self._low), 1 + (self._span >> self._shift)), np.int64)
            with self._lock:
                self._all.append(counts)
        for first, last in job.inputs.chunks(start, stop):
            base, sources = job.inputs.spans(first, last)
            self._kernels.count(
                last - first,
                tuple(map(triple, sources)),
                triple(base),
                self._low,
                self._span,
                self._shift,
                counts,
            )
        job.inputs.let_go(start, stop)

    def total(self) -> _Array:
        """(N, 1 + buckets): how many lie above, then the histogram."""
        found: _Array = sum(self._all[1:], self._all[0])
        return found


def _threshold(counts: _Array, low: int, rank: int) -> int:
    from_above = counts[0] + counts[:0:-1].cumsum()
    return int(low) + len(from_above) - 1 - int(np.searchsorted(from_above, rank))


def _sampled(jobs: Sequence[Job], size: int) -> list[tuple[Job, int, int]]:
    """Short runs spread evenly over all jobs."""
    every = max(1, size // _SAMPLE)
    found = []
    for job in jobs:
        run = job.inputs.width * max(1, _RUN // job.inputs.width) if job.inputs.tensor.gathered else _RUN
        for start in range(0, job.inputs.entries, run * every):
            found.append((job, start, min(start + run, job.inputs.entries)))
    return found


def _per_source(tensor: TensorPlan, key: str) -> list[float]:
    value = tensor.parameters[key]
    return list(value) if isinstance(value, list | tuple) else [value] * len(tensor.sources)


def triple(span: Span | None) -> tuple[Any, int, int] | None:
    return None if span is None else (span.buffer, span.offset, DTYPE_CODES[span.dtype])
