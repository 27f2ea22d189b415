"""Where coefficients may lie, and the free numbers that the optimiser moves."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from langmerge.errors import InputError

KINDS = ("none", "projection", "sigmoid", "simplex", "paper_clamp")


@dataclass(frozen=True)
class Bounds:
    """How coefficients stay where they may be.

    - `none`: free.
    - `projection`: cut back into [low, high] after each step; at the edge the gradient still counts.
    - `sigmoid`: low + (high − low) σ(u), never at the edge.
    - `simplex`: each group's coefficients are 0 or more and sum to one: the nearest such point after each step.
    - `paper_clamp`: clamped to [low, high] within the forward pass, as the AdaMerging code has it: beyond the edge the
      gradient is zero, and a coefficient that left does not come back by itself.

    Attributes:
        kind: one of these.
        low: smallest coefficient.
        high: largest.

    Raises:
        InputError: another kind, or low ≥ high.
    """

    kind: str = "projection"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"bounds is {self.kind!r}: it must be one of {', '.join(KINDS)}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(
                f"bounds go from {self.low} to {self.high}: the first must be smaller, both finite"
            )

    def free(self, start: Float64[Tensor, "g k"]) -> Float64[Tensor, "g k"]:
        """The numbers that are moved, of the coefficients that one starts from.

        Raises:
            InputError: the start lies outside.
        """
        if self.kind == "simplex":
            if bool((start < 0).any()) or float((start.sum(1) - 1).abs().max()) > 1e-6:
                raise InputError(
                    "bounds simplex: the start's coefficients must not be negative and must sum to one in every group"
                )
            return start.clone()
        if self.kind == "none":
            return start.clone()
        if bool(((start < self.low) | (start > self.high)).any()):
            raise InputError(
                f"the start has coefficients from {float(start.min()):.4g} to {float(start.max()):.4g}, "
                f"outside the bounds [{self.low:g}, {self.high:g}]"
            )
        if self.kind != "sigmoid":
            return start.clone()
        share = (start - self.low) / (self.high - self.low)
        if bool(((share <= 0) | (share >= 1)).any()):
            raise InputError(
                "bounds sigmoid: the start must lie inside the bounds, not at an edge, which σ never reaches"
            )
        return torch.logit(share)

    def coefficients(self, free: Float64[Tensor, "g k"]) -> Float64[Tensor, "g k"]:
        """λ(u), with a gradient in u."""
        if self.kind == "sigmoid":
            return self.low + (self.high - self.low) * torch.sigmoid(free)
        if self.kind == "paper_clamp":
            return free.clamp(self.low, self.high)
        # A new tensor also here: its gradient is asked for apart.
        return free * 1.0

    @torch.no_grad()
    def project(self, free: Float64[Tensor, "g k"]) -> None:
        """Bring the numbers back after a step, in place."""
        if self.kind == "projection":
            free.clamp_(self.low, self.high)
        elif self.kind == "simplex":
            free.copy_(nearest_on_simplex(free))


def nearest_on_simplex(points: Float64[Tensor, "g k"]) -> Float64[Tensor, "g k"]:
    """The Euclidean projection of each row onto {x ≥ 0, Σ x = 1}.

    Source:
        Duchi et al. 2008, Efficient projections onto the l1-ball for learning in high dimensions, figure 1.
    """
    ordered = points.sort(dim=1, descending=True).values
    places = torch.arange(1, points.shape[1] + 1, dtype=points.dtype, device=points.device)
    excess = (ordered.cumsum(1) - 1) / places
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (points - excess.gather(1, last)).clamp_min(0)
