"""Task vectors of experts in pairs, over all that a merge would merge: dot products and signs; streamed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from langmerge.checkpoint import Checkpoint, open_checkpoint
from langmerge.checkpoint.reader import not_finite
from langmerge.checkpoint.tensors import to_tensor
from langmerge.coefficients import group_of
from langmerge.engine.planning import make_plan
from langmerge.engine.stream import Stream
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe

SIGNS = 1 << 20
"""Entries of each expert that are held at once."""


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
    own, opened = open_checkpoint(base), [open_checkpoint(folder) for folder in experts.values()]
    same, both = (np.zeros((len(opened), len(opened))) for _ in range(2))
    with progress("signs", len(tensors)) as advance:
        for tensor in tensors:
            for first in range(0, math.prod(tensor.shape), SIGNS):
                start = _part(own, tensor.name, first)
                moved = np.stack([np.sign(_part(one, tensor.name, first) - start) for one in opened])
                touched = np.abs(moved)
                # Counts in float32 are exact up to 2²⁴.
                counted = (touched @ touched.T).astype(np.float64)
                both += counted
                same += ((moved @ moved.T) + counted) / 2
            advance(1)
    return np.divide(same, both, out=np.full_like(same, np.nan), where=both > 0)


def _part(checkpoint: Checkpoint, name: str, first: int) -> np.ndarray[Any, Any]:
    """Some entries of a tensor, as float32."""
    stored = checkpoint.array(name).reshape(-1)[first : first + SIGNS]
    found = to_tensor(stored, checkpoint.tensors[name].dtype).float()
    if not bool(found.isfinite().all()):
        raise not_finite(checkpoint.tensors[name])
    return np.asarray(found.numpy())
