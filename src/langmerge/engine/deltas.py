"""Dot products of experts' task vectors, over all that a merge would merge: streamed, nothing is held."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64

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
