"""Methods on singular vectors of task matrices: TSV-Merge, Iso-C, Iso-CTS.

No decomposition is of more than the shorter side: singular vectors come from the eigenvectors of τᵀτ or ττᵀ, whichever
is smaller, in float64. A direction whose singular value is under a millionth of the largest counts as absent: below, a
Gram in float64 does not tell it from rounding. What is absent is left out, so zero and low-rank deltas are no special case.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.methods.averages import deltas, shares, weighted_sum
from langmerge.methods.grams import own_gram
from langmerge.methods.specs import require, require_weights

_ZERO = 1e-12
"""Share of a Gram's largest eigenvalue under which an eigenvalue counts as zero."""
_ROUNDING = 1e-26
"""The same as a share of the squared norm of what was subtracted to give the matrix."""


def tsv_m(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    rank_share: float | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "*S"]:
    """The leading singular vectors of every task matrix, made orthogonal to each other.

    τ_i ≈ U_i Σ_i V_iᵀ, the k largest singular values; U = [U_1 … U_N], V = [V_1 … V_N], Σ = diag(N w_i Σ_i);
    θ = θ_0 + s U⊥ Σ V⊥ᵀ with X⊥ = X (XᵀX)^(−1/2), the orthogonal matrix nearest to X

    Args:
        base: θ_0; a matrix is (out, in).
        tuned: θ_i.
        weights: w_i, normalised to sum to one; equal ones, of whatever size, are the paper's setting.
        rank_share: k as a share of the shorter side, in (0, 1]; None is 1/N. At least one vector is kept.
        scale: s.

    Returns:
        The merge for matrices; vectors, scalars and everything else are the weighted mean, without s.

    Raises:
        MethodError: `rank_share` outside (0, 1], or weights that sum to zero.

    Source:
        Gargiulo et al. 2025, Task Singular Vectors: reducing task interference in model merging (TSV-Merge).

    Conventions:
        Weights: the authors have none. Whitening counts what sources share once and not N times, so Σ takes N w_i:
        experts that agree give what they agree on, as a mean does; w_i alone would give an N-th of it. Experts that
        share nothing are summed, so the merge is longer than the mean: lower `scale` then.
        Rank: like the authors', 1/N of the shorter side cut off to a whole number; with more sources than that they
        keep nothing, here one vector each. Where X has dependent columns (equal sources, a share above 1/N) the authors
        take what their SVD completes U⊥ with; here it is the shortest, so equal sources give exactly what is kept of one.
        A source of weight zero takes part in the whitening. Equal singular values on both sides of the cut are cut
        arbitrarily, but always alike. Non-matrices are scaled by the authors too.
        Memory: about six float64 tensors of the size of one τ and six of shorter side², N · rank_share times that for a
        share above 1/N.
    """
    require("tsv_m", rank_share=rank_share)

    def rule(delta: Callable[[int], Tensor], normal: Tensor) -> Tensor:
        n, side = len(tuned), min(base.shape)
        kept = max(1, side // n if rank_share is None else int(rank_share * side))
        pairs = [directions(delta(i), kept) for i in range(n)]
        U, V = (polar(torch.cat(one, 1))[0] for one in zip(*pairs, strict=True))
        scaled, at = [], 0
        for i, (left, right) in enumerate(pairs):
            own = slice(at, at := at + left.shape[1])
            # Σ_i; as a matrix, because with equal singular values it need not be diagonal in this basis.
            sigma = left.T @ (delta(i) @ right)
            scaled.append(n * normal[i] * (U[:, own] @ sigma))
        return torch.cat(scaled, 1) @ V.T

    return _merged("tsv_m", rule, base, tuned, weights, scale)


def iso_c(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "*S"]:
    """The mean task matrix with all its singular values made equal.

    Σ w_i τ_i = U diag(σ) Vᵀ;  θ = θ_0 + s σ̄ U Vᵀ, σ̄ the mean of σ

    Args:
        base: θ_0; a matrix is (out, in).
        tuned: θ_i.
        weights: w_i, normalised to sum to one.
        scale: s; with equal weights, s = N is the paper's sum of task matrices.

    Returns:
        The merge for matrices; vectors, scalars and everything else are the weighted mean, without s.

    Raises:
        MethodError: weights that sum to zero.

    Source:
        Marczak et al. 2025, No Task Left Behind: isotropic model merging with common and task-specific subspaces (Iso-C).

    Conventions:
        The authors sum the task matrices and search their α on validation data, s = α N here; the authors of TSV-Merge
        take the mean in their copy. Directions without a singular value are left out of U Vᵀ and of σ̄, so that low-rank
        experts keep their nuclear norm; the authors average over all of the shorter side and fill up with whatever
        vectors their SVD returns. At full rank both are the same.
        Memory: about five float64 tensors of the size of one τ and four of shorter side².
    """

    def rule(delta: Callable[[int], Tensor], normal: Tensor) -> Tensor:
        total = _total(delta, normal)
        isometry, rank = polar(total)
        return isometry * ((isometry * total).sum() / max(rank, 1))

    return _merged("iso_c", rule, base, tuned, weights, scale)


def iso_cts(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    common_share: float = 0.8,
    scale: float = 1.0,
) -> Float[Tensor, "*S"]:
    """Iso-C whose least directions make room for directions of the single tasks.

    Σ w_i τ_i ≈ U_0 Σ_0 V_0ᵀ, the k largest singular values; (I − U_0 U_0ᵀ) w_i τ_i ≈ U_i Σ_i V_iᵀ, the n largest;
    U = [U_0 … U_N], V = [V_0 … V_N];  θ = θ_0 + s σ̄ U⊥ V⊥ᵀ, σ̄ the mean over Σ_0 … Σ_N, X⊥ = X (XᵀX)^(−1/2)

    Args:
        base: θ_0; a matrix is (out, in).
        tuned: θ_i.
        weights: w_i, normalised to sum to one. One of zero drops the source's own directions; any other keeps them.
        common_share: share of the shorter side r for k, in (0, 1]; n is (r − k) / N rounded, and k fills up to r.
        scale: s; with equal weights, s = N is the paper's sum of task matrices.

    Returns:
        The merge for matrices; vectors, scalars and everything else are the weighted mean, without s.

    Raises:
        MethodError: `common_share` outside (0, 1], or weights that sum to zero.

    Source:
        Marczak et al. 2025, No Task Left Behind: isotropic model merging with common and task-specific subspaces (Iso-CTS).

    Conventions:
        As in `iso_c`, which this is at `common_share` 1. The common space is taken off the output side only, as the
        authors do. Their rounding may leave a negative k for tiny matrices; here n is at most r / N. Directions that
        several sources have in common count once, as in `tsv_m`.
        Memory: about nine float64 tensors of the size of one τ and twelve of shorter side².
    """
    require("iso_cts", common_share=common_share)

    def rule(delta: Callable[[int], Tensor], normal: Tensor) -> Tensor:
        n, side = len(tuned), min(base.shape)
        own = min(round((side - int(common_share * side)) / n), side // n)
        total = _total(delta, normal)
        sizes = [
            float(normal[i].detach() * torch.linalg.vector_norm(delta(i).detach())) ** 2 for i in range(n)
        ]
        pairs = [directions(total, side - n * own, size=sum(sizes))]
        common = pairs[0][0]
        sigma = (common * (total @ pairs[0][1])).sum()
        for i in range(n if own else 0):
            tau = normal[i] * delta(i)
            rest = tau - common @ (common.T @ tau)
            pairs.append(directions(rest, own, size=sizes[i]))
            sigma = sigma + (pairs[-1][0] * (rest @ pairs[-1][1])).sum()
        U, V = (polar(torch.cat(one, 1))[0] for one in zip(*pairs, strict=True))
        return U @ V.T * (sigma / max(U.shape[1], 1))

    return _merged("iso_cts", rule, base, tuned, weights, scale)


def _merged(
    name: str,
    rule: Callable[[Callable[[int], Tensor], Tensor], Tensor],
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    scale: float,
) -> Float[Tensor, "*S"]:
    """θ_0 + s τ_m, with τ_m what `rule` makes of the τ_i (by number, float64, one at a time) and the shares."""
    require_weights(name, weights.tolist())
    normal = shares(weights)
    if base.ndim != 2 or base.numel() == 0:
        return base + weighted_sum(normal, deltas(base, tuned))
    # LAPACK stops at what is not finite; the methods' promise is that it shows in the result.
    if not all(bool(torch.isfinite(one - base).all()) for one in tuned):
        return torch.full_like(base, torch.nan)
    merged = rule(lambda i: (tuned[i] - base).double(), normal.double())
    return base + (scale * merged).to(base)


def _total(delta: Callable[[int], Tensor], normal: Float[Tensor, "N"]) -> Float[Tensor, "out in"]:
    """Σ w_i τ_i."""
    total = normal[0] * delta(0)
    for i in range(1, len(normal)):
        total = total + normal[i] * delta(i)
    return total


def directions(
    x: Float[Tensor, "out in"], count: int, *, size: float = 0.0
) -> tuple[Float[Tensor, "out k"], Float[Tensor, "in k"]]:
    """The leading singular vectors of x on both sides, at most `count` pairs; fewer where x has a lower rank.

    Args:
        x: a matrix.
        count: how many pairs.
        size: squared norm of the matrices whose sum or difference x is: what is left where they cancel is rounding, which
            has directions too.
    """
    if x.shape[0] < x.shape[1]:
        right, left = directions(x.T, count, size=size)
        return left, right
    vectors = _leading(own_gram(x), count, size)
    return polar(x @ vectors)[0], vectors


def polar(x: Float[Tensor, "rows columns"]) -> tuple[Float[Tensor, "rows columns"], int]:
    """X (XᵀX)^(−1/2), the partial isometry nearest to X (all its singular values are 1 or 0), and its rank."""
    if x.numel() == 0:
        return x, 0
    if x.shape[0] < x.shape[1]:
        isometry, rank = polar(x.T)
        return isometry.T, rank
    root, rank = _inverse_root(own_gram(x))
    return x @ root, rank


def _leading(gram: Float[Tensor, "d d"], count: int, size: float) -> Float[Tensor, "d k"]:
    """Eigenvectors of the largest eigenvalues, in falling order.

    The derivative turns the kept space against the rest and not within itself: whoever uses the vectors must not depend
    on the basis. So equal eigenvalues on one side of the cut do no harm, and across the cut they count as constant.
    """
    values, vectors = torch.linalg.eigh(gram.detach())
    floor = max(_ZERO * float(values[-1]), _ROUNDING * size)
    cut = len(values) - min(count, int((values > floor).sum()))
    rest: Tensor = vectors[:, :cut]
    top: Tensor = vectors[:, cut:].flip(1)
    if not gram.requires_grad:
        return top
    gap = values[cut:].flip(0) - values[:cut, None]
    turn = rest.T @ (gram - gram.detach()) @ top / torch.where(gap <= floor, torch.inf, gap)
    return top + rest @ turn


def _inverse_root(gram: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], int]:
    """G^(−1/2) on the range of G and 0 off it, and the rank of G.

    The derivative is by divided differences, f(λ, μ) = −1 / (√λ √μ (√λ + √μ)), which equal eigenvalues do not trouble;
    torch's own through the eigenvectors has 1 / (λ − μ).
    """
    values, vectors = torch.linalg.eigh(gram.detach())
    there = values > _ZERO * float(values[-1])
    roots = torch.where(there, values, torch.inf).rsqrt()
    found, rank = (vectors * roots) @ vectors.T, int(there.sum())
    if not gram.requires_grad:
        return found, rank
    row, column = roots[:, None], roots[None, :]
    sizes = torch.where(there, values, 1.0).sqrt()
    within = -row * column / (sizes[:, None] + sizes)
    slope = torch.where(there[:, None] & there, within, row**3 + column**3)
    change = vectors.T @ (gram - gram.detach()) @ vectors
    return found + vectors @ (slope * change) @ vectors.T, rank
