"""Choosing a set, not only ranking singles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from langmerge.errors import SelectionError
from langmerge.selection.selectors import probabilities

Votes = Mapping[str, Float64[np.ndarray, "n c"]]
"""source → probabilities on the same rows."""


@dataclass(frozen=True)
class Step:
    """One source more.

    Attributes:
        source: that was added.
        score: of the set with it.
    """

    source: str
    score: float


def votes(logits: Mapping[str, Float[np.ndarray, "n c"]]) -> dict[str, Float64[np.ndarray, "n c"]]:
    """Probabilities of every source; a soft vote is their mean."""
    return {source: probabilities(own) for source, own in logits.items()}


def soft_vote_accuracy(members: Votes, sources: Sequence[str], labels: Int64[np.ndarray, "n"]) -> float:
    """Accuracy of the mean of the sources' probabilities: a cheap stand-in for their merge."""
    total = sum((members[source] for source in sources), np.zeros_like(members[sources[0]]))
    return float((total.argmax(axis=1) == labels).mean())


def greedy(
    members: Votes, labels: Int64[np.ndarray, "n"], *, k: int | None, start: Sequence[str] = ()
) -> list[Step]:
    """Forward selection by the soft vote's accuracy: one source after the other, each the one that helps most.

    Args:
        members: of every source that may be chosen; of those in `start` too.
        labels: of the rows (the target's dev labels).
        k: how many; None stops before the first one that does not help.
        start: already in (the target's own expert, in IncTar).

    Returns:
        The steps, `start` first. Among equals the source with the smaller cross-entropy is added, then the first by name.

    Raises:
        SelectionError: k below 1 or above what there is.
    """
    _check_k(k, len(members))
    rows = np.arange(len(labels))
    total = sum((members[source] for source in start), np.zeros((len(labels), _classes(members))))
    steps = []
    for place, source in enumerate(start, 1):
        steps.append(Step(source, soft_vote_accuracy(members, start[:place], labels)))
    while len(steps) < (len(members) if k is None else k):
        tried = []
        for source in sorted(set(members) - {step.source for step in steps}):
            mixed = (total + members[source]) / (len(steps) + 1)
            accuracy = float((mixed.argmax(axis=1) == labels).mean())
            loss = float(-np.log(np.maximum(mixed[rows, labels], 1e-300)).mean())
            tried.append((-accuracy, loss, source))
        if not tried:
            break
        best = min(tried)
        if k is None and steps and -best[0] <= steps[-1].score:
            break
        total = total + members[best[2]]
        steps.append(Step(best[2], -best[0]))
    return steps


def _classes(members: Votes) -> int:
    return int(next(iter(members.values())).shape[1])


def _check_k(k: int | None, available: int) -> None:
    if available == 0 or (k is not None and not 1 <= k <= available):
        raise SelectionError(
            f"k is {k}, but there are {available} sources: choose from 1 to {available}, or auto"
        )


def diverse(
    scores: Mapping[str, float],
    redundancy: Callable[[str, str], float],
    *,
    k: int,
    trade: float = 0.5,
    start: Sequence[str] = (),
) -> list[Step]:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): good, and unlike what is chosen already.

    Args:
        scores: of every source.
        redundancy: of two sources, in [0, 1]: their agreement, or how alike their languages are.
        k: how many.
        trade: λ in [0, 1]: 1 looks at scores alone, 0 at redundancy alone. Scores are scaled to [0, 1] first.
        start: already in.

    Raises:
        SelectionError: k or λ out of range, or a redundancy that is not known.
    """
    _check_k(k, len(scores))
    if not 0 <= trade <= 1:
        raise SelectionError(
            f"the trade between score and redundancy is {trade}, it must lie between 0 and 1"
        )
    low, high = min(scores.values()), max(scores.values())
    scaled = {s: (v - low) / (high - low) if high > low else 1.0 for s, v in scores.items()}
    steps = [Step(source, scaled[source]) for source in start]
    while len(steps) < k:
        chosen = [step.source for step in steps]
        values = {
            s: trade * scaled[s] - (1 - trade) * max((redundancy(s, other) for other in chosen), default=0.0)
            for s in scores
            if s not in chosen
        }
        if unknown := [s for s, value in values.items() if np.isnan(value)]:
            raise SelectionError(f"how alike {unknown[0]} is to the chosen sources is not known")
        best = min(values, key=lambda s: (-values[s], s))
        steps.append(Step(best, values[best]))
    return steps


def best_prefix(accuracies: Sequence[Float64[np.ndarray, "k"]]) -> int:
    """How many of a ranking to take: the fewest whose mean accuracy is within one standard error of the best.

    Args:
        accuracies: for each case (a locale), the soft vote's accuracy of the first 1, 2, … sources of its ranking, or
            for a single case its rows' correctness: shape (cases or rows, k).

    Returns:
        From 1 to k.
    """
    table = np.stack(accuracies).astype(np.float64)
    means = table.mean(axis=0)
    best = int(means.argmax())
    # Paired: what all cases have in common is no error of the difference.
    gaps = table[:, [best]] - table
    error = gaps.std(axis=0, ddof=1) / np.sqrt(len(table)) if len(table) > 1 else np.zeros(len(means))
    return 1 + int((gaps.mean(axis=0) <= error).argmax())
