"""Passes over the chunks of many tensors at once, by threads; results in an order that threads cannot change."""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from langmerge.checkpoint import not_finite
from langmerge.engine.inputs import Span, TensorInputs
from langmerge.errors import CheckpointError

Part = Any
"""What a pass returns of one piece."""


@dataclass
class Job:
    """One tensor in work: its inputs, and what has been measured of it."""

    inputs: TensorInputs
    known: dict[str, Any]


@dataclass(frozen=True)
class Pass:
    """One pass: what to do with which pieces.

    Attributes:
        pieces: (job, first entry, last entry).
        work: is given a piece, on some thread.
    """

    pieces: Sequence[tuple[Job, int, int]]
    work: Callable[[Job, int, int], Part]


class Chunk(NamedTuple):
    """What is merged at once.

    Attributes:
        base: its entries, None without a base.
        sources: theirs.
        start: position of the first entry in the tensor.
        hashing: which of the inputs (the base last) are to be hashed.
    """

    base: Span | None
    sources: Sequence[Span]
    start: int
    hashing: Sequence[int] = ()

    @property
    def inputs(self) -> list[Span]:
        """Everything that is read, the base last."""
        return [*self.sources, *([self.base] if self.base is not None else [])]


class MergedChunk(NamedTuple):
    """What is known of a chunk that was merged.

    Attributes:
        finite: all of its inputs and of its result.
        squares: ‖τ_i‖² of every source, ‖τ_m‖² last; zeros without a base.
        digests: of the inputs that were to be hashed. The bytes are read anyhow, and are then near.
    """

    finite: bool
    squares: np.ndarray[Any, Any]
    digests: list[bytes]


Measuring = Generator[Pass, list[Part], None]
"""Yields passes and is sent their parts, in the order of the pieces; fills in `known` of its jobs before it ends."""


def run_all(pool: ThreadPoolExecutor, works: Iterable[Measuring]) -> None:
    """Carry out several measurements side by side: their first passes together, then their second, and so on."""
    active: list[tuple[Measuring, Pass]] = []
    for work in works:
        if (first := next(work, None)) is not None:
            active.append((work, first))
    while active:
        futures = [(work, [pool.submit(p.work, *piece) for piece in p.pieces]) for work, p in active]
        active = []
        for work, parts in futures:
            try:
                active.append((work, work.send(collect(parts))))
            except StopIteration:
                continue


def collect(parts: Sequence[Future[Part]]) -> list[Part]:
    """The results in order; the first failure ends the rest."""
    try:
        return [part.result() for part in parts]
    except BaseException:
        for part in parts:
            part.cancel()
        raise


def non_finite_fault(job: Job) -> CheckpointError:
    """The input that holds NaN or infinity, looked for entry by entry; or, where none does, the result."""
    for checkpoint, info in job.inputs.everything():
        with np.errstate(over="ignore", invalid="ignore"):
            if not bool(np.isfinite(checkpoint.array(info.name).astype(np.float32)).all()):
                return not_finite(info)
    return CheckpointError(
        f"merging tensor {job.inputs.tensor.name!r} gave NaN or infinity: the coefficients or parameters are too large"
    )


def out_of_range_fault(job: Job) -> CheckpointError:
    """The result does not fit the dtype it is to be stored in."""
    tensor = job.inputs.tensor
    return CheckpointError(
        f"tensor {tensor.name!r} of the result has numbers too large for {tensor.dtype}: store it as BF16 or F32"
    )
