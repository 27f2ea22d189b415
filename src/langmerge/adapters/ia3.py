"""(IA)³: activations are multiplied by learned vectors, so languages and tasks combine by ratios, and 1 changes nothing."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Vector = Float[Tensor, "*n"]

SMALL = 1e-6
"""A divisor below this is no divisor."""


def faulty(two: Vector, three: Vector) -> Tensor:
    """Where l2 / l3 is no growth or shrinking: a divisor near 0, or another sign. A mask."""
    return (three.abs() < SMALL) | (two * three <= 0)


def quotient(two: Vector, three: Vector, clip: float | None) -> tuple[Tensor, int]:
    """l2 / l3, within [1 / clip, clip] where a clip is given, and how many entries that moved.

    Divisors near 0 and other signs are then at the nearest bound.
    """
    divisor = torch.where(three.abs() < SMALL, torch.where(three < 0, -SMALL, SMALL), three)
    ratio = two / divisor
    if clip is None:
        return ratio, 0
    clipped = ratio.clamp(1 / clip, clip)
    return clipped, int((clipped != ratio).sum())


def by_ratio(one: Vector, ratio: Vector, t: float) -> Tensor:
    """l1 · (1 + t (l2 / l3 − 1)): AdaMergeX for (IA)³."""
    return one * (1 + t * (ratio - 1))


def geometric(one: Vector, ratio: Vector, t: float) -> Tensor:
    """l1 · (l2 / l3)^t: t = 0.5 twice is t = 1."""
    return one * ratio**t


def summed(vectors: Sequence[Vector], weights: Sequence[float]) -> Tensor:
    """1 + Σ w (l − 1): what the vectors change is added up; the mean where the weights' sum is 1."""
    total = torch.ones_like(vectors[0])
    for one, weight in zip(vectors, weights, strict=True):
        total = total + weight * (one - 1)
    return total


def multiplied(vectors: Sequence[Vector], weights: Sequence[float]) -> Tensor:
    """Π |l|^w with the common sign; signs must agree in every entry (see `signs_differ`)."""
    logs = sum(weight * one.abs().log() for one, weight in zip(vectors, weights, strict=True))
    return torch.sign(vectors[0]) * torch.exp(torch.as_tensor(logs))


def signs_differ(vectors: Sequence[Vector]) -> Tensor:
    """Where a product of powers has no meaning: an entry near 0, or signs that differ. A mask."""
    signs = torch.stack([torch.sign(one) for one in vectors])
    small = torch.stack([one.abs() < SMALL for one in vectors]).any(0)
    return small | (signs != signs[0]).any(0)
