"""The published formulas, in numpy, as plainly as they can be said; one flat vector a source."""

import numpy as np

Array = np.ndarray


def largest_entries(flat: Array, kept: int) -> Array:
    """One vector with only its `kept` largest entries by magnitude."""
    out = np.zeros_like(flat)
    order = np.argsort(-np.abs(flat))
    out[order[:kept]] = flat[order[:kept]]
    return out


def ties_by_its_authors(flat: Array, density: float) -> Array:
    """Yadav et al., algorithm 1, on task vectors flattened over the whole model, shape (N, d).

    Where the summed mass is 0 their code elects the sign of the majority of all entries. It counts sources, not weights.
    """
    count = int(density * flat.shape[1])
    trimmed = np.stack([largest_entries(one, count) for one in flat])
    elected = np.sign(trimmed.sum(axis=0))
    elected[elected == 0] = np.sign(elected.sum())
    agreeing = np.where(elected > 0, trimmed > 0, trimmed < 0)
    return np.asarray((trimmed * agreeing).sum(axis=0) / np.maximum(agreeing.sum(axis=0), 1))


def ties_with_weights(delta: Array, weights: Array, *, election: str, normalize: bool = True) -> Array:
    """mergekit's consensus of trimmed vectors: the sign of the weighted mass (or of the signs' number)."""
    weighted = delta * weights[:, None]
    votes = np.sign(weighted) if election == "count" else weighted
    majority = np.where(votes.sum(axis=0) >= 0, 1, -1)
    agreeing = np.sign(weighted) == majority
    divisor = (weights[:, None] * agreeing).sum(axis=0)
    agreed = (weighted * agreeing).sum(axis=0)
    return np.asarray(agreed / np.where(divisor == 0, 1, divisor) if normalize else agreed)


def slerp_of_mergekit(t: float, first: Array, second: Array, *, straight_above: float = 0.9995) -> Array:
    """Spherical interpolation; a straight line where the cosine's magnitude is above 0.9995."""
    cosine = (first / np.linalg.norm(first) * (second / np.linalg.norm(second))).sum()
    if abs(cosine) > straight_above:
        return np.asarray((1 - t) * first + t * second)
    angle = np.arccos(cosine)
    return np.asarray((np.sin(angle - angle * t) * first + np.sin(angle * t) * second) / np.sin(angle))


def interference(merged: Array, tau: Array, weights: Array) -> float:
    """WUDI's objective, Σ w_i ‖(τ_m − τ_i) τ_iᵀ‖² / ‖τ_i‖², for matrices τ of shape (N, out, in)."""
    total = 0.0
    for weight, one in zip(weights, tau, strict=True):
        total += weight * np.linalg.norm((merged - one) @ one.T) ** 2 / np.linalg.norm(one) ** 2
    return total
