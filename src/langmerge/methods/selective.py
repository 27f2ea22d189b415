"""Methods that select the entries worth merging by looking at all sources: consensus masks, PCB and SCE."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langmerge.methods.averages import deltas, weighted_sum
from langmerge.methods.measures import Known, Measure, Ranked, Sum, measured
from langmerge.methods.signs import carries, kept, magnitudes
from langmerge.methods.specs import require, require_weights

_OUTLIERS = 10_000
"""PCB clamps one entry in so many at either end."""
_LEAST = 1e-12
"""Weight of the entry whose score PCB's normalisation sets to 0; the released code bounds its divisor by it."""


def consensus(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    k: int = 2,
    lambda_: float = 0.4,
    scale: float = 1.0,
) -> Float[Tensor, "*S"]:
    """Task arithmetic on the entries that at least k sources use.

    τ_m = Σ w_i τ_i;  m_i = [|w_i τ_i| ≥ λ |τ_m − w_i τ_i| and w_i τ_i ≠ 0];  θ = θ_0 + s · [Σ m_i ≥ k] τ_m

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative; a common factor changes no mask.
        k: least number of sources that must use an entry, at least 1; at most the sources of a weight above zero
            are asked for, so that one source is merged whole.
        lambda_: λ, at least 0: the larger, the fewer entries a source is said to use.
        scale: s.

    Raises:
        MethodError: `k` or `lambda_` out of range, or a negative weight.

    Source:
        Wang et al. 2024, Localizing task information for improved model merging and compression (TALL masks and
        Consensus Merging).

    Conventions:
        The paper's merge is Σ τ_i, or that of TIES, times α: w_i = 1 and s = α. It chooses a λ for each task, from 0.2
        to 0.6, on validation data; here there is one. An entry that a source did not change is
        not used by it, even at λ = 0 or where all agree; the paper's inequality would count it.
    """
    require("consensus", k=k, lambda_=lambda_)
    require_weights("consensus", weights.tolist())
    tau = deltas(base, tuned)
    merged = weighted_sum(weights, tau)
    users = torch.zeros_like(base)
    for weight, one in zip(weights, tau, strict=True):
        own = weight * one
        users = users + ((own.abs() >= lambda_ * (merged - own).abs()) & (own != 0)).to(base)
    needed = min(k, int((weights != 0).sum()))
    # A product, so that a NaN, which no source is said to use, shows in the result.
    return base + scale * ((users >= needed).to(merged) * merged)


def pcb(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    ratio: float = 0.1,
    scale: float = 1.0,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Let entries compete within a source and between sources, drop the weak, weigh the others by their scores.

    |c_i| = |τ_i| clamped to its bounds l_i and h_i;  β_i = exp(N ((|c_i| − l_i) / (h_i − l_i))²) · tanh(τ_i Σ τ_j);
    β̂_i = (β_i − t_i) / (max β_i − t_i) where β_i ≥ t_i, else 0, with t_i the smallest of the `ratio` largest β_i;
    θ = θ_0 + s · Σ w_i β̂_i c_i / Σ w_i β̂_i

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative; they multiply β̂_i, and a common factor changes nothing. A source of weight zero
            does not compete.
        ratio: share of entries kept in each source, in (0, 1].
        scale: s.
        known: `bounds` (N, 2), h_i and l_i, and `scores` (N, 2), max β_i and t_i, where this is a chunk of a tensor.

    Raises:
        MethodError: `ratio` out of range, a negative weight, or weights that sum to zero.

    Source:
        Du et al. 2024, Parameter competition balancing for model merging (PCB-Merging), as in the authors' released
        code.

    Conventions:
        The paper writes both balances as softmaxes; the code has exp of the clamped, normalised magnitude and tanh of
        the product, followed here. tanh is nearly straight for the small deltas of fine-tuning; as it is not quite,
        units matter. The authors flatten the whole model and know no weights (w_i = 1); this function ranks one tensor,
        and the competition takes no weights either. One entry in 10,000 is clamped at either end, cut off to a whole
        number, so none in a small tensor; the code's upper bound is one entry lower where that is no whole number, and
        0/0 in a tensor of two. The entry with β_i = t_i gets weight 0 in the code, which loses it; it is 1e-12 here, so
        that it is merged where nothing else is left, and one entry, or equal scores, are no 0/0.
    """
    require("pcb", ratio=ratio)
    require_weights("pcb", weights.tolist())
    found = measured(_COMPETITION, base, tuned, weights, ratio=ratio) if known is None else known
    tau = deltas(base, tuned)
    clamped = _clamped(tau, found["bounds"])
    score = competition(base, tuned, weights, found)
    best, least = (one.to(tau) for one in over_entries(found["scores"], tau))
    span = torch.where(best > least, best - least, 1.0)
    share = torch.where(score >= least, ((score - least) / span).clamp(min=_LEAST), 0.0)
    total = weighted_sum(weights, share)
    return base + scale * weighted_sum(weights, share * clamped) / torch.where(total == 0, 1.0, total)


def competition(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    known: Known,
    **_: Any,
) -> Float[Tensor, "N *S"]:
    """β_i of PCB, from the known bounds."""
    tau, taking_part = deltas(base, tuned), (weights.detach() != 0).to(tuned)
    high, low = (one.to(tau) for one in over_entries(known["bounds"], tau))
    span = torch.where(high > low, high - low, 1.0)
    within = torch.exp(taking_part.sum() * ((_clamped(tau, known["bounds"]).abs() - low) / span) ** 2)
    return within * torch.tanh(tau * weighted_sum(taking_part, tau))


def over_entries(known: Float[Tensor, "N R"], stacked: Float[Tensor, "N *S"]) -> list[Tensor]:
    """R numbers of each source, each (N, 1, …) to stand beside (N, *S)."""
    return [one.reshape(-1, *[1] * (stacked.ndim - 1)) for one in known.unbind(1)]


def _clamped(tau: Float[Tensor, "N *S"], bounds: Float[Tensor, "N 2"]) -> Float[Tensor, "N *S"]:
    """c_i; what is infinite stays so, to show in the result."""
    high, low = (one.to(tau) for one in over_entries(bounds, tau))
    clamped = tau.sign() * tau.abs().clamp(low, high)
    return torch.where(tau.isfinite(), clamped, tau)


def _bound_ranks(size: int, known: Known, n: int, **_: Any) -> Int[Tensor, "N 2"]:  # noqa: ARG001
    clamped = size // _OUTLIERS
    return torch.tensor([[clamped + 1, size - clamped]] * n)


def _score_ranks(size: int, known: Known, n: int, *, ratio: float, **_: Any) -> Int[Tensor, "N 2"]:  # noqa: ARG001
    return torch.tensor([[1, kept(size, ratio)]] * n)


_COMPETITION: tuple[Measure, ...] = (
    Ranked("bounds", magnitudes, _bound_ranks),
    Ranked("scores", competition, _score_ranks),
)


def sce(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    topk: float = 0.1,
    scale: float = 1.0,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Select the entries on which sources differ most, weigh sources by their energy there, erase minority signs.

    δ_i = τ_i where Var_i τ_i is among the `topk` share of those above zero, else 0;  η_i = w_i ‖δ_i‖²;
    θ = θ_0 + s · Σ a_i η_i δ_i / Σ a_i η_i,  a_i = [sign δ_i = sign Σ w_j δ_j and δ_i ≠ 0]

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i, not negative; a common factor changes nothing. A source of weight zero has no say.
        topk: share of the entries whose variance is above zero, in [0, 1]; at 1 every entry is selected, at 0 none.
        scale: s.
        known: `variance` (1, 1), the smallest one selected, and `energy` (N,), ‖δ_i‖², where this is a chunk.

    Raises:
        MethodError: `topk` out of range, a negative weight, or weights that sum to zero.

    Source:
        Wan et al. 2024, FuseChat: Knowledge fusion of chat models (SCE).

    Conventions:
        The share is of the entries whose variance is not zero, cut off to a whole number, as in mergekit, but at least
        one is selected; entries that tie are all selected. One source, or equal ones, have no variance, so that
        nothing is selected below a topk of 1. The paper and mergekit know no weights (w_i = 1). Where ‖δ_i‖² are all
        zero nothing is merged. mergekit takes equal coefficients where the mean squares sum to less than 1e-6, which
        the deltas of fine-tuning often do, and divides by no less than 1e-6; neither is in the paper, nor here. A
        cancelled vote gives 0; mergekit counts it as a plus.
    """
    require("sce", topk=topk)
    require_weights("sce", weights.tolist())
    measures = _selections(topk=topk)
    found = measured(measures, base, tuned, weights, topk=topk) if known is None else known
    delta = _selected(base, tuned, weights, found)
    eta = weights * found["energy"].to(weights)
    agrees = carries(weighted_sum(weights, delta).sign(), delta)
    total = weighted_sum(eta, agrees)
    return base + scale * weighted_sum(eta, agrees * delta) / torch.where(total == 0, 1.0, total)


def variance(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    known: Known,  # noqa: ARG001
    **_: Any,
) -> Float[Tensor, "1 *S"]:
    """Population variance of the task vectors of a weight above zero, entry by entry."""
    chosen = [one - base for one, weight in zip(tuned, weights.tolist(), strict=True) if weight != 0]
    # From the first source: the variance of equal numbers is then zero to the bit.
    away = torch.stack([one - chosen[0] for one in chosen])
    each = torch.full((len(away),), 1 / len(away), dtype=away.dtype, device=away.device)
    centred = away - weighted_sum(each, away)
    return weighted_sum(each, centred * centred)[None]


def _varying(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    known: Known,
    **_: Any,
) -> Int[Tensor, ""]:
    return (variance(base, tuned, weights, known) != 0).sum()


def _variance_ranks(size: int, known: Known, n: int, *, topk: float, **_: Any) -> Int[Tensor, "1 1"]:  # noqa: ARG001
    varying = int(known["varying"])
    return torch.tensor([[kept(varying, topk) if varying and topk > 0 else 0]])


def _selected(
    base: Float[Tensor, "*S"], tuned: Float[Tensor, "N *S"], weights: Float[Tensor, "N"], known: Known
) -> Float[Tensor, "N *S"]:
    """δ_i of SCE; without a known variance everything is selected."""
    tau = deltas(base, tuned)
    if "variance" not in known:
        return tau
    bound = known["variance"].to(tau)[0, 0]
    return torch.where(variance(base, tuned, weights, known)[0] < bound, torch.zeros_like(tau), tau)


def _energy(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    known: Known,
    **_: Any,
) -> Float[Tensor, "N"]:
    selected = _selected(base, tuned, weights, known)
    return torch.stack([(one * one).sum() for one in selected.double()])


_ENERGY = Sum(_energy, lambda total, *_, **__: {"energy": total})
_VARIANCE = (
    Sum(_varying, lambda total, *_, **__: {"varying": total}),
    Ranked("variance", variance, _variance_ranks),
)


def _selections(*, topk: float, **_: Any) -> tuple[Measure, ...]:
    return (_ENERGY,) if topk >= 1 else (*_VARIANCE, _ENERGY)


MEASURES = {"pcb": lambda **_: _COMPETITION, "sce": _selections}
