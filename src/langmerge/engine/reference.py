"""Merging by the torch functions of `langmerge.methods`: every method, on any device, chunk by chunk."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langmerge.checkpoint import DTYPES, chunk_digest
from langmerge.checkpoint.tensors import TORCH_DTYPES
from langmerge.engine.inputs import Span
from langmerge.engine.passes import Chunk, Job, Measuring, MergedChunk, Pass
from langmerge.engine.plan import TensorPlan
from langmerge.errors import InputError, MethodError
from langmerge.methods import METHODS, measures_of, sees_of


class TorchBackend:
    """Measures and merges by torch.

    Args:
        device: where the arithmetic is done, as torch names it.
    """

    def __init__(self, device: str = "cpu") -> None:
        try:
            self._device = torch.device(device)
            torch.empty(0, device=self._device)
        # torch asserts that it was built for the device.
        except (RuntimeError, AssertionError) as error:
            why = str(error).splitlines()[0]
            raise InputError(
                f"device {device!r} cannot be used: {why}; choose cpu, or see langmerge doctor"
            ) from None

    def sees(self, tensor: TensorPlan) -> str:
        """What the method must have in sight at once."""
        return sees_of(tensor.method, tensor.parameters)

    def measure(self, jobs: Sequence[Job]) -> Measuring | None:
        """What has to be known before the tensors of these jobs (one, or all of a model) can be merged."""
        tensor = jobs[0].inputs.tensor
        measures = measures_of(tensor.method, _own(tensor)) if self.sees(tensor) != "tensor" else ()
        return self._passes(jobs, measures) if measures else None

    def _passes(self, jobs: Sequence[Job], measures: Sequence[Any]) -> Measuring:
        tensor = jobs[0].inputs.tensor
        sees, own = self.sees(tensor), _own(tensor)
        size = sum(job.inputs.entries for job in jobs)
        pieces = [(job, *piece) for job in jobs for piece in job.inputs.pieces(sees=sees)]
        known: dict[str, Any] = {}
        for measure in measures:
            for one in measure.passes:
                work = partial(self._part, part=one.part, known=dict(known), own=own)
                parts = yield Pass(pieces, work)
                known |= one.settle(sum(parts[1:], parts[0]), known, size, **own)
        for job in jobs:
            job.known.update(known)

    def _part(
        self,
        job: Job,
        start: int,
        stop: int,
        *,
        part: Callable[..., Tensor],
        known: dict[str, Any],
        own: dict[str, Any],
    ) -> Tensor:
        """One pass over one piece, added up."""
        total: Any = 0
        for first, last in job.inputs.chunks(start, stop, sees=self.sees(job.inputs.tensor)):
            total = total + part(*self._given(job, *job.inputs.spans(first, last)), known, **own)
        job.inputs.let_go(start, stop)
        return torch.as_tensor(total)

    def operation(self, job: Job) -> "TorchOperation":
        """The function's arguments for a tensor whose measures are known."""
        return TorchOperation(self, job)

    def _given(self, job: Job, base: Span | None, sources: Sequence[Span]) -> tuple[Tensor, Tensor, Tensor]:
        """Base, sources and weights of a chunk as the methods take them; whole rows keep their shape."""
        tensor = job.inputs.tensor
        shape = _chunk_shape(tensor, sources[0].entries, job.inputs.width)
        stacked = np.stack([span.floats() for span in sources])
        tuned = torch.from_numpy(stacked).reshape(len(sources), *shape).to(self._device)
        # The methods that know no base take any tensor of the shape.
        own = torch.from_numpy(np.array(base.floats())).reshape(shape).to(self._device) if base else tuned[0]
        return own, tuned, torch.tensor(tensor.weights, dtype=torch.float32, device=self._device)

    def _statistics(self, job: Job, start: int, entries: int) -> Tensor:
        """Fishers of a chunk in its shape, (N, *S), or the tensor's Grams, (N, in, in)."""
        found = torch.from_numpy(np.stack(job.inputs.statistics(start, start + entries)))
        if found.ndim == 2:
            found = found.reshape(len(found), *_chunk_shape(job.inputs.tensor, entries, job.inputs.width))
        return found.to(self._device)


class TorchOperation:
    """One method with everything but the chunk."""

    def __init__(self, backend: TorchBackend, job: Job) -> None:
        self._backend, self._job = backend, job
        tensor = job.inputs.tensor
        taken = inspect.signature(METHODS[tensor.method]).parameters
        supplied: dict[str, Any] = {
            "block": tensor.block,
            "blocks": tensor.blocks,
            "key": tensor.name,
            "sources": list(tensor.sources),
        }
        if job.known:
            supplied["known"] = job.known
        self._arguments = {key: value for key, value in supplied.items() if key in taken} | _own(tensor)
        self._has_offset = "offset" in taken

    def merge(self, chunk: Chunk, out: Any, dtype: str) -> MergedChunk:
        """Merge a chunk into `out`, and hash those of its inputs (the base last).

        Raises:
            MethodError: the method cannot merge these numbers; names the tensor.
        """
        tensor, (base, sources, start, _) = self._job.inputs.tensor, chunk
        own, tuned, weights = self._backend._given(self._job, base, sources)
        of_chunk: dict[str, Any] = {"offset": start} if self._has_offset else {}
        if tensor.statistics:
            of_chunk["statistics"] = self._backend._statistics(self._job, start, sources[0].entries)
        try:
            result = METHODS[tensor.method](own, tuned, weights, **self._arguments, **of_chunk)
        except MethodError as error:
            raise MethodError(f"tensor {tensor.name!r}: {error}") from None
        squares = np.zeros(len(sources) + 1)
        if base is not None:
            squares[:-1] = [_squared(one - own) for one in tuned]
            squares[-1] = _squared(result - own)
            finite = bool(np.isfinite(squares).all())
        else:
            finite = bool(torch.isfinite(result).all())
        raw = _stored(result, dtype)
        memoryview(out).cast("B")[: raw.nbytes] = raw.data.cast("B") if raw.nbytes else b""
        spans = chunk.inputs
        return MergedChunk(finite, squares, [chunk_digest(spans[i].stored()) for i in chunk.hashing])


def _stored(result: Tensor, dtype: str) -> np.ndarray[Any, Any]:
    """Bytes of a dtype."""
    flat = result.contiguous().reshape(-1).cpu()
    if dtype == "F8_E4M3":
        # torch takes what is too large to the largest number, and it would not be noticed.
        with np.errstate(over="ignore", invalid="ignore"):
            return flat.to(torch.float32).numpy().astype(DTYPES[dtype]).view(np.uint8)
    return flat.to(TORCH_DTYPES[dtype]).view(torch.uint8).numpy()


def _squared(delta: Tensor) -> float:
    return float(delta.double().square().sum())


def _own(tensor: TensorPlan) -> dict[str, Any]:
    return {key: value for key, value in tensor.parameters.items() if key != "scope"}


def _chunk_shape(tensor: TensorPlan, entries: int, width: int) -> tuple[int, ...]:
    """A chunk of whole rows keeps the axes behind the first; any other is a flat stretch."""
    if entries == int(np.prod(tensor.shape, dtype=np.int64)):
        return tensor.shape
    if len(tensor.shape) > 1 and entries % width == 0:
        return (entries // width, *tensor.shape[1:])
    return (entries,)
