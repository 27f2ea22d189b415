"""Closed-form least squares over Grams of task vectors (WUDI), or of these and layer inputs."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.methods.averages import deltas, shares, weighted_sum
from langmerge.methods.specs import require, require_weights
from langmerge.methods.statistics import checked_grams, shifted, shrunk, solved_by_gram

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


def gram(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    mix: float = 0.3,
    off_diagonal: float = 0.95,
    ridge: float = 0.1,
    statistics: Float[Tensor, "N d d"] | None = None,
) -> Float[Tensor, "*S"]:
    """The delta that changes least what every source does, on its own task vector's directions and on text.

    min over τ_m of Σ w_i tr((τ_m − τ_i) G_i (τ_m − τ_i)ᵀ), solved by
    τ_m = (Σ w_i τ_i G_i + L τ̄)(Σ w_i G_i + L I)⁻¹,  L = ridge × mean diagonal of Σ w_i G_i,  τ̄ = Σ w_i τ_i,
    G_i = (1 − mix) τ_iᵀ τ_i / ‖τ_i‖² + mix A_i / tr A_i

    Args:
        base: θ_0; a matrix is (out, in), as torch's linear layers store it.
        tuned: θ_i.
        weights: w_i, normalised to sum to one.
        mix: share of the Grams of text; 0 is `wudi` and reads no statistics, 1 is RegMean with Grams of trace one.
        off_diagonal: what off-diagonal entries of A_i are multiplied by.
        ridge: pulls towards the mean; above 0 and finite.
        statistics: A_i, Gram of the layer's inputs in source i; the identity where None.

    Returns:
        θ_0 + τ_m for matrices; vectors, scalars and everything else are the weighted mean.

    Raises:
        MethodError: a parameter outside its range, a ridge so small that the system is singular, a negative weight,
            weights that sum to zero, or A_i that hold NaN or a negative diagonal.

    Source:
        WUDI-Merging (Cheng et al. 2025, equation 9) and RegMean (Jin et al. 2023, equation 2) are its ends; both solve
        the same least squares with other Grams.

    Conventions:
        Both Grams have trace one, so `mix` has no unit. A source whose task vector is zero has no task-vector Gram, one
        whose layer never saw anything no other. Arithmetic is float64 inside.
    """
    require("gram", mix=mix, off_diagonal=off_diagonal, ridge=ridge)
    require_weights("gram", weights.tolist())
    if mix == 0.0:
        return wudi(base, tuned, weights, ridge=ridge)
    normal = shares(weights)
    mean = weighted_sum(normal, deltas(base, tuned))
    if base.ndim != 2 or base.numel() == 0:
        return base + mean
    if statistics is not None:
        checked_grams("gram", statistics)
    inputs = base.shape[1]
    total = torch.zeros(inputs, inputs, dtype=torch.float64, device=base.device)
    right = torch.zeros_like(base, dtype=torch.float64)
    for place, (weight, one) in enumerate(zip(normal.double(), tuned, strict=True)):
        tau = (one - base).double()
        own = torch.eye(inputs).to(total) if statistics is None else shrunk(statistics[place], off_diagonal)
        own = _of_trace(own, mix)
        if bool(tau.any()):
            own = own + _of_trace(own_gram(tau), 1.0 - mix)
        total = total + weight * own
        right = torch.addmm(right, weight * tau, own)
    pull = ridge * total.diagonal().mean()
    if float(pull.detach()) == 0.0:
        return base + mean
    solved = solved_by_gram("gram", right + pull * mean.double(), shifted(total, pull))
    return base + solved.to(base)


def _of_trace(gram: Float[Tensor, "d d"], trace: float) -> Float[Tensor, "d d"]:
    """The Gram scaled to this trace; as it is where its own is zero."""
    own = gram.trace()
    return gram * (trace / own) if float(own) != 0.0 else gram


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
            right = torch.addmm(right, shifted(share * own, weight * pull), tau)
        else:
            found = gram_panels(tau, tau)
            own = mirrored(found)
            share = weight / own.trace()
            panels = [total + share * panel for total, panel in zip(panels, found, strict=True)]
            right = torch.addmm(right, tau, shifted(share * own, weight * pull))
    return solved_by_gram("wudi", right, shifted(mirrored(panels), pull))


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
            shifted(weight * norm * blocks[i, :, i], weight * norm * pull)
            for i, ((weight, _), norm) in enumerate(zip(parts, norms, strict=True))
        ],
        1,
    )
    shares_of_columns = torch.stack([weight for weight, _ in parts]).repeat_interleave(out)
    system = shifted(blocks.reshape(n * out, n * out) * shares_of_columns, pull)
    factors = torch.linalg.solve(system, left, left=False).split(out, 1)
    total = torch.zeros_like(base, dtype=torch.float64)
    for factor, (_, one), norm in zip(factors, parts, norms, strict=True):
        total = torch.addmm(total, factor / norm, (one - base).double())
    return total
