"""The published formulas of the selecting methods, in numpy; one flat vector a source, no weights."""

import numpy as np

Array = np.ndarray


def crumbs_by_rank(flat: Array, kept: int, outliers: int) -> Array:
    """Davari and Belilovsky: one vector without its `outliers` largest entries, and of the others the `kept` largest."""
    out = np.zeros_like(flat)
    chosen = np.argsort(-np.abs(flat))[outliers : outliers + kept]
    out[chosen] = flat[chosen]
    return out


def consensus_by_its_authors(flat: Array, k: int, lambda_: float) -> Array:
    """Wang et al.: Σ τ_i where at least k of the TALL masks |τ_i| ≥ λ |τ_m − τ_i| are set."""
    merged = flat.sum(axis=0)
    masks = np.abs(flat) >= lambda_ * np.abs(merged - flat)
    return np.asarray(np.where(masks.sum(axis=0) >= k, merged, 0.0))


def between(flat: Array, first: int, last: int) -> Array:
    """Each row clamped to its values at two places of its ascending order."""
    ascending = np.sort(flat, axis=1)
    return np.clip(flat, ascending[:, [first]], ascending[:, [last]])


def spread(flat: Array) -> Array:
    """Each row moved and scaled to [0, 1]."""
    least = flat.min(axis=1, keepdims=True)
    return np.asarray((flat - least) / (flat.max(axis=1, keepdims=True) - least))


def pcb_by_its_authors(flat: Array, ratio: float, *, last: int) -> Array:
    """Du et al., released code: the merged task vector. `last` is the place of the largest magnitude left unclamped."""
    n, d = flat.shape
    magnitude = between(np.abs(flat), int(d * 1e-4), last)
    score = np.exp(n * spread(magnitude) ** 2) * np.tanh(flat * flat.sum(axis=0))
    share = spread(between(score, int(d * (1 - ratio)), d - 1))
    merged = (np.sign(flat) * magnitude * share).sum(axis=0)
    return np.asarray(merged / np.maximum(share.sum(axis=0), 1e-12))


def sce_by_its_authors(flat: Array, selected: int) -> Array:
    """Wan et al.: select by variance, weigh by energy, erase the minority's signs."""
    chosen = np.argsort(-flat.var(axis=0))[:selected]
    delta = np.zeros_like(flat)
    delta[:, chosen] = flat[:, chosen]
    energy = (delta**2).sum(axis=1, keepdims=True)
    agreeing = np.sign(delta) == np.sign(delta.sum(axis=0))
    share = energy / energy.sum() * (agreeing & (delta != 0))
    total = share.sum(axis=0)
    return np.asarray((share * delta).sum(axis=0) / np.where(total == 0, 1, total))
