"""Coefficients out of scores."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from langmerge.errors import SelectionError

WEIGHTINGS = ("uniform", "proportional", "softmax", "sinkhorn")

_ROUNDS = 1000
_BALANCED = 1e-9


def source_weights(scores: Sequence[float], how: str = "uniform", *, temperature: float = 0.1) -> list[float]:
    """Weights that sum to one.

    Args:
        scores: of the chosen sources.
        how: `uniform` 1/N; `proportional` s_i / Σ s_j; `softmax` exp(s_i / T) / Σ exp(s_j / T).
        temperature: T > 0, in units of the scores (accuracy in [0, 1]).

    Raises:
        SelectionError: another `how`, T not positive, or proportional weights of scores that are not all positive.
    """
    values = np.asarray(scores, dtype=np.float64)
    if how == "uniform":
        raw = np.ones_like(values)
    elif how == "proportional":
        if (values < 0).any() or values.sum() <= 0:
            raise SelectionError(
                f"proportional weights need scores that are not negative and not all zero, got {list(scores)}"
            )
        raw = values
    elif how == "softmax":
        _check_temperature(temperature)
        raw = np.exp((values - values.max()) / temperature)
    elif how == "sinkhorn":
        raise SelectionError(
            "sinkhorn weights look at all targets at once: give the matrix to select_sources"
        )
    else:
        raise SelectionError(f"unknown weighting {how!r}: there are {', '.join(WEIGHTINGS)}")
    return [float(x) for x in raw / raw.sum()]


def sinkhorn(values: Float64[np.ndarray, "s t"], *, temperature: float = 0.1) -> Float64[np.ndarray, "s t"]:
    """exp(M / T) with rows and columns normalised in turn until every column sums to one and all rows to the same.

    A source that is good for everybody is shared among its targets, so each target keeps what is its own. An entry that
    is NaN takes no part: the diagonal (a target's own expert) must be, or hard targets collapse onto themselves.

    Args:
        values: scores of sources (rows) for targets (columns), in the units of `temperature`.
        temperature: T > 0; towards 0 the best assignment is left: a source that is best for two targets
            serves one of them.

    Returns:
        Columns that sum to one, 0 where the value was NaN. Where the pattern of NaN allows no balance, rows are as close
        to balance as `_ROUNDS` rounds bring them; columns are exact.

    Raises:
        SelectionError: T not positive, or a row or column with nothing in it.
    """
    _check_temperature(temperature)
    known = ~np.isnan(values)
    if not known.any(axis=0).all() or not known.any(axis=1).all():
        raise SelectionError("sinkhorn weights need a score in every row and column")
    # In logarithms: at small temperatures everything but the best would underflow.
    logs = np.where(known, values / temperature, -np.inf)
    share = np.log(values.shape[1] / values.shape[0])
    for _ in range(_ROUNDS):
        logs = logs - _log_sum(logs, axis=1) + share
        step = _log_sum(logs, axis=0)
        logs = logs - step
        if np.abs(step).max() < _BALANCED:
            break
    return np.asarray(np.exp(logs))


def _log_sum(logs: Float64[np.ndarray, "s t"], axis: int) -> Float64[np.ndarray, "#s #t"]:
    top = logs.max(axis=axis, keepdims=True)
    return np.asarray(top + np.log(np.exp(logs - top).sum(axis=axis, keepdims=True)))


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < np.inf:
        raise SelectionError(f"temperature is {temperature}, it must be above 0")
