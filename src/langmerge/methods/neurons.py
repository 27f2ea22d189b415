"""NeuroMerging: the rows of a weight matrix are neurons, and change along their weights or across them."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langmerge.methods.averages import deltas
from langmerge.methods.measures import Known, Measure, Ranked, Sum, measured
from langmerge.methods.rows import as_rows, row_sums
from langmerge.methods.signs import elected_mean, magnitudes, trimmed
from langmerge.methods.specs import require, require_weights


def neuromerging(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    mask: float = 0.15,
    lambda_1: float = 0.0,
    lambda_2: float | None = None,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Each neuron's changes along and across its base weights, elected and averaged apart.

    δ_i = τ_i without its smallest `mask` share;  for each row w_0 of the base: δ∥_i = (w_0·δ_i) w_0 / ‖w_0‖²,
    δ⊥_i = δ_i − δ∥_i;  θ = θ_0 + λ_1 φ(δ∥) + λ_2 φ(δ⊥),
    φ(δ) = Σ a_i w_i δ_i / Σ a_i w_i with a_i = [sign δ_i = sign Σ w_j δ_j ≠ 0]

    Args:
        base: θ_0; a row is an output unit (everything behind the first axis).
        tuned: θ_i.
        weights: w_i, not negative; only their ratios matter.
        mask: share of the entries of each source, over the tensor, that is set to zero, in [0, 1).
        lambda_1: λ_1. Changes along the base's weights only turn a neuron's gain up or down.
        lambda_2: λ_2; by default 1 / (1 − σ), σ the largest over the sources of ‖τ_i − δ_i‖₁ / ‖τ_i‖₁.
        known: `thresholds` (N, 1), the smallest magnitude kept per source, and `masked` (N,), the L1 shares set to zero,
            where this is a chunk of a tensor.

    Returns:
        θ_0 + λ_1 φ(δ∥) + λ_2 φ(δ⊥); for a vector or a scalar, which is no row of weights, θ_0 + λ_2 φ(δ).

    Raises:
        MethodError: `mask` out of range or a negative weight.

    Source:
        Fang et al. 2025, To see a world in a spark of neuron (NeuroMerging), section 4.

    Conventions:
        The authors mask over the whole model; this function sees one tensor, and ranks over all of it, not over a row.
        They keep one entry more than the share says; here ⌊mask · size⌋ go, except those that tie with a kept one. A
        row of zeros has no direction: δ⊥ = δ; their code divides 0 by 0. Their code elects δ⊥ along its own singular
        vectors in each row instead of entry by entry, and its δ∥, multiplied by w_0 / ‖w_0‖ and not by w_0, is then
        set to zero (λ_1 = 0). A cancelled vote gives 0 here and in theirs the sign of most others. They have no
        weights: equal ones are the same.
    """
    require("neuromerging", mask=mask, lambda_1=lambda_1, lambda_2=lambda_2)
    require_weights("neuromerging", weights.tolist())
    tau = deltas(base, tuned)
    measures = _masks(mask=mask, lambda_2=lambda_2) if base.numel() else ()
    found = measured(measures, base, tuned, weights, mask=mask) if known is None else known
    delta = trimmed(tau, found["thresholds"][:, 0]) if measures else tau
    if lambda_2 is None:
        lambda_2 = float(1 / (1 - found["masked"].max())) if measures else 1.0
    if base.ndim < 2:
        return base + lambda_2 * elected_mean(delta, weights, "sum")
    along = torch.stack([_along(base, one) for one in delta])
    across = lambda_2 * elected_mean(delta - along, weights, "sum")
    return base + lambda_1 * elected_mean(along, weights, "sum") + across


def _along(base: Float[Tensor, "*S"], delta: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """(w_0·δ) w_0 / ‖w_0‖² for each row; 0 where w_0 is."""
    rows = as_rows(base)
    wide = rows.double()
    squared = row_sums(wide * wide)
    gain = row_sums(wide * as_rows(delta).double()) / torch.where(squared == 0, 1.0, squared)
    return (gain[:, None].to(base) * rows).reshape(base.shape)


def _kept_ranks(
    size: int,
    known: Known,  # noqa: ARG001
    n: int,
    *,
    mask: float,
    **_: Any,
) -> Int[Tensor, "N 1"]:
    return torch.full((n, 1), size - int(mask * size))


def _magnitude_sums(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],  # noqa: ARG001
    known: Known,
    **_: Any,
) -> Float[Tensor, "N 2"]:
    """‖τ_i − δ_i‖₁ and ‖τ_i‖₁."""
    tau = deltas(base, tuned).double()
    left = tau - trimmed(tau, known["thresholds"][:, 0])
    sums = [row_sums(one.abs().reshape(len(tau), -1)) for one in (left, tau)]
    return torch.stack(sums, dim=1)


def _shares_masked(total: Float[Tensor, "N 2"], *_: Any, **__: Any) -> Known:
    masked, whole = total.T
    return {"masked": masked / torch.where(whole == 0, 1.0, whole)}


_THRESHOLDS = Ranked("thresholds", magnitudes, _kept_ranks)
_MASKED = Sum(_magnitude_sums, _shares_masked)


def _masks(*, mask: float, lambda_2: float | None = None, **_: Any) -> tuple[Measure, ...]:
    if mask == 0:
        return ()
    return (_THRESHOLDS,) if lambda_2 is not None else (_THRESHOLDS, _MASKED)


MEASURES = {"neuromerging": _masks}
