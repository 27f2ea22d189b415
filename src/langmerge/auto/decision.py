"""Which candidate: pure rules on what is believed of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from langmerge.auto.evidence import Belief, Evidence, belief
from langmerge.errors import InputError

MARGIN = 0.25
"""Points that a less simple candidate must be expected to bring beyond a simpler one."""


@dataclass(frozen=True)
class Judged:
    """A candidate, as far as it was looked at.

    Attributes:
        name: of the candidate.
        belief: its gain over the reference; None where nothing is known.
        rows: labelled rows that it was scored on.
        accuracy: on them, in [0, 1]; None without labels.
        difference: mean paired difference to the reference on them, in points.
        out: why it was given up before the end, if it was.
    """

    name: str
    belief: Belief | None
    rows: int = 0
    accuracy: float | None = None
    difference: float | None = None
    out: str | None = None


def judged(
    name: str, evidence: Evidence | None, right: np.ndarray | None, reference: np.ndarray | None
) -> Judged:
    """One candidate against the reference on the same labelled rows.

    Args:
        name: of the candidate.
        evidence: from elsewhere.
        right: which rows it predicts right, bool (n,); None without labels.
        reference: which rows the reference does.
    """
    if right is None or reference is None or not len(right):
        return Judged(name, belief(evidence, None))
    difference = 100.0 * (right.astype(float) - reference)
    return Judged(
        name, belief(evidence, difference), len(right), float(right.mean()), float(difference.mean())
    )


def simplest_best(found: Sequence[Judged]) -> Judged:
    """The simplest candidate beyond which none is expected to bring `MARGIN` points.

    Args:
        found: from simple to not so simple; the first is the reference, whose gain is 0 by definition.

    Raises:
        InputError: there is none.
    """
    if not found:
        raise InputError("there is no candidate to decide between")
    expected = [0.0 if not place else _mean(one) for place, one in enumerate(found)]
    best = max(expected)
    return next(one for one, value in zip(found, expected, strict=True) if value >= best - MARGIN)


def _mean(one: Judged) -> float:
    return float("-inf") if one.belief is None or one.out is not None else one.belief.mean


@dataclass(frozen=True)
class Rung:
    """A step of successive halving.

    Attributes:
        rows: labelled rows that were looked at.
        judged: the candidates then left, from simple to not so simple.
    """

    rows: int
    judged: tuple[Judged, ...]


def halved(
    names: Sequence[str],
    evidence: Mapping[str, Evidence],
    right: Callable[[str, int], np.ndarray[Any, Any]],
    rows: int,
) -> list[Rung]:
    """Score all on a quarter of the rows, the better half on half of them, what is left on all.

    Args:
        names: from simple to not so simple; the first is the reference, which stays.
        evidence: from elsewhere, by name.
        right: which of the first n rows a candidate predicts right.
        rows: labelled rows that there are.

    Returns:
        What was known after each step; the last one decides.
    """
    left, rungs = list(names), []
    for share in (4, 2, 1):
        count = max(1, rows // share)
        reference = right(names[0], count)
        found = [judged(name, evidence.get(name), right(name, count), reference) for name in left]
        rungs.append(Rung(count, tuple(found)))
        others = sorted(found[1:], key=lambda one: -_mean(one))
        kept = {one.name for one in others[: max(2, (len(others) + 1) // 2)]}
        left = [name for name in left if name == names[0] or name in kept]
    return rungs
