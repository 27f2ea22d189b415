"""Closed-form least squares over task-vector Grams: WUDI."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods.averages import deltas, shares, weighted_sum


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
        MethodError: `ridge` is not positive and finite, a negative weight, or weights that sum to zero.

    Source:
        Cheng et al. 2025, Whoever started the interference should end it (WUDI-Merging), equation 9; solved here in
        closed form instead of by gradient steps. It is RegMean with task-vector Grams in place of activations'.

    Conventions:
        Grams are in × in, never rows × rows. Embeddings and heads are left to the mean by the engine. A source whose
        task vector is zero has no Gram and only takes part in the mean. The released code takes every w_i = 1 and 300
        steps of Adam from Σ τ_i, short of the minimum; this is the minimum, with the ridge. Arithmetic is float64
        inside: the Grams' small eigenvalues decide the answer.
    """
    if not 0 < ridge < math.inf:
        raise MethodError(f"wudi: ridge is {ridge}, it must be above 0 and finite")
    if bool((weights < 0).any()):
        raise MethodError(f"wudi: weights {weights.tolist()} include a negative one")
    normal = shares(weights)
    if base.ndim != 2 or base.numel() == 0:
        return base + weighted_sum(normal, deltas(base, tuned))
    tau = deltas(base, tuned).double()
    gram = torch.zeros(base.shape[1], base.shape[1], dtype=torch.float64, device=base.device)
    moment = torch.zeros_like(tau[0])
    for weight, one in zip(normal.double(), tau, strict=True):
        norm = (one * one).sum()
        if float(norm.detach()) == 0.0:
            continue
        own = one.T @ one / norm
        gram = gram + weight * own
        moment = moment + weight * (one @ own)
    mean = weighted_sum(normal.double(), tau)
    pull = ridge * gram.diagonal().mean()
    if float(pull.detach()) == 0.0:
        return base + mean.to(base)
    eye = torch.eye(base.shape[1], dtype=torch.float64, device=base.device)
    # Symmetric positive definite: τ_m S = R is solved as S τ_mᵀ = Rᵀ.
    merged: Tensor = torch.linalg.solve(gram + pull * eye, (moment + pull * mean).T).T
    return base + merged.to(base)
