"""A merge that stays in memory and is filled again as its coefficients move; dot products of gradients with task vectors.

The task vectors themselves are never held: base and sources are mapped files, read a chunk at a time. A model that is
filled here has the bits that a merge of the same coefficients writes, because the same kernels work on the same chunks.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from langmerge.engine.compiled import triple
from langmerge.engine.inputs import Floats
from langmerge.engine.passes import Chunk, Job, collect, non_finite_fault
from langmerge.engine.plan import Plan, Rows, TensorPlan
from langmerge.engine.stream import Stream, cores
from langmerge.errors import InputError, PlanError
from langmerge.kernels import compiled_kernels

Weights = Mapping[str, Sequence[float]]
"""A coefficient for each source, in the plan's order, by tensor."""


def is_linear(tensor: TensorPlan) -> bool:
    """Whether a merge of the tensor is θ_0 + Σ w_i v_i with v_i that do not depend on the w_i."""
    chosen = tensor.parameters
    if chosen.get("scale", 1.0) != 1.0 or chosen.get("scope", "tensor") != "tensor":
        return False
    if tensor.method == "ties":
        return chosen.get("election") == "unweighted" and not chosen.get("normalize")
    return tensor.method == "task_arithmetic"


class ResidentMerge:
    """The result of a plan in memory.

    Args:
        plan: by `task_arithmetic`, or by `ties` with `election: unweighted` and `normalize: false` (AdaMerging++).
        places: where each tensor of the result is held: float32, C-contiguous, by name; what is not named is left out.
        rows: tensors of which only some rows are held: their numbers, by name.
        threads: that work at once, all cores by default; their number changes no bit.

    Attributes:
        norms: ‖τ_i‖ of every source over the rows that are held, by name of the tensors that can move.

    Raises:
        InputError: a place is missing, or of another shape.
        PlanError: a tensor is merged by a method that is not linear in the coefficients, or a source does not differ
            from the base anywhere.
        CheckpointError: a tensor holds NaN or infinity.
    """

    def __init__(
        self,
        plan: Plan,
        places: Mapping[str, Floats],
        *,
        rows: Mapping[str, Rows] | None = None,
        threads: int | None = None,
    ) -> None:
        self.plan = plan
        self._kernels = compiled_kernels()
        self._pool = ThreadPoolExecutor(max_workers=threads or cores())
        self._stream = Stream(plan, threads)
        tensors = [_held(tensor, (rows or {}).get(tensor.name)) for tensor in plan.written]
        _check_places(tensors, places)
        self._bytes = {name: place.reshape(-1).view(np.uint8).data for name, place in places.items()}
        chosen = [tensor for tensor in tensors if tensor.name in places]
        if odd := [t for t in chosen if t.treatment == "merged" and not is_linear(t)]:
            raise PlanError(
                [
                    f"tensor {odd[0].name!r} is merged by {odd[0].method}, whose result is not linear in coefficients"
                ]
            )
        results = list(self._stream.run(chosen, self._keep))
        self.norms = {
            r.plan.name: np.array(r.source_norms) for r in results if r.plan.method and any(r.source_norms)
        }
        moving = [t for t in chosen if t.name in self.norms and t.treatment == "merged"]
        self._jobs = {job.inputs.tensor.name: job for job in self._stream.measured(moving)}

    @property
    def sources(self) -> tuple[str, ...]:
        """In the order of weights and dot products."""
        return tuple(self.plan.sources)

    @property
    def moving(self) -> tuple[str, ...]:
        """Tensors that change with the coefficients, in the plan's order."""
        return tuple(self._jobs)

    def fill(self, weights: Weights) -> None:
        """Merge these tensors anew, into their places.

        Raises:
            CheckpointError: the result holds NaN or infinity.
        """
        futures: list[Future[None]] = []
        for name, row in weights.items():
            job = self._jobs[name]
            job.inputs.tensor = replace(job.inputs.tensor, weights=tuple(float(number) for number in row))
            operation = self._stream.operation(job)
            futures += [
                self._pool.submit(self._merge, job, operation, piece) for piece in job.inputs.pieces()
            ]
        collect(futures)

    def dots(self, gradients: Mapping[str, Floats]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """⟨∂L/∂θ, v_i⟩ of some tensors: the derivative of the loss in each source's coefficient, (sources,).

        Several at once keep the threads busier than one after the other.

        Args:
            gradients: of the loss in each tensor, as it is held.
        """
        parts: dict[str, list[Future[Any]]] = {}
        for name, gradient in gradients.items():
            job = self._jobs[name]
            flat = np.ascontiguousarray(gradient, dtype=np.float32).reshape(-1)
            parts[name] = [self._pool.submit(self._dots, job, flat, piece) for piece in job.inputs.pieces()]
        return {name: np.asarray(np.sum(collect(own), axis=0), np.float64) for name, own in parts.items()}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _keep(self, tensor: TensorPlan, start: int, data: Any) -> None:
        raw = memoryview(data).cast("B")
        self._bytes[tensor.name][start : start + len(raw)] = raw

    def _merge(self, job: Job, operation: Any, piece: tuple[int, int]) -> None:
        out = self._bytes[job.inputs.tensor.name]
        for start, stop in job.inputs.chunks(*piece):
            base, sources = job.inputs.spans(start, stop)
            if not operation.merge(Chunk(base, sources, start), out[4 * start : 4 * stop], "F32").finite:
                raise non_finite_fault(job)
        job.inputs.let_go(*piece)

    def _dots(self, job: Job, gradient: Floats, piece: tuple[int, int]) -> np.ndarray[Any, Any]:
        total = np.zeros(len(self.plan.sources))
        out = np.empty_like(total)
        bounds = job.known.get("thresholds")
        for start, stop in job.inputs.chunks(*piece):
            base, sources = job.inputs.spans(start, stop)
            own = gradient[start:stop]
            if self._stream.is_compiled(job.inputs.tensor):
                assert self._kernels is not None
                inputs = tuple(map(triple, sources))
                self._kernels.dots(stop - start, inputs, triple(base), own, bounds, out)
                total += out
            else:
                total += _dots_by_torch(base, sources, own, job)
        job.inputs.let_go(*piece)
        return total


def _held(tensor: TensorPlan, rows: Rows | None) -> TensorPlan:
    """The plan of what is held of a tensor, in float32."""
    if tensor.dtype.startswith(("F", "BF")):
        tensor = replace(tensor, dtype="F32")
    if rows is None:
        return tensor
    return replace(
        tensor,
        shape=(len(rows), *tensor.shape[1:]),
        rows={
            source: tensor.rows[source][rows] if source in tensor.rows else rows for source in tensor.sources
        },
        base_rows=tensor.base_rows[rows] if tensor.base_rows is not None else rows,
    )


def _check_places(tensors: Sequence[TensorPlan], places: Mapping[str, Floats]) -> None:
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for name, place in places.items():
        if name not in shapes:
            raise InputError(f"the model has a tensor {name!r}, which the merge does not give")
        if place.shape != shapes[name] or place.dtype != np.float32 or not place.flags.c_contiguous:
            raise InputError(
                f"tensor {name!r} is held as {place.dtype} {place.shape}: the merge gives float32 {shapes[name]}"
            )


def _dots_by_torch(base: Any, sources: Any, gradient: Floats, job: Job) -> np.ndarray[Any, Any]:
    import torch

    from langmerge.methods.signs import agreed

    tau = torch.from_numpy(np.stack([source.floats() - base.floats() for source in sources]))
    if job.inputs.tensor.method == "ties":
        bounds = job.known.get("thresholds")
        tau = agreed(tau, None if bounds is None else torch.as_tensor(bounds).reshape(-1))
    found = tau.double() @ torch.from_numpy(gradient).double()
    return np.asarray(found.numpy())
