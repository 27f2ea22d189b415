"""Methods that resolve sign conflicts: TIES and DARE-TIES."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods.averages import deltas, weighted_sum


def keep_largest(tau: Float[Tensor, "*S"], density: float) -> Float[Tensor, "*S"]:
    """`tau` with all but its largest entries by magnitude set to zero.

    Args:
        tau: one task vector.
        density: share of entries to keep, in (0, 1]; at least one entry is kept.

    Conventions:
        Entries whose magnitude ties with the smallest one kept are all kept, so the result does not depend on a sort's
        order; peft and mergekit keep an arbitrary subset of them. The number kept is rounded; peft cuts it off. A NaN
        counts as the largest magnitude and is kept.
    """
    if density >= 1 or tau.numel() == 0:
        return tau
    kept = max(1, round(density * tau.numel()))
    magnitude = tau.detach().abs().flatten()
    threshold = torch.kthvalue(magnitude, tau.numel() - kept + 1).values
    # Not "keep where ≥": a NaN compares as false, and must not be trimmed away.
    return torch.where(tau.abs() < threshold, torch.zeros_like(tau), tau)


def elected_mean(
    delta: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    election: str,
    *,
    undropped: Float[Tensor, "N *S"] | None = None,
) -> Float[Tensor, "*S"]:
    """Mean of the entries that carry the elected sign, each weighted by its source.

    γ = sign Σ w_i δ_i (election `sum`) or sign Σ w_i sign δ_i (`count`);
    τ_m = Σ a_i w_i δ_i / Σ b_i w_i with a_i = [sign δ_i = γ ≠ 0] and b_i = a_i

    Args:
        delta: δ_i, trimmed or dropped.
        weights: w_i.
        election: `sum` or `count`.
        undropped: τ_i from which δ_i was dropped at random and rescaled; then b_i = [sign τ_i = γ ≠ 0].

    Returns:
        τ_m: 0 where the votes cancel exactly or nothing is left, NaN where a δ_i is NaN or an infinite one loses the vote.
    """
    elected = weighted_sum(weights, delta.sign() if election == "count" else delta).sign()
    agrees = _carries(elected, delta)
    # Division is by the sum of the weights that agree, not by their number. What was dropped at random counts too:
    # rescaling has paid for it, and to leave it out here would pay twice.
    total = weighted_sum(weights, agrees if undropped is None else _carries(elected, undropped))
    # 0 × NaN is NaN: what is not finite shows in the result even though torch's sign(NaN) is 0 and loses the election.
    return weighted_sum(weights, agrees * delta) / torch.where(total == 0, 1.0, total)


def _carries(sign: Float[Tensor, "*S"], stacked: Float[Tensor, "N *S"]) -> Float[Tensor, "N *S"]:
    return ((stacked.sign() == sign) & (stacked != 0)).to(stacked)


def ties(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    election: str = "sum",
    thresholds: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "*S"]:
    """Trim, elect signs, merge what agrees.

    θ = θ_0 + s · Σ a_i w_i δ_i / Σ a_i w_i,  δ_i = τ_i trimmed to its largest `density` share,
    a_i = [sign δ_i = sign Σ w_j δ_j and δ_i ≠ 0]

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative.
        density: share of entries kept in each task vector, in (0, 1].
        scale: s; 1 is right. Published uses of the largest remaining weight (about 0.3) shrink the merge.
        election: `sum` (the paper: the sign with the larger total mass) or `count` (the more frequent sign).
        thresholds: smallest magnitude kept, per source, found over the whole model (`scope=model`); then `density` is
            not used here.

    Raises:
        MethodError: a density outside (0, 1], a negative weight, or another election.

    Source:
        Yadav et al. 2023, TIES-Merging, algorithm 1.

    Conventions:
        The authors trim over the whole model, peft and mergekit per tensor: this function sees one tensor, the engine's
        `scope` chooses. Entries that tie with the threshold are kept; the released code keeps one more than the share
        says. A cancelled vote gives 0; the released code gives it the sign of the majority of all entries, peft and
        mergekit a plus. The authors and peft elect without weights; peft divides by the number that agrees, so that
        weights 1/N shrink the merge N times; mergekit's `count` ignores the size of the weights.
    """
    _check_signs("ties", density, weights, election)
    tau = deltas(base, tuned)
    if thresholds is None:
        trimmed = torch.stack([keep_largest(one, density) for one in tau])
    else:
        trimmed = torch.where(
            tau.abs() < thresholds.reshape(-1, *[1] * base.ndim), torch.zeros_like(tau), tau
        )
    return base + scale * elected_mean(trimmed, weights, election)


def drop_mask(shape: torch.Size, density: float, *, seed: int, key: str) -> Float[Tensor, "*S"]:
    """Ones with probability `density`, else zeros; decided by (seed, key) alone.

    Args:
        shape: of the tensor.
        density: probability of keeping an entry.
        seed: the run's seed.
        key: what the mask is for (tensor and source).
    """
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return (torch.rand(shape, generator=generator, dtype=torch.float32) < density).to(torch.float32)


def dare_ties(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    density: float = 0.5,
    scale: float = 1.0,
    election: str = "sum",
    seed: int = 0,
    key: str = "",
    sources: Sequence[str] | None = None,
) -> Float[Tensor, "*S"]:
    """Drop entries at random, rescale, then elect signs and merge what agrees, without another trim.

    δ_i = τ_i ⊙ m_i / p, m_i ~ Bernoulli(p);  θ = θ_0 + s · Σ a_i w_i δ_i / Σ b_i w_i,
    a_i = [sign δ_i = γ ≠ 0], b_i = [sign τ_i = γ ≠ 0], γ = sign Σ w_j δ_j

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative.
        density: p, probability of keeping an entry, in (0, 1].
        scale: s.
        election: `sum` or `count`, as in `ties`.
        seed: of the run.
        key: the tensor's name.
        sources: the sources' names, by which their masks differ; their positions by default.

    Raises:
        MethodError: a density outside (0, 1], a negative weight, or another election.

    Source:
        Yu et al. 2024, Language models are super Mario, section 3 (DARE), with the TIES election.

    Conventions:
        Randomness is keyed by (seed, tensor, source): neither order nor shard size nor threads can change it.
        The mean is over the sources that agree before the drop (b_i): where all agree, its expectation is `ties`
        without trimming. The authors and peft divide by the number of survivors, which undoes the purpose of 1/p: five
        sources at p = 0.1 give 6.7 times the norm. mergekit by default does not divide at all.
    """
    _check_signs("dare_ties", density, weights, election)
    tau = deltas(base, tuned)
    names = [str(i) for i in range(len(tau))] if sources is None else list(sources)
    masks = [drop_mask(base.shape, density, seed=seed, key=f"{key}\0{name}") for name in names]
    # strict: one name too few would otherwise be broadcast, and all sources drop the same entries.
    delta = torch.stack([one * mask.to(one) / density for one, mask in zip(tau, masks, strict=True)])
    return base + scale * elected_mean(delta, weights, election, undropped=tau)


def _check_signs(method: str, density: float, weights: Tensor, election: str) -> None:
    if not 0 < density <= 1:
        raise MethodError(f"{method}: density is {density}, it must lie in (0, 1]")
    if election not in ("sum", "count"):
        raise MethodError(f"{method}: election is {election!r}, it must be 'sum' or 'count'")
    if bool((weights < 0).any()):
        raise MethodError(
            f"{method}: weights {weights.tolist()} include a negative one; signs are elected by weight"
        )
