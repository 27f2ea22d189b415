"""Averages: linear, task arithmetic, directional consensus."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods.measures import GRAM, Known, Measure, measured
from langmerge.methods.mixing import directional_consensus_mixing
from langmerge.methods.specs import require


def deltas(base: Float[Tensor, "*S"], tuned: Float[Tensor, "N *S"]) -> Float[Tensor, "N *S"]:
    """Task vectors, τ_i = θ_i − θ_0."""
    return tuned - base


def weighted_sum(weights: Float[Tensor, "N"], stacked: Float[Tensor, "N *S"]) -> Float[Tensor, "*S"]:
    """Σ w_i x_i, summed in the order of the sources, so that threads cannot change a bit."""
    total = torch.zeros_like(stacked[0])
    for weight, one in zip(weights, stacked, strict=True):
        total = total + weight * one
    return total


def shares(weights: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """w_i / Σ w_i.

    Raises:
        MethodError: the weights sum to zero, up to rounding.
    """
    total = weights.sum()
    rounding = torch.finfo(weights.dtype).eps * weights.detach().abs().sum()
    if bool(total.detach().abs() <= rounding):
        raise MethodError(f"weights {weights.tolist()} sum to zero, so they cannot be normalised")
    return weights / total


def linear(
    base: Float[Tensor, "*S"],  # noqa: ARG001
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    normalize: bool = True,
) -> Float[Tensor, "*S"]:
    """Weighted average of the weights.

    θ = Σ w_i θ_i / Σ w_i

    Args:
        base: θ_0; not used, here so that every method is called alike.
        tuned: θ_i.
        weights: w_i.
        normalize: divide by Σ w_i; without, θ = Σ w_i θ_i.

    Raises:
        MethodError: `normalize` and the weights sum to zero.

    Source:
        Wortsman et al. 2022, Model soups, section 2 (uniform soup).
    """
    return weighted_sum(shares(weights) if normalize else weights, tuned)


def task_arithmetic(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "*S"]:
    """Base plus the weighted sum of the task vectors.

    θ = θ_0 + s Σ w_i τ_i

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i; used as they are. With Σ w_i = 1 and s = 1 this is `linear`.
        scale: s.

    Source:
        Ilharco et al. 2023, Editing models with task arithmetic, section 2.

    Conventions:
        The paper gives every task vector the weight λ; that is w_i = 1 with s = λ. Experts of one task nearly agree,
        so sums (Σ w_i > 1) overshoot: the mean-like weights of a selection are what one wants here.
    """
    return base + scale * weighted_sum(weights, deltas(base, tuned))


def directional_consensus(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    alpha: float = 1.0,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Task vectors projected on the direction they share.

    d = Σ τ_i / ‖Σ τ_i‖,  τ'_i = α (τ_i·d) d + (1−α) τ_i,  θ = θ_0 + Σ w_i τ'_i

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i; used as they are.
        alpha: share of the projection, 0 to 1. With uniform weights and α = 1 the result is the plain average.
        known: `gram` (N, N), the dot products of the τ_i, where this is a chunk of a tensor.

    Raises:
        MethodError: `alpha` outside [0, 1].

    Source:
        The cross-lingual merging study that PUBLISHED results call "directional consensus".

    Conventions:
        d does not depend on the weights. If the task vectors cancel exactly there is no direction, and τ'_i = τ_i.
    """
    require("directional_consensus", alpha=alpha)
    found = measured(_MEASURES, base, tuned, weights) if known is None else known
    mixing = directional_consensus_mixing(found["gram"], weights, xp=torch, alpha=alpha)
    return base + weighted_sum(mixing.to(tuned), deltas(base, tuned))


_MEASURES: tuple[Measure, ...] = (GRAM,)


def _gram_of_deltas(**_: Any) -> tuple[Measure, ...]:
    return _MEASURES


MEASURES = {"directional_consensus": _gram_of_deltas}
