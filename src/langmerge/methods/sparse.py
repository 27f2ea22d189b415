"""Methods that merge sparse task vectors: DARE, DELLA and Breadcrumbs, summed or with elected signs.

TIES and DARE-TIES are with the elections, in `signs`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langmerge.methods.averages import deltas, shares, weighted_sum
from langmerge.methods.draws import random_words
from langmerge.methods.measures import Known, Measure, Ranked, measured
from langmerge.methods.rows import as_rows
from langmerge.methods.signs import PerSource, dropped, elected_mean, kept, magnitudes, per_source
from langmerge.methods.specs import require, require_weights, require_window
from langmerge.methods.streams import source_keys, stream_key


def dare_linear(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: PerSource = 0.5,
    scale: float = 1.0,
    normalize: bool = False,
    seed: int = 0,
    key: str = "",
    sources: Sequence[str] | None = None,
    offset: int = 0,
) -> Float[Tensor, "*S"]:
    """Drop entries of the task vectors at random, rescale, and sum.

    δ_i = τ_i ⊙ m_i / p, m_i ~ Bernoulli(p);  θ = θ_0 + s Σ w_i δ_i

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i.
        density: p, probability of keeping an entry, in (0, 1]: one number, or one per source.
        scale: s.
        normalize: divide by Σ w_i.
        seed: of the run, not negative.
        key: the tensor's name.
        sources: the sources' names, by which their masks differ; their positions by default.
        offset: position of the first entry, where this is a chunk of a tensor.

    Raises:
        MethodError: a density outside (0, 1], a negative seed, or `normalize` and weights that sum to zero.

    Source:
        Yu et al. 2024, Language models are super Mario, section 3 (DARE), with task arithmetic.

    Conventions:
        The expectation over seeds is `task_arithmetic`. The paper and peft divide by p, as here; mergekit divides by
        the share of the L1 norm that was kept, which is p only on average. The paper's p is what is dropped.
        mergekit normalises by leaving a sum of weights below 1e-8 alone; here it is an error.
    """
    require("dare_linear", density=density, seed=seed)
    require_weights("dare_linear", weights.tolist(), normalize=normalize)
    delta = dropped(deltas(base, tuned), density, seed=seed, key=key, sources=sources, offset=offset)
    return base + scale * _summed(delta, weights, normalize)


def della_linear(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: PerSource = 0.5,
    epsilon: PerSource = 0.15,
    scale: float = 1.0,
    normalize: bool = False,
    seed: int = 0,
    key: str = "",
    sources: Sequence[str] | None = None,
    offset: int = 0,
) -> Float[Tensor, "*S"]:
    """Drop small entries of a row more often than large ones, rescale each by its own probability, and sum.

    p_j = (p − ε) + 2ε (r_j − 1) / (n − 1), r_j the rank of |τ_j| in its row of n entries, 1 for the smallest;
    δ_j = τ_j m_j / p_j, m_j ~ Bernoulli(p_j);  θ = θ_0 + s Σ w_i δ_i

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i.
        density: p, mean probability of keeping an entry, in (0, 1]: one number, or one per source.
        epsilon: ε, half the width of the window of probabilities, in [0, 0.5); p ± ε must stay in (0, 1].
        scale: s.
        normalize: divide by Σ w_i.
        seed: of the run, not negative.
        key: the tensor's name.
        sources: the sources' names, by which their masks differ; their positions by default.
        offset: position of the first entry, where this is a chunk of whole rows of a tensor.

    Raises:
        MethodError: a density, epsilon or window out of range, a negative seed, or `normalize` and weights that sum
            to zero.

    Source:
        Deep et al. 2024, DELLA-Merging (MagPrune), with task arithmetic.

    Conventions:
        A row is everything behind the first axis; a vector is one row, and a row of one entry has p_j = p. Equal
        magnitudes are ranked by position. At ε = 0 this is `dare_linear`, mask for mask. The paper's p is what is
        dropped; it divides each entry by its own probability, as here, so that the expectation is `task_arithmetic`.
        mergekit divides all by the share of the L1 norm that was kept, so that large entries gain; it ranks a tensor
        of more than two axes along the second, makes a NaN of a row of one entry, refuses p + ε = 1, and at a density
        of 1 ignores ε.
    """
    require("della_linear", density=density, epsilon=epsilon, seed=seed)
    require_window("della_linear", density, epsilon)
    require_weights("della_linear", weights.tolist(), normalize=normalize)
    tau = deltas(base, tuned)
    delta = _dropped_by_rank(tau, density, epsilon, seed=seed, key=key, sources=sources, offset=offset)
    return base + scale * _summed(delta, weights, normalize)


def della_ties(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: PerSource = 0.5,
    epsilon: PerSource = 0.15,
    scale: float = 1.0,
    election: str = "sum",
    normalize: bool = True,
    seed: int = 0,
    key: str = "",
    sources: Sequence[str] | None = None,
    offset: int = 0,
) -> Float[Tensor, "*S"]:
    """Drop small entries of a row more often than large ones, rescale, then elect signs and merge what agrees.

    δ_i as in `della_linear`;  θ = θ_0 + s · Σ a_i w_i δ_i / Σ b_i w_i,
    a_i = [sign δ_i = γ ≠ 0], b_i = [sign τ_i = γ ≠ 0], γ = sign Σ w_j δ_j

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative.
        density: p, mean probability of keeping an entry, in (0, 1]: one number, or one per source.
        epsilon: ε, half the width of the window of probabilities, in [0, 0.5); p ± ε must stay in (0, 1].
        scale: s.
        election: `sum`, `count` or `unweighted`, as in `ties`.
        normalize: divide; without, the sum of what agrees is taken.
        seed: of the run, not negative.
        key: the tensor's name.
        sources: the sources' names, by which their masks differ; their positions by default.
        offset: position of the first entry, where this is a chunk of whole rows of a tensor.

    Raises:
        MethodError: a density, epsilon or window out of range, another election, a negative seed or weight.

    Source:
        Deep et al. 2024, DELLA-Merging (drop, elect, fuse).

    Conventions:
        The drop is `della_linear`'s; the mean is over the sources that agree before the drop, as in `dare_ties` and
        for the same reason. The paper divides by the number of survivors that agree; mergekit, where it is called
        `della`, by their weights.
    """
    require("della_ties", density=density, epsilon=epsilon, election=election, seed=seed)
    require_window("della_ties", density, epsilon)
    require_weights("della_ties", weights.tolist())
    tau = deltas(base, tuned)
    delta = _dropped_by_rank(tau, density, epsilon, seed=seed, key=key, sources=sources, offset=offset)
    return base + scale * elected_mean(delta, weights, election, undropped=tau, normalize=normalize)


def breadcrumbs(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: PerSource = 0.9,
    gamma: PerSource = 0.01,
    scale: float = 1.0,
    normalize: bool = False,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Drop the largest and the smallest entries of each task vector, and sum.

    θ = θ_0 + s Σ w_i δ_i,  δ_i = τ_i where h_i ≥ |τ_i| ≥ l_i, else 0; h_i and l_i are the magnitudes at the ranks
    o + 1 and o + k, with k = ⌊density · n⌋ (at least 1) and o = min(⌊γ n⌋, n − k)

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i.
        density: share of entries kept in each task vector, in (0, 1]: one number, or one per source.
        gamma: γ, share of the largest entries dropped as outliers, in [0, 1): one number, or one per source.
        scale: s.
        normalize: divide by Σ w_i.
        known: `window` (N, 2), h_i and l_i, where this is a chunk of a tensor.

    Raises:
        MethodError: a density or gamma out of range, or `normalize` and weights that sum to zero.

    Source:
        Davari and Belilovsky 2023, Model Breadcrumbs.

    Conventions:
        The paper's β, the share of the smallest dropped, is 1 − density − γ. Nothing is rescaled, as in the paper;
        mergekit can rescale to the former L1 norm. Where γ + density > 1 fewer outliers are dropped, so that the
        density is kept, as in mergekit; at density 1 none are. Entries that tie with h_i or l_i are all kept, so more
        than the share may remain; mergekit keeps those that its sort puts first. At least one entry is kept in a
        tensor of any size; mergekit keeps none where density · n < 1, and an earlier release kept none where γ n < 1.
    """
    require("breadcrumbs", density=density, gamma=gamma)
    require_weights("breadcrumbs", weights.tolist(), normalize=normalize)
    delta = _crumbs(base, tuned, weights, density, gamma, known)
    return base + scale * _summed(delta, weights, normalize)


def breadcrumbs_ties(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: PerSource = 0.9,
    gamma: PerSource = 0.01,
    scale: float = 1.0,
    election: str = "sum",
    normalize: bool = True,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Drop the largest and the smallest entries of each task vector, then elect signs and merge what agrees.

    θ = θ_0 + s · Σ a_i w_i δ_i / Σ a_i w_i,  δ_i as in `breadcrumbs`, a_i as in `ties`

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative.
        density: share of entries kept in each task vector, in (0, 1]: one number, or one per source.
        gamma: γ, share of the largest entries dropped as outliers, in [0, 1): one number, or one per source.
        scale: s.
        election: `sum`, `count` or `unweighted`, as in `ties`.
        normalize: divide by the agreeing weights; without, their sum is taken.
        known: `window` (N, 2), largest and smallest magnitude kept, where this is a chunk of a tensor.

    Raises:
        MethodError: a density or gamma out of range, another election, or a negative weight.

    Source:
        Davari and Belilovsky 2023, Model Breadcrumbs, with the election of Yadav et al. 2023; the pair is
        mergekit's.

    Conventions:
        What is dropped: see `breadcrumbs`; what wins and is divided by: see `ties`. mergekit by default does not divide.
    """
    require("breadcrumbs_ties", density=density, gamma=gamma, election=election)
    require_weights("breadcrumbs_ties", weights.tolist())
    delta = _crumbs(base, tuned, weights, density, gamma, known)
    return base + scale * elected_mean(delta, weights, election, normalize=normalize)


def _summed(
    delta: Float[Tensor, "N *S"], weights: Float[Tensor, "N"], normalize: bool
) -> Float[Tensor, "*S"]:
    """Σ w_i δ_i, or with w_i / Σ w_i."""
    return weighted_sum(shares(weights) if normalize else weights, delta)


def _dropped_by_rank(
    tau: Float[Tensor, "N *S"],
    density: PerSource,
    epsilon: PerSource,
    *,
    seed: int,
    key: str,
    sources: Sequence[str] | None,
    offset: int,
) -> Float[Tensor, "N *S"]:
    """δ_i of DELLA; arguments as in `della_linear`."""
    n = len(tau)
    kept_entries = []
    each = zip(tau, source_keys(key, sources, n), per_source(density, n), per_source(epsilon, n), strict=True)
    for one, own, p, window in each:
        keep = keep_probabilities(one, p, window)
        words = random_words(stream_key(seed, own), offset, one.numel()).reshape(one.shape)
        mask = (words.to(one.device) < (keep * (1 << 32)).round()).to(one)
        kept_entries.append(one * mask / keep.to(one))
    return torch.stack(kept_entries)


def keep_probabilities(tau: Float[Tensor, "*S"], density: float, epsilon: float) -> Float[Tensor, "*S"]:
    """p_j of DELLA for one task vector, float64: from p − ε for the smallest entry of a row to p + ε for the largest."""
    rows = as_rows(tau.detach())
    columns = rows.shape[1]
    kind, device = torch.float64, tau.device
    if columns < 2:
        return torch.full(tau.shape, density, dtype=kind, device=device)
    ladder = (density - epsilon) + 2 * epsilon * torch.arange(columns, dtype=kind, device=device) / (
        columns - 1
    )
    order = rows.abs().argsort(dim=1, stable=True)
    return (
        torch.empty(rows.shape, dtype=kind, device=device)
        .scatter_(1, order, ladder.expand(rows.shape))
        .reshape(tau.shape)
    )


def _window_ranks(
    size: int,
    known: Known,  # noqa: ARG001
    n: int,
    *,
    density: PerSource,
    gamma: PerSource,
    **_: Any,
) -> Int[Tensor, "N 2"]:
    ranks = []
    for share, outliers in zip(per_source(density, n), per_source(gamma, n), strict=True):
        keep = kept(size, share)
        above = min(int(outliers * size), size - keep)
        ranks.append([above + 1, above + keep])
    return torch.tensor(ranks)


WINDOW = Ranked("window", magnitudes, _window_ranks)
"""Largest and smallest magnitude kept of each source, (N, 2)."""


def _windows(*, density: PerSource, **_: Any) -> tuple[Measure, ...]:
    return () if min(per_source(density, 1)) >= 1 else (WINDOW,)


MEASURES = {"breadcrumbs": _windows, "breadcrumbs_ties": _windows}


def _crumbs(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    density: PerSource,
    gamma: PerSource,
    known: Known | None,
) -> Float[Tensor, "N *S"]:
    """δ_i of Breadcrumbs."""
    tau = deltas(base, tuned)
    measures = _windows(density=density)
    if not measures:
        return tau
    found = measured(measures, base, tuned, weights, density=density, gamma=gamma) if known is None else known
    bounds = found["window"].to(tau).reshape(len(tau), 2, *[1] * base.ndim)
    size = tau.abs()
    # An infinite entry is no outlier to be dropped unseen, and a NaN compares as false: both show in the result.
    outside = (size < bounds[:, 1]) | ((size > bounds[:, 0]) & (size < torch.inf))
    return torch.where(outside, torch.zeros_like(tau), tau)
