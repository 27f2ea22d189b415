"""Methods that resolve sign conflicts: TIES and DARE-TIES."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langmerge.methods.averages import deltas, weighted_sum
from langmerge.methods.draws import drop_mask, source_keys
from langmerge.methods.measures import Known, Measure, Ranked, measured
from langmerge.methods.specs import require, require_weights

PerSource = float | Sequence[float]
"""One number for all sources, or one for each."""


def per_source(value: PerSource, n: int) -> list[float]:
    """A number for each of n sources."""
    return list(value) if isinstance(value, Sequence) else [value] * n


def magnitudes(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],  # noqa: ARG001
    known: Known,  # noqa: ARG001
    **_: Any,
) -> Float[Tensor, "N *S"]:
    """|τ_i|."""
    return deltas(base, tuned).abs()


def kept(size: int, density: float) -> int:
    """How many of `size` entries a trim keeps: the share cut off to a whole number, but at least one."""
    return max(1, int(density * size))


def _kept_ranks(
    size: int,
    known: Known,  # noqa: ARG001
    n: int,
    *,
    density: PerSource,
    **_: Any,
) -> Int[Tensor, "N 1"]:
    return torch.tensor([[kept(size, one)] for one in per_source(density, n)])


TRIM = Ranked("thresholds", magnitudes, _kept_ranks)
"""Smallest magnitude kept of each source, (N, 1)."""


def _trims(*, density: PerSource, **_: Any) -> tuple[Measure, ...]:
    return () if min(per_source(density, 1)) >= 1 else (TRIM,)


MEASURES = {"ties": _trims}


def trimmed(tau: Float[Tensor, "N *S"], smallest: Float[Tensor, "N"]) -> Float[Tensor, "N *S"]:
    """`tau` with the entries of a smaller magnitude than `smallest` set to zero.

    Conventions:
        Entries that tie with the threshold are all kept, so the result does not depend on a sort's order; peft and
        mergekit keep an arbitrary subset of them. A NaN compares as false and is kept.
    """
    bound = smallest.to(tau).reshape(-1, *[1] * (tau.ndim - 1))
    return torch.where(tau.abs() < bound, torch.zeros_like(tau), tau)


def elected_mean(
    delta: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    election: str,
    *,
    undropped: Float[Tensor, "N *S"] | None = None,
    normalize: bool = True,
) -> Float[Tensor, "*S"]:
    """Mean of the entries that carry the elected sign, each weighted by its source.

    γ = sign Σ w_i δ_i (election `sum`), sign Σ w_i sign δ_i (`count`) or sign Σ δ_i (`unweighted`);
    τ_m = Σ a_i w_i δ_i / Σ b_i w_i with a_i = [sign δ_i = γ ≠ 0] and b_i = a_i

    Args:
        delta: δ_i, trimmed or dropped.
        weights: w_i.
        election: `sum`, `count` or `unweighted`.
        undropped: τ_i from which δ_i was dropped at random and rescaled; then b_i = [sign τ_i = γ ≠ 0].
        normalize: divide; without, τ_m = Σ a_i w_i δ_i.

    Returns:
        τ_m: 0 where the votes cancel exactly or nothing is left, NaN where a δ_i is NaN or an infinite one loses the vote.
    """
    elected = _elected(delta, weights, election)
    agrees = carries(elected, delta)
    # 0 × NaN is NaN: what is not finite shows in the result even though torch's sign(NaN) is 0 and loses the election.
    agreed = weighted_sum(weights, agrees * delta)
    if not normalize:
        return agreed
    # Division is by the sum of the weights that agree, not by their number. What was dropped at random counts too:
    # rescaling has paid for it, and to leave it out here would pay twice.
    total = weighted_sum(weights, agrees if undropped is None else carries(elected, undropped))
    return agreed / torch.where(total == 0, 1.0, total)


def _elected(delta: Float[Tensor, "N *S"], weights: Float[Tensor, "N"], election: str) -> Float[Tensor, "*S"]:
    """γ."""
    if election == "unweighted":
        weights = torch.ones_like(weights)
    return weighted_sum(weights, delta.sign() if election == "count" else delta).sign()


def agreed(tau: Float[Tensor, "N *S"], smallest: Float[Tensor, "N"] | None = None) -> Float[Tensor, "N *S"]:
    """Each task vector trimmed to magnitudes from `smallest` on and then to the entries with the sign of their sum.

    `ties` without division and with the election `unweighted` is Σ w_i of these: the task vectors of AdaMerging++.
    """
    if smallest is not None:
        tau = trimmed(tau, smallest)
    return carries(_elected(tau, torch.ones(len(tau)).to(tau), "unweighted"), tau) * tau


def carries(sign: Float[Tensor, "*S"], stacked: Float[Tensor, "N *S"]) -> Float[Tensor, "N *S"]:
    """Ones where a source's entry has the elected sign; nowhere where that is 0."""
    return ((stacked.sign() == sign) & (stacked != 0)).to(stacked)


def ties(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: PerSource = 0.2,
    scale: float = 1.0,
    election: str = "sum",
    normalize: bool = True,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Trim, elect signs, merge what agrees.

    θ = θ_0 + s · Σ a_i w_i δ_i / Σ a_i w_i,  δ_i = τ_i trimmed to its largest `density` share,
    a_i = [sign δ_i = sign Σ w_j δ_j and δ_i ≠ 0]

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative.
        density: share of entries kept in each task vector, in (0, 1]: one number, or one per source.
        scale: s; 1 is right. Published uses of the largest remaining weight (about 0.3) shrink the merge.
        election: `sum` (the sign with the larger total mass), `count` (the more frequent sign), each weighted, or
            `unweighted` (the paper: the sign of Σ δ_i, whatever the weights).
        normalize: divide by the agreeing weights; without, their sum is taken. Without, and `unweighted`, the result is
            linear in the weights: what AdaMerging++ learns.
        known: `thresholds` (N, 1), the smallest magnitude kept per source, where the engine has found them over more
            than this tensor (`scope=model`, or a chunk of a tensor).

    Raises:
        MethodError: a density outside (0, 1], a negative weight, or another election.

    Source:
        Yadav et al. 2023, TIES-Merging, algorithm 1.

    Conventions:
        The authors trim over the whole model, peft and mergekit per tensor: this function sees one tensor, the engine's
        `scope` chooses. The number kept is cut off to a whole number, as in all three; at least one is kept. Entries
        that tie with the threshold are kept; the released code keeps one more than the share says. A cancelled vote
        gives 0; the released code gives it the sign of the majority of all entries, peft and mergekit a plus. The
        authors and peft elect without weights; peft divides by the number that agrees, so that weights 1/N shrink the
        merge N times; mergekit's `count` ignores the size of the weights.
    """
    require("ties", density=density, election=election)
    require_weights("ties", weights.tolist())
    tau = deltas(base, tuned)
    if base.numel() and (measures := _trims(density=density)):
        found = measured(measures, base, tuned, weights, density=density) if known is None else known
        tau = trimmed(tau, found["thresholds"][:, 0])
    return base + scale * elected_mean(tau, weights, election, normalize=normalize)


def dare_ties(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: PerSource = 0.5,
    scale: float = 1.0,
    election: str = "sum",
    normalize: bool = True,
    seed: int = 0,
    key: str = "",
    sources: Sequence[str] | None = None,
    offset: int = 0,
) -> Float[Tensor, "*S"]:
    """Drop entries at random, rescale, then elect signs and merge what agrees, without another trim.

    δ_i = τ_i ⊙ m_i / p, m_i ~ Bernoulli(p);  θ = θ_0 + s · Σ a_i w_i δ_i / Σ b_i w_i,
    a_i = [sign δ_i = γ ≠ 0], b_i = [sign τ_i = γ ≠ 0], γ = sign Σ w_j δ_j

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative.
        density: p, probability of keeping an entry, in (0, 1]: one number, or one per source.
        scale: s.
        election: `sum`, `count` or `unweighted`, as in `ties`.
        normalize: divide; without, the sum of what agrees is taken.
        seed: of the run.
        key: the tensor's name.
        sources: the sources' names, by which their masks differ; their positions by default.
        offset: position of the first entry, where this is a chunk of a tensor.

    Raises:
        MethodError: a density outside (0, 1], a negative seed or weight, or another election.

    Source:
        Yu et al. 2024, Language models are super Mario, section 3 (DARE), with the TIES election.

    Conventions:
        Randomness is keyed by (seed, tensor, source, position): neither order nor shard size nor threads can change it.
        The mean is over the sources that agree before the drop (b_i): where all agree, its expectation is `ties`
        without trimming. The authors and peft divide by the number of survivors, which undoes the purpose of 1/p: five
        sources at p = 0.1 give 6.7 times the norm. mergekit by default does not divide at all, and rescales by the L1
        norm that was dropped instead of by 1/p.
    """
    require("dare_ties", density=density, election=election, seed=seed)
    require_weights("dare_ties", weights.tolist())
    tau = deltas(base, tuned)
    delta = dropped(tau, density, seed=seed, key=key, sources=sources, offset=offset)
    return base + scale * elected_mean(delta, weights, election, undropped=tau, normalize=normalize)


def dropped(
    tau: Float[Tensor, "N *S"],
    density: PerSource,
    *,
    seed: int,
    key: str,
    sources: Sequence[str] | None,
    offset: int,
) -> Float[Tensor, "N *S"]:
    """τ_i ⊙ m_i / p_i (DARE); arguments as in `dare_ties`."""
    keys, shares = source_keys(key, sources, len(tau)), per_source(density, len(tau))
    kept_entries = [
        one * drop_mask(one.shape, p, seed=seed, key=own, offset=offset).to(one) / p
        for one, own, p in zip(tau, keys, shares, strict=True)
    ]
    return torch.stack(kept_entries)
