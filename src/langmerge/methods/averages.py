"""Averages: linear, task arithmetic, slerp, directional consensus."""

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.errors import MethodError


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


def slerp(
    base: Float[Tensor, "*S"],  # noqa: ARG001
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    t: float | None = None,
    eps: float = 1e-4,
) -> Float[Tensor, "*S"]:
    """Spherical interpolation between two sources, about the origin, the tensor taken as one vector.

    θ = [sin((1−t)Ω) θ_1 + sin(tΩ) θ_2] / sin Ω,  Ω = arccos(θ_1·θ_2 / ‖θ_1‖‖θ_2‖)

    Args:
        base: θ_0; not used.
        tuned: θ_1 and θ_2: exactly two.
        weights: w_1, w_2.
        t: place between the first (0) and the second (1); by default w_2 / (w_1 + w_2).
        eps: up to 1 − |cos Ω| = eps, or for a zero vector, the result is the straight line (1−t)θ_1 + tθ_2.

    Raises:
        MethodError: not two sources, or weights that sum to zero.

    Source:
        Shoemake 1985, Animating rotation with quaternion curves; as used by mergekit.

    Conventions:
        mergekit normalises to unit vectors for Ω alone and interpolates the vectors themselves; so do we. Its straight
        line begins at |cos Ω| = 0.9995, that is eps = 5e-4.
    """
    if len(tuned) != 2:
        raise MethodError(
            f"slerp merges exactly 2 sources, got {len(tuned)}: choose k = 2, or another method"
        )
    place = shares(weights)[1] if t is None else torch.as_tensor(t, dtype=tuned.dtype, device=tuned.device)
    first, second = tuned[0], tuned[1]
    norms = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
    cosine = (first * second).sum() / norms if float(norms.detach()) > 0 else torch.ones_like(norms)
    if 1 - abs(float(cosine.detach())) <= eps:
        return (1 - place) * first + place * second
    angle = torch.arccos(cosine)
    return (torch.sin((1 - place) * angle) * first + torch.sin(place * angle) * second) / torch.sin(angle)


def directional_consensus(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    alpha: float = 1.0,
) -> Float[Tensor, "*S"]:
    """Task vectors projected on the direction they share.

    d = Σ τ_i / ‖Σ τ_i‖,  τ'_i = α (τ_i·d) d + (1−α) τ_i,  θ = θ_0 + Σ w_i τ'_i

    Args:
        base: θ_0.
        tuned: θ_i.
        weights: w_i; used as they are.
        alpha: share of the projection, 0 to 1. With uniform weights and α = 1 the result is the plain average.

    Raises:
        MethodError: `alpha` outside [0, 1].

    Source:
        The cross-lingual merging study that PUBLISHED results call "directional consensus".

    Conventions:
        d does not depend on the weights. If the task vectors cancel exactly there is no direction, and τ'_i = τ_i.
    """
    if not 0 <= alpha <= 1:
        raise MethodError(f"directional_consensus: alpha is {alpha}, it must lie in [0, 1]")
    tau = deltas(base, tuned)
    total = weighted_sum(torch.ones_like(weights), tau)
    norm = torch.linalg.vector_norm(total)
    if float(norm.detach()) == 0.0:
        return base + weighted_sum(weights, tau)
    direction = total / norm
    along = torch.stack([(one * direction).sum() for one in tau])
    projected: Tensor = (weights * along).sum() * direction
    return base + alpha * projected + (1 - alpha) * weighted_sum(weights, tau)
