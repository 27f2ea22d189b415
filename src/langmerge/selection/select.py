"""Which sources, and how much of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from langmerge.coefficients import Coefficients
from langmerge.errors import SelectionError
from langmerge.selection.matrix import TransferMatrix

WEIGHTINGS = ("uniform", "proportional", "softmax")
SELECTORS = ("measured",)


@dataclass(frozen=True)
class Selection:
    """The sources chosen for a target, best first, with the score each was chosen by.

    Attributes:
        target: the locale that the merge is for.
        scores: source → score, best first; the target's own expert first in IncTar.
        coefficients: what the merge reads.
    """

    target: str
    scores: Mapping[str, float]
    coefficients: Coefficients

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources, best first."""
        return tuple(self.scores)


def rank_sources(scores: Mapping[str, float], target: str, *, include_target: bool = False) -> list[str]:
    """Sources from best to worst; the target's own expert first (IncTar) or left out (ExcTar).

    Args:
        scores: how well each source does on the target.
        target: the target.
        include_target: IncTar.

    Raises:
        SelectionError: IncTar, and the target has no expert.
    """
    others = sorted((s for s in scores if s != target), key=lambda s: (-scores[s], s))
    if not include_target:
        return others
    if target not in scores:
        raise SelectionError(
            f"{target!r} has no expert, so it cannot be included: leave --include-target out"
        )
    return [target, *others]


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
        if not temperature > 0:
            raise SelectionError(f"softmax temperature is {temperature}, it must be above 0")
        raw = np.exp((values - values.max()) / temperature)
    else:
        raise SelectionError(f"unknown weighting {how!r}: there are {', '.join(WEIGHTINGS)}")
    return [float(x) for x in raw / raw.sum()]


def select_sources(
    matrix: TransferMatrix,
    target: str,
    *,
    k: int | None = 5,
    include_target: bool = False,
    weights: str = "uniform",
    temperature: float = 0.1,
) -> Selection:
    """The k best sources for a target by measured transfer: rank first, then cut.

    Args:
        matrix: dev transfer matrix; the target's column is read.
        target: the target.
        k: number of sources, the target's own expert counted in IncTar; None takes all.
        include_target: IncTar: the target's expert and the best k − 1 others. Otherwise (ExcTar) it is excluded
            before anything is ranked or normalised.
        weights: see `source_weights`.
        temperature: of `softmax`.

    Raises:
        SelectionError: k below 1 or above what there is, or the target was not measured.
    """
    column = matrix.column(target)
    ranked = rank_sources(column, target, include_target=include_target)
    wanted = len(ranked) if k is None else k
    if not 1 <= wanted <= len(ranked):
        raise SelectionError(
            f"k is {wanted}, but {target} has {len(ranked)} {'sources with its own expert' if include_target else 'sources'}: "
            f"choose k from 1 to {len(ranked)}, or all"
        )
    chosen = {source: column[source] for source in ranked[:wanted]}
    numbers = source_weights(list(chosen.values()), weights, temperature=temperature)
    provenance = {
        "selector": "measured",
        "split": matrix.split,
        "metric": matrix.metric,
        "k": wanted,
        "mode": "IncTar" if include_target else "ExcTar",
        "weights": weights,
        "temperature": temperature if weights == "softmax" else None,
        "scores": chosen,
    }
    table = {"model": dict(zip(chosen, numbers, strict=True))}
    return Selection(target, chosen, Coefficients(target=target, values=table, provenance=provenance))


def check_selector(name: str) -> None:
    """Raise unless sources can be scored by `name`.

    Raises:
        SelectionError: there is no such selector.
    """
    if name not in SELECTORS:
        raise SelectionError(f"unknown selector {name!r}: there are {', '.join(SELECTORS)}")
