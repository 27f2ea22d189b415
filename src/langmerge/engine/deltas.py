"""Task vectors of experts in pairs, over all that a merge would merge: dot products and signs; streamed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from langmerge.checkpoint import TensorInfo
from langmerge.checkpoint.reader import not_finite
from langmerge.coefficients import group_of
from langmerge.engine.inputs import Span, TensorInputs
from langmerge.engine.planning import make_plan
from langmerge.engine.stream import Stream
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe


def delta_gram(
    base: Path, experts: Mapping[str, Path], *, threads: int | None = None, progress: Progress = silent
) -> Float64[np.ndarray, "n n"]:
    """τ_i · τ_j of all pairs.

    Args:
        base: folder of the base.
        experts: their folders by name, two or more; rows and columns have their order.
        threads: that read at once, all cores by default.
        progress: told about every tensor.

    Raises:
        PlanError: they cannot be merged: other shapes, other labels, an expert that is the base.
        CheckpointError: a tensor holds NaN or infinity.
    """
    # A method whose measure is this very matrix.
    plan = make_plan(Recipe(base=base, sources=dict(experts), method="directional_consensus"))
    found = Stream(plan, threads).grams(
        [tensor for tensor in plan.written if tensor.treatment == "merged" and tensor.base is not None],
        progress=progress,
    )
    places = [list(plan.sources).index(name) for name in experts]
    return np.asarray(found[np.ix_(places, places)])


def sign_agreement(
    base: Path, experts: Mapping[str, Path], *, progress: Progress = silent
) -> Float64[np.ndarray, "n n"]:
    """Of the entries that both of a pair have moved, the share that they have moved in the same direction.

    The head is left out: its rows are labels, and every expert moves them.

    Args:
        base: folder of the base.
        experts: their folders by name, two or more; rows and columns have their order.
        progress: told about every tensor.

    Returns:
        Shares in [0, 1], 1 on the diagonal; NaN for a pair that has moved nothing in common.

    Raises:
        PlanError: they cannot be merged.
        CheckpointError: a tensor holds NaN or infinity.
    """
    plan = make_plan(Recipe(base=base, sources=dict(experts), method="linear"))
    tensors = [t for t in plan.written if t.treatment == "merged" and t.base and group_of(t.name) != "head"]
    same, both = (np.zeros((len(experts), len(experts))) for _ in range(2))
    # In the order of the experts: a plan has one of its own.
    order = [list(plan.sources).index(name) for name in experts]
    with progress("signs", len(tensors)) as advance:
        for tensor in tensors:
            # By the plan's names and rows: a model may be saved with another prefix, or another order of pieces.
            inputs = TensorInputs(plan, tensor)
            for start, stop in inputs.chunks(0, inputs.entries):
                base_span, sources = inputs.spans(start, stop)
                if base_span is None or tensor.base is None:
                    raise ValueError(f"{tensor.name} has no base")
                first = _finite(base_span, tensor.base)
                others = [_finite(sources[place], tensor.inputs[place]) for place in order]
                moved = np.stack([np.sign(one - first) for one in others])
                touched = np.abs(moved)
                # Counts in float32 are exact up to 2²⁴.
                counted = (touched @ touched.T).astype(np.float64)
                both += counted
                same += ((moved @ moved.T) + counted) / 2
            advance(1)
    return np.divide(same, both, out=np.full_like(same, np.nan), where=both > 0)


def _finite(span: Span, info: TensorInfo) -> np.ndarray[Any, Any]:
    values = span.floats()
    if not np.isfinite(values).all():
        raise not_finite(info)
    return values
