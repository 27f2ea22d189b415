"""How good a selector's scores are, where the truth is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from langmerge.errors import SelectionError
from langmerge.selection.select import rank_sources


@dataclass(frozen=True)
class Judgement:
    """One selector on one target.

    Attributes:
        target: the target.
        spearman: rank correlation of scores and accuracies; NaN where either is constant.
        overlap: share of the true best k among the chosen k.
        regret: best accuracy of all − best accuracy of the chosen k, in points.
        regret_of_first: the same for the first alone.
    """

    target: str
    spearman: float
    overlap: float
    regret: float
    regret_of_first: float


def judged(scores: Mapping[str, float], truth: Mapping[str, float], target: str, *, k: int = 5) -> Judgement:
    """Compare scores with accuracies on a target, its own expert left out.

    Args:
        scores: of the sources; a source without a score cannot be chosen.
        truth: accuracies in [0, 1], better from another split than the scores.
        target: the target.
        k: sources to choose.

    Raises:
        SelectionError: fewer than two sources with a score and an accuracy.
    """
    ranked = [source for source in rank_sources(scores, target) if source in truth]
    best = rank_sources(truth, target)
    if len(ranked) < 2:
        raise SelectionError(f"nothing to judge on {target}: fewer than two sources have a score")
    top = truth[best[0]]
    return Judgement(
        target,
        spearman([scores[source] for source in ranked], [truth[source] for source in ranked]),
        len(set(ranked[:k]) & set(best[:k])) / k,
        100 * (top - max(truth[source] for source in ranked[:k])),
        100 * (top - truth[ranked[0]]),
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks, ties at their mean rank; NaN where all are equal."""
    x, y = _ranks(a), _ranks(b)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Sequence[float]) -> Float64[np.ndarray, "n"]:
    _, place, counts = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)


@dataclass(frozen=True)
class Mean:
    """A mean over targets.

    Attributes:
        value: of the targets where it is defined.
        low: lower end of the 95 % interval by bootstrap over targets.
        high: upper end.
        least: the smallest mean with one target left out.
        most: the largest.
        targets: how many.
    """

    value: float
    low: float
    high: float
    least: float
    most: float
    targets: int


def over_targets(values: Sequence[float], *, samples: int = 10_000, seed: int = 0) -> Mean:
    """Mean, bootstrap interval and leave-one-target-out range; NaN are left out.

    Raises:
        SelectionError: nothing is left.
    """
    known = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
    if not known.size:
        raise SelectionError("no target to take a mean over")
    draws = np.random.default_rng(seed).integers(0, len(known), (samples, len(known)))
    low, high = np.percentile(known[draws].mean(axis=1), [2.5, 97.5])
    without = (known.sum() - known) / (len(known) - 1) if len(known) > 1 else known
    return Mean(
        float(known.mean()), float(low), float(high), float(without.min()), float(without.max()), len(known)
    )
