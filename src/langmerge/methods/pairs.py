"""Methods of a base and one source, and the swap of blocks between two sources."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods.averages import deltas, shares, weighted_sum
from langmerge.methods.measures import Known, Measure, Ranked, measured
from langmerge.methods.rows import along_last_axis, row_sums
from langmerge.methods.specs import require, require_weights

_SOFTENED = 1e-8
"""Added to both softmaxes in the divergence, as mergekit does."""


def nearswap(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    t: float = 1e-4,
) -> Float[Tensor, "*S"]:
    """The base, moved towards the source by at most t in every entry: swapped where the two are near.

    θ = θ_0 + w min(1, t / |τ|) τ

    Args:
        base: θ_0.
        tuned: θ_1: exactly one.
        weights: w; 1 is right.
        t: largest change of an entry, above 0.

    Raises:
        MethodError: not one source, or `t` is not positive and finite.

    Source:
        Alchemonaut 2024, QuartetAnemoi-70B-t0.0001 (model card); mergekit's `nearswap`.

    Conventions:
        mergekit has no weight, and divides by |τ| or 1e-6 if that is larger, which matters for t below 1e-6 only.
    """
    require("nearswap", t=t)
    require_weights("nearswap", weights.tolist())
    tau = deltas(base, tuned)[0]
    # Not a clamp: an infinite τ must show.
    return base + weights[0] * (t / tau.abs().clamp(min=t)) * tau


def passthrough(
    base: Float[Tensor, "*S"],  # noqa: ARG001
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "*S"]:
    """One source as it is, times a number.

    θ = s θ_1

    Args:
        base: θ_0; not used.
        tuned: θ_1: exactly one.
        weights: w_1, not zero; divided by their sum, so its size does not matter.
        scale: s.

    Raises:
        MethodError: not one source, or a weight of zero.

    Source:
        mergekit's `passthrough`, with which it stacks slices of models.
    """
    require_weights("passthrough", weights.tolist())
    return scale * weighted_sum(shares(weights), tuned)


def arcee_fusion(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """The base with the source's most important changes, by size and by how much they turn their row's softmax.

    θ = θ_0 + w m ⊙ τ,  m = [I ≥ median(I) + 1.5 (Q3(I) − Q1(I))],
    I = |τ| · KL(softmax(θ_1) + ε ‖ softmax(θ_0) + ε), the divergence along the last axis, ε = 1e-8

    Args:
        base: θ_0.
        tuned: θ_1: exactly one.
        weights: w; 1 is right.
        known: `quartiles` (1, 3), Q1, the median and Q3 of I over the tensor, where this is a chunk of it.

    Raises:
        MethodError: not one source.

    Source:
        Arcee 2025, Arcee Fusion; mergekit's `arcee_fusion`.

    Conventions:
        A quartile is the entry of rank ⌊q (n − 1)⌋ from below, with no interpolation, as in mergekit, which looks at
        a random million of the entries of a larger tensor; here they are exact. The divergence is in float64; in the
        stored dtype it is mostly rounding, because rows of weights have nearly uniform softmaxes. mergekit has no weight.
    """
    require_weights("arcee_fusion", weights.tolist())
    tau = deltas(base, tuned)
    if base.numel() == 0:
        return base + weighted_sum(weights, tau)
    found = measured((_QUARTILES,), base, tuned, weights) if known is None else known
    first, median, third = found["quartiles"][0].double()
    fused = importance(base, tuned).double() >= median + 1.5 * (third - first)
    return base + weighted_sum(weights, fused * tau)


def importance(base: Float[Tensor, "*S"], tuned: Float[Tensor, "N *S"]) -> Float[Tensor, "N *S"]:
    """|τ| · KL(softmax(θ_i) + ε ‖ softmax(θ_0) + ε), along the last axis."""
    q = along_last_axis(base).double().softmax(1) + _SOFTENED
    found = []
    for one in tuned:
        p = along_last_axis(one).double().softmax(1) + _SOFTENED
        divergence = row_sums(p * (p / q).log())[:, None].to(base)
        found.append((along_last_axis(one - base).abs() * divergence).reshape(base.shape))
    return torch.stack(found)


def _importance(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],  # noqa: ARG001
    known: Known,  # noqa: ARG001
    **_: Any,
) -> Float[Tensor, "N *S"]:
    return importance(base, tuned)


def _quartile_ranks(size: int, known: Known, n: int, **_: Any) -> Int[Tensor, "N 3"]:  # noqa: ARG001
    return torch.tensor([[size - int(q * (size - 1)) for q in (0.25, 0.5, 0.75)]]).expand(n, 3)


_QUARTILES = Ranked("quartiles", _importance, _quartile_ranks)


def _quartiles(**_: Any) -> tuple[Measure, ...]:
    return (_QUARTILES,)


MEASURES = {"arcee_fusion": _quartiles}


def layer_swap(
    base: Float[Tensor, "*S"],  # noqa: ARG001
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    bottom: int = 2,
    top: int = 1,
    transition: int = 1,
    block: int | None = None,
    blocks: int | None = None,
) -> Float[Tensor, "*S"]:
    """The first source (the task's expert) with the bottom and top blocks of the second (the language's expert).

    θ = θ_2 in the first `bottom` and the last `top` blocks, (w_1 θ_1 + w_2 θ_2) / (w_1 + w_2) in the `transition` blocks
    next to either, θ_1 between

    Args:
        base: θ_0; not used.
        tuned: θ_1 and θ_2: exactly two.
        weights: w_1, w_2, not negative; they matter in the transition blocks only, divided by their sum.
        bottom: number of blocks swapped at the bottom.
        top: number of blocks swapped at the top.
        transition: number of blocks averaged on the inner side of each swapped end; none beside an end of 0 blocks.
        block: number of the tensor's block, from 0; −1 (embeddings) goes with the first block, `blocks` (final norm,
            pooler, head) with the last; None, a tensor that belongs nowhere, comes from the first source.
        blocks: how many the model has; to be given with `block`.

    Raises:
        MethodError: not two sources, `bottom` and `top` both 0 or more than there are blocks, a `block` that does not
            exist or comes without `blocks`, a negative weight, or weights that sum to zero.

    Source:
        Bandarkar et al. 2024, Layer Swapping for zero-shot cross-lingual transfer in large language models, section 4.

    Conventions:
        The paper swaps 5 and 2 of 32 blocks with one transition block at each end, and averages those with equal
        weights; the defaults are these shares of 12 blocks.
    """
    require("layer_swap", bottom=bottom, top=top, transition=transition)
    require_weights("layer_swap", weights.tolist())
    if bottom == top == 0:
        raise MethodError(
            "layer_swap: bottom and top are 0, so the second source would take no part: give one"
        )
    if block is None:
        return tuned[0].clone()
    below, above = _distances(block, blocks, bottom, top)
    if below < bottom or above < top:
        return tuned[1].clone()
    if (bottom and below < bottom + transition) or (top and above < top + transition):
        return weighted_sum(shares(weights), tuned)
    return tuned[0].clone()


def _distances(block: int, blocks: int | None, bottom: int, top: int) -> tuple[int, int]:
    """How many blocks lie below and above this one; what is outside goes with the nearest block."""
    if blocks is None or not -1 <= block <= blocks:
        raise MethodError(f"layer_swap: there is no block {block} in a model of {blocks} blocks")
    if bottom + top > blocks:
        raise MethodError(
            f"layer_swap: bottom {bottom} and top {top} are more than the model's {blocks} blocks: swap fewer"
        )
    inside = min(max(block, 0), blocks - 1)
    return inside, blocks - 1 - inside
