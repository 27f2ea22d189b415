"""Methods on a sphere: slerp, NuSLERP, multi-slerp, the Karcher mean, and Model Stock, which knows experts by their angles.

Where the sources are taken as vectors of a whole tensor, the coefficients come from `mixing`, by their dot products.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.methods.averages import deltas, shares, weighted_sum
from langmerge.methods.measures import GRAM, Known, Measure, Sum, measured
from langmerge.methods.mixing import MIXINGS, bent, stock_ratio
from langmerge.methods.rows import along_last_axis, as_rows, row_sums
from langmerge.methods.specs import require, require_weights


def slerp(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    t: float | None = None,
    eps: float = 1e-4,
    about: str = "origin",
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Spherical interpolation between two sources, the tensor taken as one vector.

    θ = [sin((1−t)Ω) θ_1 + sin(tΩ) θ_2] / sin Ω,  Ω = arccos(θ_1·θ_2 / ‖θ_1‖‖θ_2‖);
    about the base with τ_i for θ_i, and θ_0 added

    Args:
        base: θ_0; used about the base only.
        tuned: θ_1 and θ_2: exactly two.
        weights: w_1, w_2.
        t: place between the first (0) and the second (1); by default w_2 / (w_1 + w_2).
        eps: up to 1 − |cos Ω| = eps, or for a zero vector, the result is the straight line (1−t)θ_1 + tθ_2.
        about: centre of the sphere, `origin` or `base`.
        known: `gram` (2, 2), the dot products about that centre, where this is a chunk of a tensor.

    Raises:
        MethodError: not two sources, `t` or `eps` out of range, or, without `t`, weights that sum to zero.

    Source:
        Shoemake 1985, Animating rotation with quaternion curves; as used by mergekit.

    Conventions:
        mergekit normalises to unit vectors for Ω alone and interpolates the vectors themselves; so do we. Its straight
        line begins at |cos Ω| = 0.9995, that is eps = 5e-4, and its two sources are the base and one other model. It
        gives a zero vector a right angle to the other.
    """
    require("slerp", t=t, eps=eps, about=about)
    require_weights("slerp", weights.tolist(), normalize=t is None)
    return _mixed("slerp", base, tuned, weights, known, about=about, t=t, eps=eps)


def multislerp(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    normalize: bool = True,
    eps: float = 1e-8,
    about: str = "origin",
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Barycentre on a sphere in one step: the mean direction, with the mean norm.

    θ = Σ w_i n_i · Σ w_i u_i / ‖Σ w_i u_i‖,  n_i = ‖θ_i‖, u_i = θ_i / n_i, the tensor taken as one vector;
    about the base with τ_i for θ_i, and θ_0 added

    Args:
        base: θ_0; used about the base only.
        tuned: θ_i.
        weights: w_i.
        normalize: divide them by their sum; without, they are used as they are.
        eps: the directions cancel up to ‖Σ w_i u_i‖ = eps; then the result is the straight line Σ w_i θ_i.
        about: centre of the sphere, `origin` or `base`.
        known: `gram` (N, N), the dot products about that centre, where this is a chunk of a tensor.

    Raises:
        MethodError: `eps` or `about` out of range, or `normalize` and the weights sum to zero.

    Source:
        Goddard 2025, Multi-SLERP (goddard.blog), as implemented by mergekit.

    Conventions:
        mergekit projects the u_i on the tangent space at their mean m, adds them up by weight and maps the sum back. That
        sum is Σ w_i u_i − (Σ w_i u_i·m) m = 0 for every input, because m is the direction of Σ w_i u_i: the step changes
        nothing, and is left out here. `karcher` repeats it with the exact logarithm. Directions that cancel are an error
        in mergekit for three sources or more, and a straight line for two; one source comes back whatever its weight.
    """
    require("multislerp", eps=eps, about=about)
    require_weights("multislerp", weights.tolist(), normalize=normalize)
    return _mixed("multislerp", base, tuned, weights, known, about=about, normalize=normalize, eps=eps)


def karcher(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    about: str = "origin",
    max_iter: int = 10,
    tol: float = 1e-5,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Karcher mean: the point of the sphere with the smallest sum of squared arcs to the sources, with the mean norm.

    m ← exp_m(Σ a_i log_m u_i), from the direction of Σ a_i u_i;  θ = m Σ a_i n_i,
    n_i = ‖θ_i‖, u_i = θ_i / n_i, a_i = w_i / Σ w_j, the tensor taken as one vector;
    about the base with τ_i for θ_i, and θ_0 added

    Args:
        base: θ_0; used about the base only.
        tuned: θ_i.
        weights: w_i, not negative.
        about: centre of the sphere, `origin` or `base`.
        max_iter: largest number of steps, at least 1.
        tol: a step shorter than this (radians) is the last. Where Σ a_i u_i is no longer than that, or a source is that
            near to the point opposite m, no mean is distinguished: the result is the straight line Σ a_i θ_i.
        known: `gram` (N, N), the dot products about that centre, where this is a chunk of a tensor.

    Raises:
        MethodError: a negative weight, weights that sum to zero, or a parameter out of range.

    Source:
        Karcher 1977, Riemannian center of mass and mollifier smoothing; on weights, mergekit's `karcher`.

    Conventions:
        mergekit has no weights (equal ones are the same), only the origin as a centre, leaves out tensors whose norm is
        below `tol` from the direction (here: a norm of 0), starts from the first source where the directions cancel,
        and steps by θ / sin θ even where that is 0 / 0. A zero vector counts with its norm in both.
    """
    require("karcher", about=about, max_iter=max_iter, tol=tol)
    require_weights("karcher", weights.tolist())
    return _mixed("karcher", base, tuned, weights, known, about=about, max_iter=max_iter, tol=tol)


def model_stock(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    filter_wise: bool = False,
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """The mean of the experts, drawn back to the base as far as their angle says that they differ by chance.

    θ = θ_0 + t Σ w_i τ_i / Σ w_i,  t = N cos φ / (1 + (N−1) cos φ),  cos φ the mean over the pairs of τ_i·τ_j / ‖τ_i‖‖τ_j‖

    Args:
        base: θ_0.
        tuned: θ_i; two or more.
        weights: w_i, not negative. They weigh the mean; t does not depend on them.
        filter_wise: an angle for every row (output unit) instead of one for the tensor; a vector is one row.
        known: `gram` (N, N), the dot products of the τ_i, where this is a chunk of a tensor and not `filter_wise`.

    Raises:
        MethodError: fewer than two sources, a negative weight, or weights that sum to zero.

    Source:
        Jang et al. 2024, Model Stock: all we need is just a few fine-tuned models, equation 6.

    Conventions:
        The paper's mean is uniform: equal weights. A τ_i of zero has cosine 0 with the others. Where cos φ < 0 the
        formula leaves [0, 1], down to −∞: t is 0 there, the base. mergekit uses the formula as it is outside
        |1 + (N−1) cos φ| < 1e-6, so that t = −198 for two experts at cos φ = −0.99; it also divides by ‖τ_i‖‖τ_j‖ only
        where that is above 1e-6, so that small deltas look orthogonal. Its filters are along the last axis.
    """
    require_weights("model_stock", weights.tolist())
    if not filter_wise:
        return _mixed("model_stock", base, tuned, weights, known, about="base")
    tau = deltas(base, tuned)
    ratio: Tensor = stock_ratio(_mean_cosines([as_rows(one).double() for one in tau]), len(tau), xp=torch)
    mean = as_rows(weighted_sum(shares(weights), tau))
    return base + (ratio[:, None].to(base) * mean).reshape(base.shape)


def _mean_cosines(sources: list[Tensor]) -> Float[Tensor, "rows"]:
    """Mean over the pairs of the cosine of each row, float64; 0 with a row of zeros."""
    norms = [row_sums(one * one).sqrt() for one in sources]
    total = torch.zeros_like(norms[0])
    for i, first in enumerate(sources):
        for j, second in enumerate(sources[:i]):
            lengths = norms[i] * norms[j]
            total = total + row_sums(first * second) / torch.where(lengths == 0, 1.0, lengths)
    return total / (len(sources) * (len(sources) - 1) / 2)


def nuslerp(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    t: float | None = None,
    row_wise: bool = False,
    flatten: bool = True,
    about: str = "origin",
    known: Known | None = None,
) -> Float[Tensor, "*S"]:
    """Spherical interpolation between two sources of a tensor as one vector, or of the vectors along an axis.

    x = [sin((1−t)Ω) x_1 + sin(tΩ) x_2] / sin Ω for each vector x of θ_1 and θ_2, Ω their angle;
    about the base with vectors of τ_i, and θ_0 added

    Args:
        base: θ_0; used about the base only.
        tuned: θ_1 and θ_2: exactly two.
        weights: w_1, w_2.
        t: place between the first (0) and the second (1); by default w_2 / (w_1 + w_2).
        row_wise: mergekit's word for vectors along the first axis, the columns of a matrix; without, they lie along the
            last, its rows.
        flatten: the tensor is one vector, and `row_wise` is not looked at.
        about: centre of the sphere, `origin` or `base`.
        known: where this is a chunk of a tensor: `gram` (2, 2), the dot products about that centre (`flatten`), or
            `columns` (3, columns), ‖x_1‖², x_1·x_2, ‖x_2‖² of each (`row_wise`).

    Raises:
        MethodError: not two sources, `t` or `about` out of range, or, without `t`, weights that sum to zero.

    Source:
        mergekit's `nuslerp`; Shoemake 1985 for the equation.

    Conventions:
        The result is straight where the sines vanish (sin²Ω below 1e-12) or a vector is zero; mergekit gives a zero
        vector a right angle to the other, and puts t at ½ where the weights sum to zero.
    """
    require("nuslerp", t=t, about=about)
    require_weights("nuslerp", weights.tolist(), normalize=t is None)
    if flatten:
        return _mixed("nuslerp", base, tuned, weights, known, about=about, t=t)
    first, second = _vectors(base, tuned, about)
    if row_wise:
        found = measured((_COLUMNS,), base, tuned, weights, about=about) if known is None else known
        squares, shape = found["columns"], _columns(base).shape
    else:
        squares, shape = (
            _squares(along_last_axis(first), along_last_axis(second), row_sums)[:, :, None],
            along_last_axis(base).shape,
        )
    at = shares(weights.double())[1] if t is None else t
    one, other = (
        coefficient.to(base) for coefficient in bent(squares[0], squares[1], squares[2], at, xp=torch)
    )
    return _placed(
        base, (one * first.reshape(shape) + other * second.reshape(shape)).reshape(base.shape), about
    )


def _columns(tensor: Float[Tensor, "*S"]) -> Float[Tensor, "rows columns"]:
    """(out, …) as (out, columns); a vector or a scalar as one column."""
    return tensor.reshape(-1, 1) if tensor.ndim < 2 else as_rows(tensor)


def _squares(first: Tensor, second: Tensor, added: Any) -> Float[Tensor, "3 vectors"]:
    """‖x_1‖², x_1·x_2 and ‖x_2‖² of vectors that `added` sums over, float64."""
    first, second = first.double(), second.double()
    return torch.stack([added(first * first), added(first * second), added(second * second)])


def _column_squares(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "2 *S"],
    weights: Float[Tensor, "2"],  # noqa: ARG001
    known: Known,  # noqa: ARG001
    *,
    about: str = "origin",
    **_: Any,
) -> Float[Tensor, "3 columns"]:
    first, second = (_columns(one) for one in _vectors(base, tuned, about))
    return _squares(first, second, lambda products: products.sum(0))


def _vectors(base: Tensor, tuned: Tensor, about: str) -> Tensor:
    return deltas(base, tuned) if about == "base" else tuned


def _placed(base: Tensor, vector: Tensor, about: str) -> Tensor:
    return base + vector if about == "base" else vector


def _mixed(
    name: str,
    base: Tensor,
    tuned: Tensor,
    weights: Tensor,
    known: Known | None,
    *,
    about: str,
    **parameters: Any,
) -> Tensor:
    """Σ c_i x_i with the coefficients that the method gives to a tensor as one vector."""
    found = measured((GRAM,), base, tuned, weights, about=about) if known is None else known
    coefficients = MIXINGS[name][1](found["gram"], weights, xp=torch, **parameters)
    return _placed(base, weighted_sum(coefficients.to(tuned), _vectors(base, tuned, about)), about)


_COLUMNS = Sum(_column_squares, lambda total, *_, **__: {"columns": total})


def _gram(**_: Any) -> tuple[Measure, ...]:
    return (GRAM,)


def _gram_of_tensors(*, filter_wise: bool = False, **_: Any) -> tuple[Measure, ...]:
    return () if filter_wise else (GRAM,)


def _gram_or_columns(*, flatten: bool = True, row_wise: bool = False, **_: Any) -> tuple[Measure, ...]:
    if flatten:
        return (GRAM,)
    return (_COLUMNS,) if row_wise else ()


MEASURES = {
    "karcher": _gram,
    "model_stock": _gram_of_tensors,
    "multislerp": _gram,
    "nuslerp": _gram_or_columns,
    "slerp": _gram,
}
