"""Methods that read what was measured of every source on text: its diagonal Fisher, or the Grams of its layers' inputs."""

import torch
from jaxtyping import Float
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods.averages import shares, weighted_sum
from langmerge.methods.specs import require, require_weights


def fisher(
    base: Float[Tensor, "*S"],  # noqa: ARG001
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    floor: float = 1e-6,
    statistics: Float[Tensor, "N *S"] | None = None,
) -> Float[Tensor, "*S"]:
    """Average in which every entry of a source weighs as much as the source's predictions depend on it.

    θ = Σ w_i F_i θ_i / Σ w_i F_i, entry by entry

    Args:
        base: θ_0; not used, here so that every method is called alike.
        tuned: θ_i.
        weights: w_i.
        floor: F_i is no smaller than this share of the largest F_j of the entry, 0 to 1; 1 is the weighted mean.
        statistics: F_i, the diagonal Fisher of source i; ones where None.

    Raises:
        MethodError: `floor` outside [0, 1], a negative weight, weights that sum to zero, or F_i that hold NaN, infinity
            or a negative number.

    Source:
        Matena & Raffel 2022, Merging models with Fisher-weighted averaging, equation 3.

    Conventions:
        Where no source of weight above zero has an F_i above zero (rows of pieces that the text never used), the weighted
        mean. The authors' code adds 1e-6 to every F_i, and may divide each F_i by its norm over the model; here the
        floor has no unit, and w_i is where a source as a whole is scaled.
    """
    require("fisher", floor=floor)
    require_weights("fisher", weights.tolist())
    normal = shares(weights)
    mean = weighted_sum(normal, tuned)
    if statistics is None:
        return mean
    if not bool(torch.isfinite(statistics).all()) or bool((statistics < 0).any()):
        raise MethodError(
            "fisher: the statistics hold NaN, infinity or a negative number: compute them again"
        )
    found = statistics.to(tuned)
    # Relative to the largest, in which small numbers cannot underflow: 1e-30 squared is nothing in float32.
    most = found.amax(0) if len(found) else found.sum(0)
    relative = (found / torch.where(most > 0, most, 1.0)).clamp(min=floor)
    total, above = torch.zeros_like(tuned[0]), torch.zeros_like(tuned[0])
    for weight, own, one in zip(normal, relative, tuned, strict=True):
        total = total + weight * own
        above = above + weight * own * one
    return torch.where(total > 0, above / torch.where(total > 0, total, 1.0), mean)


def regmean(
    base: Float[Tensor, "*S"],  # noqa: ARG001
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],
    *,
    off_diagonal: float = 0.95,
    ridge: float = 1e-4,
    statistics: Float[Tensor, "N d d"] | None = None,
) -> Float[Tensor, "*S"]:
    """The linear layer whose outputs are nearest to every source's own outputs, on the inputs that each source saw.

    min over W of Σ w_i ‖X_i Wᵀ − X_i W_iᵀ‖² / n_i, solved by
    W = (Σ w_i W_i G_i + L W̄)(Σ w_i G_i + L I)⁻¹,  G_i = X_iᵀ X_i / n_i,  L = ridge × mean diagonal of Σ w_i G_i,  W̄ = Σ w_i W_i

    Args:
        base: θ_0; not used, here so that every method is called alike.
        tuned: W_i (out, in), as torch's linear layers store it.
        weights: w_i, normalised to sum to one.
        off_diagonal: what off-diagonal entries of G_i are multiplied by, 0 to 1.
        ridge: pulls towards the mean where the text says little; above 0 and finite.
        statistics: G_i (in, in), Gram of the layer's inputs in source i; the identity where None.

    Returns:
        W for matrices; vectors, scalars and everything else are the weighted mean.

    Raises:
        MethodError: a parameter outside its range, a ridge so small that the system is singular, a negative weight,
            weights that sum to zero, or G_i that hold NaN or a negative diagonal.

    Source:
        Jin et al. 2023, Dataless knowledge fusion by merging weights of language models (RegMean), equation 2. With
        Grams that `langmerge learn gram --plus` has measured it is RegMean++ (Nguyen et al. 2025).

    Conventions:
        G_i is a mean over the inputs (tokens that are no padding), so that the weights alone say how much a source
        counts; the paper's sums are w_i in proportion to n_i. The paper has no ridge. Arithmetic is float64 inside.
    """
    require("regmean", off_diagonal=off_diagonal, ridge=ridge)
    require_weights("regmean", weights.tolist())
    normal = shares(weights)
    if tuned.ndim != 3 or tuned.numel() == 0 or statistics is None:
        return weighted_sum(normal, tuned)
    checked_grams("regmean", statistics)
    inputs = tuned.shape[2]
    mean = torch.zeros_like(tuned[0], dtype=torch.float64)
    for weight, one in zip(normal.double(), tuned, strict=True):
        mean = mean + weight * one.double()
    total = torch.zeros(inputs, inputs, dtype=torch.float64, device=tuned.device)
    right = torch.zeros_like(mean)
    for weight, one, own in zip(normal.double(), tuned, statistics, strict=True):
        gram = weight * shrunk(own, off_diagonal)
        total = total + gram
        # About the mean, to which the ridge pulls: where sources agree, W is theirs to the last bit.
        right = torch.addmm(right, one.double() - mean, gram)
    pull = ridge * total.diagonal().mean()
    if float(pull.detach()) == 0.0:
        return mean.to(tuned)
    return (mean + solved_by_gram("regmean", right, shifted(total, pull))).to(tuned)


def checked_grams(method: str, grams: Float[Tensor, "N d d"]) -> None:
    """Refuse what no X can have as XᵀX.

    Raises:
        MethodError: NaN, infinity or a negative diagonal.
    """
    diagonals = grams.diagonal(dim1=1, dim2=2)
    if not bool(torch.isfinite(grams).all()) or bool((diagonals < 0).any()):
        raise MethodError(
            f"{method}: the statistics hold NaN, infinity or a negative diagonal: compute them again"
        )


def shrunk(gram: Float[Tensor, "d d"], off_diagonal: float) -> Float[Tensor, "d d"]:
    """A new float64 matrix with the off-diagonal entries multiplied."""
    found = gram.double() * off_diagonal
    found.diagonal().copy_(gram.diagonal())
    return found


def shifted(matrix: Float[Tensor, "d d"], by: Float[Tensor, ""]) -> Float[Tensor, "d d"]:
    """The matrix, which must be a new one, with `by` added to its diagonal."""
    matrix.diagonal().add_(by)
    return matrix


def solved_by_gram(
    method: str, right: Float[Tensor, "out d"], gram: Float[Tensor, "d d"]
) -> Float[Tensor, "out d"]:
    """right · gram⁻¹ for a positive definite matrix in float64; NaN where that holds no finite numbers.

    Raises:
        MethodError: it is singular.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not int(failed):
        solution: Tensor = torch.cholesky_solve(right.T, factor).T
        return solution
    if bool(torch.isfinite(gram).all()):
        raise MethodError(
            f"{method}: the ridge is lost in the rounding of float64, take at least 1e-9"
            if method == "wudi"
            else f"{method}: the ridge is lost in rounding: take a larger one"
        )
    return torch.full_like(right, torch.nan)
