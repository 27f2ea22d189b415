"""The stream over tensors: measured in groups, merged in chunks by threads, written as they come."""

import math
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from langmerge.checkpoint import DTYPES, kept_fingerprint, tensor_digest
from langmerge.engine.compiled import SELECTED, CompiledBackend
from langmerge.engine.inputs import STEP, Span, TensorInputs
from langmerge.engine.passes import (
    Chunk,
    Job,
    Measuring,
    MergedChunk,
    collect,
    non_finite_fault,
    out_of_range_fault,
    run_all,
)
from langmerge.engine.plan import Plan, TensorPlan
from langmerge.kernels import DTYPE_CODES, compiled_kernels
from langmerge.progress import Progress, silent

GROUP = 1 << 26
"""Entries of the tensors that are measured together before they are merged."""

_ALL_SET = {"F16": (np.uint16, 0x7C00), "F8_E4M3": (np.uint8, 0x7F), "F8_E5M2": (np.uint8, 0x7C)}
"""The bits that are set in infinity and NaN alone, for the dtypes of a narrower range than float32."""

Sink = Callable[[TensorPlan, int, Any], None]
"""Is given a tensor, a place in it in bytes, and the bytes that belong there; called by several threads."""


class Operating(Protocol):
    """A merge of chunks of one tensor."""

    def merge(self, chunk: Chunk, out: Any, dtype: str) -> MergedChunk: ...


class Backend(Protocol):
    """Who does the arithmetic."""

    def sees(self, tensor: TensorPlan) -> str: ...

    def measure(self, jobs: Sequence[Job]) -> Measuring | None: ...

    def operation(self, job: Job) -> Operating: ...


@dataclass(frozen=True)
class TensorResult:
    """What became of one tensor.

    Attributes:
        plan: of it.
        treatment: as planned, or `unchanged` where the base and every source agree.
        delta_norm: ‖τ_m‖; 0 where the base has no such tensor.
        mean_source_norm: mean ‖τ_i‖.
        source_norms: ‖τ_i‖ of every source.
    """

    plan: TensorPlan
    treatment: str
    delta_norm: float = 0.0
    mean_source_norm: float = 0.0
    source_norms: tuple[float, ...] = ()


@dataclass
class Stream:
    """Carries out a plan.

    Attributes:
        plan: to be carried out.
        threads: that work at once; the machine's cores by default. Their number changes no byte.
        device: for methods that torch computes.
        digests: of every tensor that was read in whole: (file, name) → hash.
    """

    plan: Plan
    threads: int | None = None
    device: str = "cpu"
    digests: dict[tuple[Path, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kernels = compiled_kernels()
        self._compiled = CompiledBackend(kernels) if kernels is not None and self.device == "cpu" else None
        self._torch: Backend | None = None
        if self.device != "cpu":
            # Now: a device that is not there is found before anything is written.
            from langmerge.engine.reference import TorchBackend

            self._torch = TorchBackend(self.device)
        self._own = threading.local()
        self._hashed = {c.folder for c in self.plan.checkpoints if kept_fingerprint(c) is None}

    def run(
        self, tensors: Sequence[TensorPlan], sink: Sink, *, measured: Sequence[TensorPlan] | None = None
    ) -> Generator[TensorResult, None, None]:
        """Merge tensors; yields each one's result in their order, when all of it has gone to the sink.

        Args:
            tensors: to be merged.
            sink: gets the bytes.
            measured: tensors over which a method measures that looks at a whole model; `tensors` by default.

        Raises:
            CheckpointError: a tensor holds NaN or infinity, in a source or in the result.
            MethodError: a method cannot merge these numbers.
        """
        with ThreadPoolExecutor(max_workers=self.threads or cores()) as pool, self._alone(tensors):
            try:
                model = self._measured_over_model(pool, tensors if measured is None else measured)
                for group in _groups(tensors):
                    yield from self._merged(pool, self._group(pool, group, model), sink)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def measured(self, tensors: Sequence[TensorPlan]) -> list[Job]:
        """Tensors with what their methods have to know of them before they can be merged, each by itself."""
        with ThreadPoolExecutor(max_workers=self.threads or cores()) as pool, self._alone(tensors):
            return [job for group in _groups(tensors) for job in self._group(pool, group, {})]

    def operation(self, job: Job) -> Operating:
        """What merges chunks of a tensor that has been measured."""
        return self._backend(job.inputs.tensor).operation(job)

    def _group(
        self,
        pool: ThreadPoolExecutor,
        tensors: Sequence[TensorPlan],
        model: Mapping[str, Mapping[str, Any]],
    ) -> list[Job]:
        jobs = [Job(TensorInputs(self.plan, tensor), dict(model.get(tensor.name, {}))) for tensor in tensors]
        works = [self._measure([job]) for job in jobs if not job.known]
        run_all(pool, [work for work in works if work is not None])
        return jobs

    def grams(self, tensors: Sequence[TensorPlan], *, progress: Progress = silent) -> np.ndarray[Any, Any]:
        """What methods that measure dot products of sources measure, summed over tensors: (sources, sources).

        Args:
            tensors: with such a method.
            progress: told about every tensor.

        Raises:
            CheckpointError: a tensor holds NaN or infinity.
        """
        n = len(self.plan.sources)
        total = np.zeros((n, n))
        with (
            ThreadPoolExecutor(max_workers=self.threads or cores()) as pool,
            self._alone(tensors),
            progress("comparing task vectors", len(tensors)) as advance,
        ):
            for group in _groups(tensors):
                jobs = [Job(TensorInputs(self.plan, tensor), {}) for tensor in group]
                works = [self._measure([job]) for job in jobs]
                run_all(pool, [work for work in works if work is not None])
                for job in jobs:
                    # Kernels have looked already; a merge by torch would find it in the result.
                    if not np.isfinite(np.asarray(job.known.get("gram", 0.0))).all():
                        raise non_finite_fault(job)
                # In their order: no thread can change a sum.
                total += sum((np.asarray(job.known["gram"]) for job in jobs if job.known), np.zeros((n, n)))
                advance(len(group))
        return total

    @property
    def by_torch(self) -> bool:
        """Whether torch has computed a tensor."""
        return self._torch is not None

    def _alone(self, tensors: Sequence[TensorPlan]) -> AbstractContextManager[None]:
        """Torch, where it computes a tensor, with one thread for each of ours."""
        return nullcontext() if all(map(self.is_compiled, tensors)) else steady()

    def is_compiled(self, tensor: TensorPlan) -> bool:
        """Whether the compiled kernels merge a tensor."""
        if not tensor.method:
            return True
        return self._compiled is not None and self._compiled.handles(tensor)

    def _backend(self, tensor: TensorPlan) -> Backend:
        if self._compiled is not None and self._compiled.handles(tensor):
            return self._compiled
        if self._torch is None:
            from langmerge.engine.reference import TorchBackend

            self._torch = TorchBackend(self.device)
        return self._torch

    def _measure(self, jobs: Sequence[Job]) -> Measuring | None:
        tensor = jobs[0].inputs.tensor
        return self._backend(tensor).measure(jobs) if tensor.method and jobs[0].inputs.entries else None

    def _measured_over_model(
        self, pool: ThreadPoolExecutor, tensors: Sequence[TensorPlan]
    ) -> dict[str, dict[str, Any]]:
        """What is known of tensors that are measured together, by name."""
        chosen = [
            tensor
            for tensor in tensors
            if tensor.treatment == "merged" and tensor.parameters.get("scope") == "model"
        ]
        jobs = [job for tensor in chosen if (job := Job(TensorInputs(self.plan, tensor), {})).inputs.entries]
        if jobs and (work := self._measure(jobs)) is not None:
            run_all(pool, [work])
        return {job.inputs.tensor.name: job.known for job in jobs}

    def _merged(self, pool: ThreadPoolExecutor, jobs: Sequence[Job], sink: Sink) -> Iterator[TensorResult]:
        submitted = []
        for job in jobs:
            tensor = job.inputs.tensor
            if not tensor.method:
                submitted.append((job, [pool.submit(self._copy, job, sink)]))
                continue
            backend = self._backend(tensor)
            sees, operation = backend.sees(tensor), backend.operation(job)
            pieces = job.inputs.pieces(sees=sees)
            submitted.append((job, [pool.submit(self._piece, job, operation, sees, p, sink) for p in pieces]))
        for job, futures in submitted:
            yield self._result(job, collect(futures))

    def _piece(
        self, job: Job, operation: Operating, sees: str, piece: tuple[int, int], sink: Sink
    ) -> tuple[np.ndarray[Any, Any], list[list[bytes]]]:
        """Merge one piece, chunk by chunk."""
        tensor, inputs = job.inputs.tensor, job.inputs
        width = DTYPES[tensor.dtype].itemsize
        out = self._space(min(inputs.step(sees), max(1, inputs.entries)) * width)
        total = np.zeros(len(tensor.sources) + 1)
        hashing = self._to_hash(job) if inputs.step(sees) == STEP and not tensor.gathered else []
        digests: list[list[bytes]] = [[] for _ in hashing]
        for start, stop in inputs.chunks(*piece, sees=sees):
            base, sources = inputs.spans(start, stop)
            finite, squares, hashes = operation.merge(Chunk(base, sources, start, hashing), out, tensor.dtype)
            if not finite:
                raise non_finite_fault(job)
            for own, digest in zip(digests, hashes, strict=True):
                own.append(digest)
            raw = memoryview(out)[: (stop - start) * width]
            if (
                base is not None
                and squares[0] == 0.0
                and not squares[:-1].any()
                and _keeps_what_agrees(tensor)
            ):
                raw = encoded(base, tensor.dtype)
                squares[-1] = 0.0
            if _is_out_of_range(raw, tensor.dtype):
                raise out_of_range_fault(job)
            sink(tensor, start * width, raw)
            total += squares
        inputs.let_go(*piece)
        return total, digests

    def _space(self, size: int) -> bytearray:
        """Room for a step's result, of this thread's own: fresh memory would be zeroed and faulted in each time."""
        found: bytearray | None = getattr(self._own, "space", None)
        if found is None or len(found) < size:
            found = self._own.space = bytearray(size)
        return found

    def _to_hash(self, job: Job) -> list[int]:
        """Which of the inputs (the base last) belong to a checkpoint whose hash is not known yet."""
        return [i for i, (c, _) in enumerate(job.inputs.everything()) if c.folder in self._hashed]

    def _copy(self, job: Job, sink: Sink) -> tuple[np.ndarray[Any, Any], list[list[bytes]]]:
        """Copy a tensor from the base or from one source: integer buffers included, never through float32."""
        tensor, inputs = job.inputs.tensor, job.inputs
        width = DTYPES[tensor.dtype].itemsize
        chosen = tensor.weights.index(1.0) if tensor.treatment == "source" else -1
        for piece in inputs.pieces():
            for start, stop in inputs.chunks(*piece):
                base, sources = inputs.spans(start, stop)
                span = sources[chosen] if tensor.treatment == "source" else base
                assert span is not None
                if span.dtype in DTYPE_CODES and not bool(np.isfinite(span.floats()).all()):
                    raise non_finite_fault(job)
                raw = encoded(span, tensor.dtype)
                if _is_out_of_range(raw, tensor.dtype):
                    raise out_of_range_fault(job)
                sink(tensor, start * width, raw)
            inputs.let_go(*piece)
        return np.zeros(len(tensor.sources) + 1), []

    def _result(
        self, job: Job, parts: Sequence[tuple[np.ndarray[Any, Any], list[list[bytes]]]]
    ) -> TensorResult:
        tensor = job.inputs.tensor
        total = sum((squares for squares, _ in parts), np.zeros(len(tensor.sources) + 1))
        if parts and parts[0][1]:
            everything = job.inputs.everything()
            for place, which in enumerate(self._to_hash(job)):
                _, info = everything[which]
                chunks = [digest for _, digests in parts for digest in digests[place]]
                self.digests[info.file, info.name] = tensor_digest(chunks)
        if not tensor.method or not job.inputs.has_base:
            return TensorResult(tensor, tensor.treatment)
        norms = np.sqrt(total)
        if not total[:-1].any() and _keeps_what_agrees(tensor):
            return TensorResult(tensor, "unchanged", source_norms=tuple(norms[:-1].tolist()))
        return TensorResult(
            tensor, tensor.treatment, float(norms[-1]), float(norms[:-1].mean()), tuple(norms[:-1].tolist())
        )


@contextmanager
def steady() -> Iterator[None]:
    """One torch thread for each of ours: sums cut among threads round differently, and results must not."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoded(span: Span, dtype: str) -> memoryview:
    """A stretch as bytes of a dtype; as stored where it is of that dtype."""
    if span.dtype == dtype:
        width = DTYPES[dtype].itemsize
        return memoryview(span.buffer).cast("B")[span.offset : span.offset + span.entries * width]
    with np.errstate(over="ignore"):
        return span.floats().astype(DTYPES[dtype]).view(np.uint8).data


def _is_out_of_range(raw: memoryview, dtype: str) -> bool:
    """Whether finite numbers have become infinity or NaN in a dtype of a narrower range."""
    if dtype not in _ALL_SET:
        return False
    whole, bits = _ALL_SET[dtype]
    return bool(((np.frombuffer(raw, whole) & bits) == bits).any())


def _keeps_what_agrees(tensor: TensorPlan) -> bool:
    """Whether entries in which the base and every source agree stay as they are: Σ w_i θ_i would round them."""
    if tensor.method == "linear":
        return tensor.treatment == "mean" or abs(sum(tensor.weights) - 1) < 1e-9
    if tensor.parameters.get("about") == "origin":
        # On a sphere about the origin Σ w_i is not 1: what nobody has moved is scaled with the rest.
        return False
    return tensor.method not in ("passthrough", "multislerp") or bool(tensor.parameters.get("normalize"))


def _groups(tensors: Sequence[TensorPlan]) -> Iterator[list[TensorPlan]]:
    """Tensors in order, cut where a group has `GROUP` entries; a large tensor is one by itself.

    What is measured of it may take memory (histograms), and its pieces keep all threads busy.
    """
    group: list[TensorPlan] = []
    size = 0
    for tensor in tensors:
        own = math.prod(tensor.shape)
        if group and (own > SELECTED or size + own > GROUP):
            yield group
            group, size = [], 0
        group.append(tensor)
        size += own
        if own > SELECTED:
            yield group
            group, size = [], 0
    if group:
        yield group
