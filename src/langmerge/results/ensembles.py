"""Several models' predictions as one: upper references, made of kept logits alone."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Float64

from langmerge.results.logits import Logits

Values = Float32[np.ndarray, "n c"]


def soft_vote(members: Sequence[Logits], weights: Sequence[float] | None = None) -> Values:
    """Weighted mean of the members' probabilities, as log-probabilities.

    Args:
        members: logits of several models on the same rows.
        weights: one per member; equal by default.

    Returns:
        log Σ w_i softmax(z_i), shape (n, c).

    Raises:
        ValueError: other rows, negative weights, or weights that sum to zero.
    """
    floor = np.finfo(np.float64).tiny
    return np.asarray(np.log(np.maximum(_shares(members, weights), floor)), dtype=np.float32)


def logit_average(members: Sequence[Logits], weights: Sequence[float] | None = None) -> Values:
    """Weighted mean of the members' logits: the normalised product of their probabilities.

    Args and errors as `soft_vote`.

    Returns:
        Σ w_i z_i, shape (n, c).
    """
    parts = _weighted(members, weights)
    total = sum(share * member.values.astype(np.float64) for share, member in parts)
    return np.asarray(total, dtype=np.float32)


def majority(members: Sequence[Logits], weights: Sequence[float] | None = None) -> Values:
    """Weighted count of the labels that the members predict; of labels with as many votes that with the larger mean
    probability.

    Args and errors as `soft_vote`.

    Returns:
        The labels' ranks, c − 1 for the winner: no probabilities, shape (n, c).
    """
    votes = np.zeros(members[0].values.shape)
    for share, member in _weighted(members, weights):
        votes[np.arange(len(votes)), member.predictions] += share
    # Sums of equal shares in another order may differ in the last bit, which is no vote.
    order = np.lexsort((_shares(members, weights), votes.round(12)), axis=1)
    ranks = np.empty(votes.shape, dtype=np.float32)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(order[0].size), order.shape), axis=1)
    return ranks


def _weighted(members: Sequence[Logits], weights: Sequence[float] | None) -> list[tuple[float, Logits]]:
    raw = np.ones(len(members)) if weights is None else np.asarray(weights, dtype=np.float64)
    if (raw < 0).any() or not raw.sum() > 0:
        raise ValueError(f"a vote with weights {raw.tolist()}")
    for member in members:
        if member.ids != members[0].ids:
            raise ValueError("a vote over different rows")
    return list(zip((raw / raw.sum()).tolist(), members, strict=True))


def _shares(members: Sequence[Logits], weights: Sequence[float] | None) -> Float64[np.ndarray, "n c"]:
    """Σ w_i softmax(z_i)."""
    total = np.zeros(members[0].values.shape)
    for share, member in _weighted(members, weights):
        shifted = member.values - member.values.max(axis=1, keepdims=True)
        odds = np.exp(shifted.astype(np.float64))
        total += share * odds / odds.sum(axis=1, keepdims=True)
    return total


ENSEMBLES: dict[str, tuple[Callable[[Sequence[Logits], Sequence[float] | None], Values], bool]] = {
    "soft_vote": (soft_vote, False),
    "weighted_vote": (soft_vote, True),
    "majority": (majority, False),
    "weighted_majority": (majority, True),
    "logit_average": (logit_average, False),
}
"""By name: how, and whether with the selection's weights."""
