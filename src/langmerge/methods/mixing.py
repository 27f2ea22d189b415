"""Methods whose result lies in the span of the sources: their coefficients, from the sources' dot products alone.

Such a method needs one pass for the Gram matrix and one for the linear combination, however large the tensor. The
functions take the array library as `xp` (numpy, or torch where gradients in the weights are wanted) and load neither.
Each takes all of its method's parameters; what they mean stands in the method's docstring.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from langmerge.methods.specs import sees_of

Mixing = Callable[..., Any]
"""`(gram, weights, *, xp, **parameters)` → c (N,) float64; gram (N, N) float64 of the θ_i or, about the base, the τ_i.

The result is Σ c_i θ_i, or θ_0 + Σ c_i τ_i about the base."""

_COLINEAR = 1e-12
"""sin² of an angle below which a line replaces the arc: the two differ by less than that, and arccos is never asked for
a cosine that rounding has left outside its range."""


_ROUNDING = 1e-15
"""What rounding leaves of a squared norm that is 0, when it is computed from dot products of unit vectors."""


def directional_consensus_mixing(gram: Any, weights: Any, *, xp: Any, alpha: float = 1.0) -> Any:
    """c = α (w·Gram·1 / 1·Gram·1) 1 + (1−α) w, because Σ w_i (τ_i·d) d is a multiple of Σ τ_i; w where Σ τ_i = 0."""
    weights = _float64(weights, gram, xp)
    squared = gram.sum()
    if float(squared) <= 0.0:
        return weights
    along = (weights * gram.sum(1)).sum() / squared
    return alpha * along * xp.ones_like(weights) + (1 - alpha) * weights


def slerp_mixing(
    gram: Any, weights: Any, *, xp: Any, t: float | None = None, eps: float = 1e-4, **_: Any
) -> Any:
    """c = [sin((1−t)Ω), sin(tΩ)] / sin Ω, cos Ω from the Gram; [1−t, t] up to 1 − |cos Ω| = eps or for a zero vector."""
    cosine = _cosines(gram, xp)[0, 1]
    straight = (1 - abs(cosine) <= eps) | (gram.diagonal() == 0).any()
    return xp.stack(arc(cosine, _place(weights, gram, t, xp), straight, xp=xp))


def nuslerp_mixing(gram: Any, weights: Any, *, xp: Any, t: float | None = None, **_: Any) -> Any:
    """As slerp, but straight only where the sines vanish."""
    first, second = gram.diagonal()
    return xp.stack(bent(first, gram[0, 1], second, _place(weights, gram, t, xp), xp=xp))


def multislerp_mixing(
    gram: Any, weights: Any, *, xp: Any, normalize: bool = True, eps: float = 1e-8, **_: Any
) -> Any:
    """c_i = (w_i / n_i) Σ w_j n_j / ‖Σ w_j u_j‖ with n_i = ‖x_i‖ and u_i = x_i / n_i; w where Σ w_j u_j vanishes."""
    weights = _float64(weights, gram, xp)
    if normalize:
        weights = weights / weights.sum()
    norms = _norms(gram, xp)
    towards = weights / _nonzero(norms, xp)
    squared = _squared(gram, towards)
    if _number(squared) <= max(eps**2, _ROUNDING * _number(abs(weights).sum()) ** 2):
        return weights
    return towards * (weights * norms).sum() / xp.sqrt(squared)


def karcher_mixing(
    gram: Any, weights: Any, *, xp: Any, max_iter: int = 10, tol: float = 1e-5, **_: Any
) -> Any:
    """m ← exp_m(Σ a_i log_m u_i), with m as a combination of the x_i; w where there is no mean: the u_i cancel, or one
    lies opposite m.
    """
    weights = _float64(weights, gram, xp)
    weights = weights / weights.sum()
    norms = _norms(gram, xp)
    inverse = 1 / _nonzero(norms, xp)
    pull = weights * (norms != 0)
    mean = weights * inverse
    squared = _squared(gram, mean)
    if _number(squared) <= max(tol**2, _ROUNDING):
        return weights
    mean, pull = mean / xp.sqrt(squared), pull / pull.sum()
    for _step in range(max_iter):
        # A zero vector has no direction and no pull.
        cosines = xp.where(norms == 0, xp.ones_like(norms), (gram @ mean) * inverse)
        if _number(cosines.min()) <= -1 + tol**2 / 2:
            return weights
        pulls = pull * angle_over_sine(cosines, xp=xp)
        tangent = pulls * inverse - (pulls * cosines).sum() * mean
        squared = _squared(gram, tangent)
        if _number(squared) < tol**2:
            break
        length = xp.sqrt(squared)
        mean = xp.cos(length) * mean + xp.sin(length) / length * tangent
        mean = mean / xp.sqrt(_squared(gram, mean))
    return mean * (weights * norms).sum()


def model_stock_mixing(gram: Any, weights: Any, *, xp: Any, **_: Any) -> Any:
    """c_i = t w_i / Σ w_j with t = N cos φ / (1 + (N−1) cos φ), cos φ the mean cosine of the pairs; 0 where cos φ < 0."""
    weights = _float64(weights, gram, xp)
    n = len(gram)
    cosines = _cosines(gram, xp)
    return (
        stock_ratio((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)), n, xp=xp)
        * weights
        / weights.sum()
    )


MIXINGS: dict[str, tuple[str, Mixing]] = {
    "directional_consensus": ("base", directional_consensus_mixing),
    "karcher": ("about", karcher_mixing),
    "model_stock": ("base", model_stock_mixing),
    "multislerp": ("about", multislerp_mixing),
    "nuslerp": ("about", nuslerp_mixing),
    "slerp": ("about", slerp_mixing),
}
"""By method: the origin of its Gram (`base`, `origin`, or `about` for the parameter of that name), and the function."""


def mixing_of(name: str, parameters: Mapping[str, Any]) -> tuple[str, Mixing] | None:
    """How a method mixes with these parameters: about `base` or `origin`, and `(gram, weights, *, xp)` → c; None where
    its result does not lie in the span of the sources.

    >>> mixing_of("slerp", {"t": 0.5, "about": "origin"})[0]
    'origin'
    >>> mixing_of("model_stock", {"filter_wise": True}) is None
    True
    """
    if name not in MIXINGS or sees_of(name, parameters) != "entry":
        return None
    origin, mixing = MIXINGS[name]
    about = str(parameters.get("about", "origin")) if origin == "about" else origin
    return about, partial(mixing, **parameters)


def arc(cosine: Any, at: Any, straight: Any, *, xp: Any) -> tuple[Any, Any]:
    """Coefficients of two vectors for the point `at` (0 to 1) of their arc, or of their line where `straight`."""
    angle = xp.arccos(xp.where(straight, xp.zeros_like(cosine), cosine))
    sine = xp.sin(angle)
    first = xp.where(straight, 1 - at, xp.sin((1 - at) * angle) / sine)
    return first, xp.where(straight, at, xp.sin(at * angle) / sine)


def bent(first: Any, dot: Any, second: Any, at: Any, *, xp: Any) -> tuple[Any, Any]:
    """`arc` from ‖x_1‖², x_1·x_2 and ‖x_2‖², number by number; straight for parallel vectors or a zero one."""
    zero = (first == 0) | (second == 0)
    lengths = xp.sqrt(_nonzero(first, xp)) * xp.sqrt(_nonzero(second, xp))
    cosine = dot / lengths
    return arc(cosine, at, zero | (1 - cosine * cosine <= _COLINEAR), xp=xp)


def stock_ratio(cosine: Any, n: int, *, xp: Any) -> Any:
    """t = N cos φ / (1 + (N−1) cos φ), in [0, 1]; 0 where cos φ < 0."""
    shared = xp.where(cosine < 0, xp.zeros_like(cosine), cosine)
    return n * shared / (1 + (n - 1) * shared)


def angle_over_sine(cosine: Any, *, xp: Any) -> Any:
    """Ω / sin Ω for cos Ω above −1; by its series near 1, where arccos has no derivative."""
    left = 1 - cosine
    near = left < 1e-4
    far = xp.where(near, xp.zeros_like(cosine), cosine)
    series = 1 + left * (1 / 3 + left * (2 / 15 + left * (2 / 35)))
    return xp.where(near, series, xp.arccos(far) / xp.sqrt((1 - far) * (1 + far)))


def _float64(weights: Any, like: Any, xp: Any) -> Any:
    # Promotion keeps gradients and the device in torch, which asarray does not in every version.
    return weights + xp.zeros_like(like.diagonal())


def _place(weights: Any, gram: Any, t: float | None, xp: Any) -> Any:
    """Where between two sources: t, or w_2 / (w_1 + w_2)."""
    if t is not None:
        return t
    weights = _float64(weights, gram, xp)
    return weights[1] / (weights[0] + weights[1])


def _norms(gram: Any, xp: Any) -> Any:
    return xp.sqrt(gram.diagonal())


def _nonzero(norms: Any, xp: Any) -> Any:
    """`norms`, with 1 in place of 0."""
    return xp.where(norms == 0, xp.ones_like(norms), norms)


def _cosines(gram: Any, xp: Any) -> Any:
    """cos of every pair, (N, N); 0 for a zero vector."""
    norms = _nonzero(_norms(gram, xp), xp)
    return gram / norms[:, None] / norms[None, :]


def _squared(gram: Any, coefficients: Any) -> Any:
    """‖Σ c_i x_i‖²."""
    return (coefficients * (gram @ coefficients)).sum()


def _number(value: Any) -> float:
    return float(value.detach() if hasattr(value, "detach") else value)
