"""Greedy soup (Wortsman et al. 2022): the uniform average of as many sources as help on dev."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from langmerge.coefficients import Coefficients
from langmerge.errors import SelectionError
from langmerge.progress import Progress, silent

Score = Callable[[Coefficients], float]
"""How good a merge with these coefficients is; higher is better."""


def greedy_soup(
    accuracies: Mapping[str, float], score: Score, *, target: str | None = None, progress: Progress = silent
) -> Coefficients:
    """Add sources from the best to the worst, each one if the average with it scores at least as well.

    Conventions: as in the paper's Recipe 1, an equal score adds the source (≥), so the soup is the larger one of two
    that are as good. Sources of the same accuracy are tried in the order of their names. A source that was left out is
    not tried again. A score that is NaN never adds.

    Args:
        accuracies: of each source alone on dev: the order.
        score: of the uniform average of some sources; the soup starts at that of the best source alone.
        target: the locale; only recorded.
        progress: told of every score.

    Returns:
        The soup's sources with weight 1/N each; every decision in the provenance.

    Raises:
        SelectionError: no sources, an accuracy that is no number, or the best source alone has no score.
    """
    if not accuracies:
        raise SelectionError("a soup needs sources: none were given")
    if broken := [source for source, value in accuracies.items() if math.isnan(value)]:
        raise SelectionError(f"the accuracy of {broken[0]} is not known: measure it before the soup is made")
    order = sorted(accuracies, key=lambda source: (-accuracies[source], source))
    soup: list[str] = []
    best = -math.inf
    trace: list[dict[str, Any]] = []
    with progress("greedy soup", len(order)) as advance:
        for source in order:
            found = score(Coefficients.uniform([*soup, source], target=target))
            if not soup and math.isnan(found):
                raise SelectionError(
                    f"the best source alone, {source}, has no score (NaN): a soup cannot start from it"
                )
            added = found >= best
            trace.append(
                {
                    "source": source,
                    "accuracy": accuracies[source],
                    "score": None if math.isnan(found) else found,
                    "before": best if soup else None,
                    "added": added,
                }
            )
            if added:
                soup, best = [*soup, source], found
            advance(1)
    provenance = {"learned": "soup", "score": best, "tried": len(order), "trace": trace}
    return Coefficients.uniform(soup, target=target, provenance=provenance)
