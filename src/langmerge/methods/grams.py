"""Closed-form least squares over task-vector Grams: WUDI."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods.averages import deltas, shares, weighted_sum
from langmerge.methods.specs import require, require_weights

_PANEL = 256


def gram_panels(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "rows d"], onto: Sequence[Tensor] = ()
) -> list[Float[Tensor, "_ _"]]:
    """The lower triangle of a symmetric xᵀy in panels of columns, added to `onto`: half the work of the product."""
    panels = []
    for number, low in enumerate(range(0, x.shape[1], _PANEL)):
        left, right = x[:, low:].T, y[:, low : low + _PANEL]
        panels.append(torch.addmm(onto[number], left, right) if onto else left @ right)
    return panels


def mirrored(panels: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, "d d"]:
    """The symmetric matrix of which `gram_panels` gives the lower triangle."""
    size = panels[0].shape[0]
    full = panels[0].new_empty(size, size)
    for number, panel in enumerate(panels):
        low, high = number * _PANEL, number * _PANEL + panel.shape[1]
        full[low:, low:high] = panel
        full[low:high, high:] = panel[high - low :].T
    return full


def own_gram(x: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """xᵀx."""
    return mirrored(gram_panels(x, x))


def wudi(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    ridge: float = 0.1,
) -> Float[Tensor, "*S"]:
    """The delta that interferes least with every task vector, in closed form.

    min over τ_m of Σ w_i ‖(τ_m − τ_i) τ_iᵀ‖² / ‖τ_i‖², solved by
    τ_m = (Σ w_i τ_i G_i / n_i + L τ̄)(Σ w_i G_i / n_i + L I)⁻¹,
    G_i = τ_iᵀ τ_i (input side), n_i = ‖τ_i‖², τ̄ = Σ w_i τ_i, L = ridge × mean diagonal of Σ w_i G_i / n_i

    Args:
        base: θ_0; a matrix is (out, in), as torch's linear layers store it.
        tuned: θ_i.
        weights: w_i, normalised to sum to one.
        ridge: pulls towards the mean, not towards zero; above 0 and finite.

    Returns:
        θ_0 + τ_m for matrices; vectors, scalars and everything else are the weighted mean.

    Raises:
        MethodError: `ridge` is not positive and finite, or so small that the system is singular; a negative weight, or
            weights that sum to zero.

    Source:
        Cheng et al. 2025, Whoever started the interference should end it (WUDI-Merging), equation 9; solved here in
        closed form instead of by gradient steps. It is RegMean with task-vector Grams in place of activations'.

    Conventions:
        Embeddings and heads are left to the mean by the engine. A source whose task vector is zero has no Gram and only
        takes part in the mean. The released code takes every w_i = 1 and 300 steps of Adam from Σ τ_i, short of the
        minimum; this is the minimum, with the ridge. Arithmetic is float64 inside: the Grams' small eigenvalues decide
        the answer. Never rows × rows: the system is in × in, or N·out × N·out where that is smaller.
        Memory: about five float64 tensors of the size of one τ and five of the system's.
    """
    require("wudi", ridge=ridge)
    require_weights("wudi", weights.tolist())
    normal = shares(weights)
    if base.ndim != 2 or base.numel() == 0:
        return base + weighted_sum(normal, deltas(base, tuned))
    moved = [i for i, one in enumerate(tuned) if not torch.equal(one, base)]
    share = normal.double()[moved].sum()
    if float(share.detach()) == 0.0:
        return base + weighted_sum(normal, deltas(base, tuned))
    # The trace of every G_i / n_i is one.
    pull = ridge * share / base.shape[1]
    solved = _over_sources if len(moved) * base.shape[0] < base.shape[1] else _over_inputs
    return base + solved(base, [(normal[i].double(), tuned[i]) for i in moved], pull).to(base)


Part = tuple[Float[Tensor, ""], Float[Tensor, "out in"]]
"""w_i and θ_i of a source that moved."""


def _over_inputs(
    base: Float[Tensor, "out in"], parts: Sequence[Part], pull: Float[Tensor, ""]
) -> Float[Tensor, "out in"]:
    """τ_m = R (S + L I)⁻¹ with S = Σ w_i G_i / n_i and R = Σ w_i τ_i (G_i / n_i + L I)."""
    right = torch.zeros_like(base, dtype=torch.float64)
    panels = gram_panels(right[:1], right[:1])
    for weight, one in parts:
        tau = (one - base).double()
        if base.shape[0] < base.shape[1]:
            # τ (τᵀτ) = (ττᵀ) τ, and the trace is the same.
            own = own_gram(tau.T)
            share = weight / own.trace()
            panels = gram_panels(tau, share * tau, panels)
            right = torch.addmm(right, _shifted(share * own, weight * pull), tau)
        else:
            found = gram_panels(tau, tau)
            own = mirrored(found)
            share = weight / own.trace()
            panels = [total + share * panel for total, panel in zip(panels, found, strict=True)]
            right = torch.addmm(right, tau, _shifted(share * own, weight * pull))
    gram = _shifted(mirrored(panels), pull)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not int(failed):
        solution: Tensor = torch.cholesky_solve(right.T, factor).T
        return solution
    if bool(torch.isfinite(gram).all()):
        raise MethodError("wudi: the ridge is lost in the rounding of float64, take at least 1e-9")
    return torch.full_like(right, torch.nan)


def _shifted(matrix: Float[Tensor, "d d"], by: Float[Tensor, ""]) -> Float[Tensor, "d d"]:
    """The matrix, which must be a new one, with `by` added to its diagonal."""
    matrix.diagonal().add_(by)
    return matrix


def _over_sources(
    base: Float[Tensor, "out in"], parts: Sequence[Part], pull: Float[Tensor, ""]
) -> Float[Tensor, "out in"]:
    """The same by T (TᵀDT + L I)⁻¹ = (TTᵀD + L I)⁻¹ T, with T the τ_i / ‖τ_i‖ on top of each other and D their weights.

    R = E T with E = [w_i ‖τ_i‖ (G'_i + L I)], G'_i the blocks on the diagonal of TTᵀ. TTᵀD is not symmetric, so this is
    an LU; with roots of D it would be, but these have no derivative where a weight is zero.
    """
    n, out = len(parts), base.shape[0]
    norms = [torch.linalg.vector_norm((one - base).double()) for _, one in parts]
    blocks = torch.empty(n, out, n, out, dtype=torch.float64, device=base.device)
    for i, (_, one) in enumerate(parts):
        tau = (one - base).double() / norms[i]
        for j, (_, other) in enumerate(parts[: i + 1]):
            block = tau @ (other - base).double().T / norms[j]
            blocks[i, :, j], blocks[j, :, i] = block, block.T
    left = torch.cat(
        [
            _shifted(weight * norm * blocks[i, :, i], weight * norm * pull)
            for i, ((weight, _), norm) in enumerate(zip(parts, norms, strict=True))
        ],
        1,
    )
    shares_of_columns = torch.stack([weight for weight, _ in parts]).repeat_interleave(out)
    system = _shifted(blocks.reshape(n * out, n * out) * shares_of_columns, pull)
    factors = torch.linalg.solve(system, left, left=False).split(out, 1)
    total = torch.zeros_like(base, dtype=torch.float64)
    for factor, (_, one), norm in zip(factors, parts, norms, strict=True):
        total = torch.addmm(total, factor / norm, (one - base).double())
    return total
