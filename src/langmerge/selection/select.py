"""Which sources, and how much of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from langmerge.coefficients import Coefficients
from langmerge.errors import SelectionError
from langmerge.selection.matrix import TransferMatrix
from langmerge.selection.selectors import measured
from langmerge.selection.similarity import SimilarityMatrix
from langmerge.selection.weights import sinkhorn, source_weights

SELECTORS = (
    "measured", "typology", "strength", "composite", "agreement", "representation", "delta", "manual",
)  # fmt: skip
"""What sources can be scored by."""

FROM_MATRIX = ("strength", "composite")
"""Selectors that look at other locales' columns of the dev transfer matrix."""

TEMPERATURES = {"strength": 0.02, "composite": 1.0}
"""Where the scores are no accuracies or cosines in [0, 1], for which 0.1 is usual: excess accuracy, and z."""


@dataclass(frozen=True)
class Selection:
    """The sources chosen for a target, best first, with the score each was chosen by.

    Attributes:
        target: the locale that the merge is for.
        scores: source → score, best first; the target's own expert first in IncTar.
        coefficients: what the merge reads.
        left_out: the sources that could not be scored, and why.
    """

    target: str
    scores: Mapping[str, float]
    coefficients: Coefficients
    left_out: Mapping[str, str] = field(default_factory=dict)

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


def select_sources(
    matrix: TransferMatrix | SimilarityMatrix,
    target: str,
    *,
    k: int | None = 5,
    include_target: bool = False,
    weights: str = "uniform",
    temperature: float | None = None,
    own: float | None = None,
) -> Selection:
    """The k best sources for a target: rank first, then cut.

    Args:
        matrix: scores of any selector, or a dev transfer matrix; the target's column is read.
        target: the target.
        k: number of sources, the target's own expert counted in IncTar; None takes all.
        include_target: IncTar: the target's expert and the best k − 1 others. Otherwise (ExcTar) it is excluded
            before anything is ranked or normalised.
        weights: see `source_weights` and `sinkhorn`.
        temperature: of `softmax` and `sinkhorn`; that of the selector's unit by default.
        own: see `weighted`.

    Raises:
        SelectionError: k below 1 or above what there is, or the target has no scores.
    """
    scored = measured(matrix) if isinstance(matrix, TransferMatrix) else matrix
    # A transfer matrix that lacks a cell of the column says so: a source must not drop out of it unseen.
    column = matrix.column(target)
    ranked = rank_sources(column, target, include_target=include_target)
    wanted = len(ranked) if k is None else k
    if not 1 <= wanted <= len(ranked):
        raise SelectionError(
            f"k is {wanted}, but {target} has {len(ranked)} {'sources with its own expert' if include_target else 'sources'}: "
            f"choose k from 1 to {len(ranked)}, or all"
        )
    chosen = {source: column[source] for source in ranked[:wanted]}
    return weighted(
        scored,
        target,
        chosen,
        weights=weights,
        temperature=temperature,
        include_target=include_target,
        own=own,
    )


def weighted(
    matrix: SimilarityMatrix,
    target: str,
    chosen: Mapping[str, float],
    *,
    weights: str,
    temperature: float | None = None,
    include_target: bool = False,
    joint: str | None = None,
    own: float | None = None,
) -> Selection:
    """A selection out of chosen sources: their coefficients, and where these come from.

    Args:
        matrix: whose scores they are.
        target: the target.
        chosen: source → score, best first.
        weights: see `source_weights` and `sinkhorn`.
        temperature: of `softmax` and `sinkhorn`.
        include_target: IncTar.
        joint: how the set was chosen, if not by rank.
        own: IncTar: the share of the target's own expert, in [0, 1]; `weights` share out the rest.

    Raises:
        SelectionError: `own` is out of its range.
    """
    heat = TEMPERATURES.get(matrix.by, 0.1) if temperature is None else temperature
    if weights == "sinkhorn":
        numbers = _balanced(matrix, target, list(chosen), heat, include_target=include_target)
    else:
        numbers = source_weights(list(chosen.values()), weights, temperature=heat)
    if own is not None and include_target:
        numbers = _with_own(numbers, list(chosen).index(target), own)
    provenance = {
        **matrix.provenance,
        "selector": matrix.by,
        "k": len(chosen),
        "mode": "IncTar" if include_target else "ExcTar",
        "weights": weights,
        "temperature": heat if weights in ("softmax", "sinkhorn") else None,
        "scores": dict(chosen),
    }
    if joint is not None:
        provenance["joint"] = joint
    if own is not None and include_target:
        provenance["own"] = own
    table = {"model": dict(zip(chosen, numbers, strict=True))}
    return Selection(
        target,
        dict(chosen),
        Coefficients(target=target, values=table, provenance=provenance),
        matrix.unknown(target),
    )


def _with_own(numbers: list[float], place: int, share: float) -> list[float]:
    """Numbers that sum to one with the one at a place set, the others in their proportions."""
    if not 0 <= share <= 1:
        raise SelectionError(f"the own share is {share}: it lies between 0 and 1")
    rest = sum(numbers) - numbers[place]
    if rest <= 0:
        # Nobody to give the rest to.
        return [1.0 if one == place else 0.0 for one in range(len(numbers))]
    return [share if one == place else number * (1 - share) / rest for one, number in enumerate(numbers)]


def _balanced(
    matrix: SimilarityMatrix, target: str, chosen: list[str], temperature: float, *, include_target: bool
) -> list[float]:
    """The target's column of the balanced matrix of all targets, cut to the chosen sources and made to sum to one."""
    values = matrix.values.copy()
    for row, source in enumerate(matrix.sources):
        for column, other in enumerate(matrix.targets):
            # In IncTar the target takes part for itself; for the others their own experts never do.
            if source == other and not (include_target and other == target):
                values[row, column] = np.nan
    known = ~np.isnan(values)
    rows, columns = known.any(axis=1), known.any(axis=0)
    if not columns[matrix.targets.index(target)]:
        raise SelectionError(f"sinkhorn weights for {target}: no source but its own expert has a score")
    shares = np.zeros(values.shape)
    shares[np.ix_(rows, columns)] = sinkhorn(values[np.ix_(rows, columns)], temperature=temperature)
    own = shares[[matrix.sources.index(source) for source in chosen], matrix.targets.index(target)]
    if not own.sum() > 0:
        raise SelectionError(
            f"sinkhorn gives the chosen sources of {target} no weight: raise the temperature"
        )
    return [float(x) for x in own / own.sum()]


def check_selector(name: str) -> None:
    """Raise unless sources can be scored by `name`.

    Raises:
        SelectionError: there is no such selector.
    """
    if name not in SELECTORS:
        raise SelectionError(f"unknown selector {name!r}: there are {', '.join(SELECTORS)}")
