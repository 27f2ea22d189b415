"""One choice of sources from a pool: the selector, the set, the number; and what the other selectors would have said."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from langmerge.errors import LangmergeError, SelectionError
from langmerge.results import Logits
from langmerge.selection import (
    SELECTORS,
    Selection,
    SimilarityMatrix,
    best_prefix,
    diverse,
    greedy,
    manual,
    rank_sources,
    select_sources,
    votes,
    weighted,
)
from langmerge.selection.judging import spearman
from langmerge.similarities import PoolSelectors

JOINT = ("rank", "greedy", "diverse")

MOST = 10
"""Sources that `-k auto` tries."""


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        target: locale.
        by: selector.
        k: number of sources, None for all, or `auto`.
        include_target: IncTar.
        weights: see `source_weights`.
        temperature: of softmax and sinkhorn.
        joint: `rank`, `greedy` or `diverse`.
        trade: of `diverse`.
        scores: of `manual`.
        own: IncTar: share of the target's own expert; by `weights` like the others if None.
    """

    target: str
    by: str = "measured"
    k: int | Literal["auto"] | None = 5
    include_target: bool = False
    weights: str = "uniform"
    temperature: float | None = None
    joint: str = "rank"
    trade: float = 0.5
    scores: Mapping[str, float] | None = None
    own: float | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen, by which scores.

    Attributes:
        wish: what was asked for.
        matrix: the scores.
        selection: the sources and their coefficients.
    """

    wish: Wish
    matrix: SimilarityMatrix
    selection: Selection

    @property
    def title(self) -> str:
        """A headline."""
        how = "" if self.wish.joint == "rank" else f", {self.wish.joint}"
        auto = ", k chosen" if self.wish.k == "auto" else ""
        return f"sources for {self.wish.target} by {self.matrix.by}{how}{auto}"

    def explained(self, others: "Compared") -> list[dict[str, Any]]:
        """For each expert every score, its rank, whether it is in and why."""
        ranked = list(self.selection.sources)
        lines = []
        for source in sorted(
            self.matrix.sources, key=lambda s: (ranked.index(s) if s in ranked else len(ranked), s)
        ):
            own = {by: column[source] for by, column in others.scores.items() if source in column}
            ranks = {by: others.rank(by, source) for by in own}
            lines.append(
                {
                    "source": source,
                    "in": source in ranked,
                    "why": self._why(source, ranks.get(self.matrix.by)),
                    "scores": own,
                    "ranks": ranks,
                }
            )
        return lines

    def _why(self, source: str, rank: int | None) -> str:
        chosen, wish = self.selection.sources, self.wish
        if source == wish.target:
            return (
                "in: the target's own expert (IncTar)" if source in chosen else "out: the target's own expert"
            )
        if source in self.selection.left_out:
            return f"out: {self.selection.left_out[source]}"
        place = f"rank {rank} by {self.matrix.by}" if rank else f"by {self.matrix.by}"
        if wish.joint == "rank":
            return f"in: {place}" if source in chosen else f"out: {place}, {len(chosen)} are taken"
        step = f"step {chosen.index(source) + 1} of {wish.joint}" if source in chosen else wish.joint
        return f"in: {step}, {place}" if source in chosen else f"out: not chosen by {step}, {place}"


@dataclass(frozen=True)
class Compared:
    """All selectors on one target.

    Attributes:
        target: locale.
        scores: selector → source → score, without the target's own expert.
        chosen: selector → its sources (the whole ranking where no number was given), or why it has none.
        spearman: rank correlation with dev accuracy, where that was measured.
    """

    target: str
    scores: Mapping[str, Mapping[str, float]]
    chosen: Mapping[str, tuple[str, ...] | str]
    spearman: Mapping[str, float]

    def rank(self, by: str, source: str) -> int:
        """From 1."""
        column = self.scores[by]
        return 1 + sorted(column, key=lambda s: (-column[s], s)).index(source)

    @staticmethod
    def needs_labels(by: str) -> bool:
        """Whether a selector looks at labels of the target; delta's expert was trained on them."""
        return by in ("measured", "delta")

    def payload(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "target": self.target,
            "scores": {by: dict(column) for by, column in self.scores.items()},
            "chosen": {
                by: entry if isinstance(entry, str) else list(entry) for by, entry in self.chosen.items()
            },
            "spearman": dict(self.spearman),
        }


TEMPERED = ("softmax", "sinkhorn")
"""Weights that have a temperature."""


def choose(selectors: PoolSelectors, wish: Wish) -> Choice:
    """Choose and weight the sources of a merge.

    Raises:
        SelectionError: an unknown selector or way of choosing, or what it needs is not there.
    """
    if wish.joint not in JOINT:
        raise SelectionError(f"unknown way of choosing {wish.joint!r}: there are {', '.join(JOINT)}")
    if wish.temperature is not None and wish.weights not in TEMPERED:
        raise SelectionError(
            f"temperature is for {' and '.join(TEMPERED)}, the weights are {wish.weights}: leave it out"
        )
    matrix = _matrix(selectors, wish)
    if wish.joint == "rank" and wish.k != "auto":
        chosen = select_sources(
            matrix,
            wish.target,
            k=wish.k,
            include_target=wish.include_target,
            weights=wish.weights,
            temperature=wish.temperature,
            own=wish.own,
        )
        return Choice(wish, matrix, chosen)
    column = matrix.column(wish.target)
    names = _set(selectors, wish, column)
    made = weighted(
        matrix,
        wish.target,
        {name: column[name] for name in names},
        weights=wish.weights,
        temperature=wish.temperature,
        include_target=wish.include_target,
        joint=wish.joint if wish.joint != "rank" else "rank, k chosen by the soft vote",
        own=wish.own,
    )
    return Choice(wish, matrix, made)


def _matrix(selectors: PoolSelectors, wish: Wish) -> SimilarityMatrix:
    if wish.by == "manual":
        if not wish.scores:
            raise SelectionError("--by manual needs --scores LOCALE=NUMBER,…")
        if unknown := [name for name in wish.scores if name not in selectors.pool.locales]:
            raise SelectionError(
                f"scores are given for {unknown[0]}, of which the pool has no expert: "
                f"it has {', '.join(selectors.pool.locales)}"
            )
        if wish.weights == "sinkhorn":
            raise SelectionError(
                "sinkhorn shares sources among several targets, and manual scores are of one: use other --weights"
            )
        return manual(wish.scores, wish.target)
    targets = [wish.target]
    if wish.weights == "sinkhorn":
        # It shares sources among all targets.
        targets = list(dict.fromkeys([*selectors.pool.locales, wish.target]))
    # The other targets' scores by strength and composite look at labels, and those of this one are not among them.
    return selectors.matrix(wish.by, targets, hidden=wish.target)


def _set(selectors: PoolSelectors, wish: Wish, column: Mapping[str, float]) -> list[str]:
    ranked = rank_sources(column, wish.target, include_target=wish.include_target)
    start = [wish.target] if wish.include_target else []
    if wish.joint == "greedy":
        own = selectors.logits(wish.target)
        members = votes({name: own[name].values for name in ranked})
        k = None if wish.k == "auto" else (wish.k or len(ranked))
        return [step.source for step in greedy(members, _labels(own), k=k, start=start)]
    k = _auto(selectors, wish, ranked) if wish.k == "auto" else wish.k or len(ranked)
    if wish.joint == "rank":
        return ranked[:k]
    own = selectors.logits(wish.target)
    predicted = {name: own[name].predictions for name in ranked}
    steps = diverse(
        {name: column[name] for name in ranked},
        lambda a, b: float((predicted[a] == predicted[b]).mean()),
        k=k,
        trade=wish.trade,
        start=start,
    )
    return [step.source for step in steps]


def _labels(own: Mapping[str, Logits]) -> np.ndarray[Any, Any]:
    return next(iter(own.values())).labels


def _auto(selectors: PoolSelectors, wish: Wish, ranked: list[str]) -> int:
    """How many of a ranking: with `measured` and `manual`, by the soft vote on the target's dev labels; by the other
    selectors, which need none, by the soft vote on the pool's other locales, each ranked by the same selector.
    """
    most = min(MOST, len(ranked))
    if wish.by in ("measured", "manual"):
        return best_prefix(list(_correct(selectors, wish.target, ranked, most).T))
    others = [locale for locale in selectors.pool.locales if locale != wish.target]
    matrix = selectors.matrix(wish.by, others, hidden=wish.target)
    found = []
    for locale in others:
        column = {s: v for s, v in matrix.column(locale).items() if s != wish.target or wish.include_target}
        order = rank_sources(column, locale, include_target=wish.include_target)
        if order:
            found.append(_correct(selectors, locale, order, min(most, len(order))).mean(axis=1))
    if not found:
        raise SelectionError("k auto needs another labelled locale in the pool: give a number")
    width = min(map(len, found))
    return best_prefix([means[:width] for means in found])


def _correct(
    selectors: PoolSelectors, locale: str, ranked: list[str], most: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Whether the soft vote of the first 1, 2, … sources is right about each dev row: (most, rows)."""
    own = selectors.logits(locale)
    labels = _labels(own)
    total = np.zeros(own[ranked[0]].values.shape)
    rows = []
    for shares in votes({name: own[name].values for name in ranked[:most]}).values():
        total = total + shares
        rows.append(total.argmax(axis=1) == labels)
    return np.stack(rows).astype(np.float64)


def compared(selectors: PoolSelectors, wish: Wish) -> Compared:
    """Every selector on the target of a wish, with its k and mode; one that lacks something says what."""
    scores: dict[str, dict[str, float]] = {}
    chosen: dict[str, tuple[str, ...] | str] = {}
    for by in SELECTORS:
        if by == "manual" and not wish.scores:
            continue
        try:
            matrix = _matrix(selectors, Wish(wish.target, by, scores=wish.scores))
            column = matrix.column(wish.target)
            ranked = rank_sources(column, wish.target, include_target=wish.include_target)
        except LangmergeError as error:
            chosen[by] = f"not available: {error}"
            continue
        chosen[by] = tuple(ranked[: wish.k] if isinstance(wish.k, int) else ranked)
        scores[by] = {source: value for source, value in column.items() if source != wish.target}
    return Compared(wish.target, scores, chosen, _spearman(scores))


def _spearman(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    truth = scores.get("measured", {})
    found = {}
    for by, column in scores.items():
        shared = sorted(set(truth) & set(column))
        rho = spearman([truth[s] for s in shared], [column[s] for s in shared]) if shared else float("nan")
        if by != "measured" and not np.isnan(rho):
            found[by] = rho
    return found
