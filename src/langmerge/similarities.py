"""Every selector on a pool: what each needs is read, run or measured here, and nothing that it does not need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from langmerge.checkpoint import folder_signature
from langmerge.engine.deltas import delta_gram
from langmerge.errors import SelectionError
from langmerge.evaluate import PoolEvaluator
from langmerge.models import encode, load_classifier, mean_pooled
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.results import Logits
from langmerge.selection import (
    SimilarityMatrix,
    TransferMatrix,
    agreement,
    check_selector,
    composite,
    delta,
    measured,
    representation,
    strength,
    typology,
)
from langmerge.tasks import load_task

TEXTS = 256
"""Texts of each language that `representation` compares."""


@dataclass
class PoolSelectors:
    """The selectors of a pool. What one of them has read or run is there for the next.

    Attributes:
        pool: the pool.
        data: where its task's data is.
        features: weights of typology's feature sets; the default where None.
        how: cosine or cka, for `representation`.
        limit: at most so many dev rows of a locale; those of the pool's matrix by default.
        progress: told of what takes long.
        own_evaluator: of the pool, where there is one already.
    """

    pool: Pool
    data: Path | None = None
    features: Mapping[str, float] | None = None
    how: str = "cka"
    limit: int | None = None
    progress: Progress = silent
    own_evaluator: PoolEvaluator | None = None
    _vectors: dict[str, Float[np.ndarray, "n d"]] = field(default_factory=dict)
    _ids: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _deltas: list[SimilarityMatrix] = field(default_factory=list)
    _rows: set[str] = field(default_factory=set)

    def matrix(self, by: str, targets: Sequence[str], *, hidden: str | None = None) -> SimilarityMatrix:
        """The scores of the pool's experts for these targets.

        Args:
            by: the selector.
            targets: locales; they need no expert, but for `delta`.
            hidden: a locale whose labels strength and composite do not look at, though it is no target.

        Raises:
            SelectionError: there is no such selector, or what it needs is not there.
        """
        check_selector(by)
        found: Callable[[Sequence[str]], SimilarityMatrix] | None = {
            "measured": self._measured,
            "typology": lambda wanted: typology(self.pool.locales, wanted, self.features),
            "strength": lambda wanted: strength(self.transfer(hidden), wanted),
            "composite": lambda wanted: composite(self.transfer(hidden), wanted),
            "agreement": self._agreement,
            "representation": self._representation,
            "delta": self._delta,
        }.get(by)
        if found is None:
            raise SelectionError(f"{by} has no scores of its own: give them with --scores LOCALE=NUMBER,…")
        return found(targets)

    def transfer(self, hidden: str | None = None) -> TransferMatrix:
        """The pool's dev transfer matrix, its experts' rows alone, but for the column of a locale that is hidden.

        Raises:
            SelectionError: there is none, or it is not of these experts.
        """
        whole = TransferMatrix.load(self.pool.root / "transfer.dev.json")
        self._check_rows(whole)
        found = whole.among([source for source in whole.sources if source in self.pool.locales])
        kept = [place for place, target in enumerate(found.targets) if target != hidden]
        return replace(found, targets=tuple(found.targets[i] for i in kept), values=found.values[:, kept])

    def _check_rows(self, matrix: TransferMatrix) -> None:
        """Raise where an expert has no row, or its row is of what it was before: it would drop out, or stay, unseen."""
        wanted = [expert for expert in self.pool.locales if expert not in self._rows]
        known = matrix.provenance.get("experts", {})
        for expert in wanted:
            if expert not in matrix.sources:
                raise SelectionError(self._stale(f"has no row for the expert {expert}"))
            if expert in known and known[expert] != folder_signature(self.pool.expert(expert)):
                raise SelectionError(self._stale(f"was measured before the expert {expert} was trained anew"))
        self._rows.update(wanted)

    def _stale(self, what: str) -> str:
        return f"the dev transfer matrix of {self.pool.root} {what}: run langmerge matrix {self.pool.root}"

    def evaluator(self) -> PoolEvaluator:
        """Runs experts; their logits are kept in the pool."""
        if self.own_evaluator is None:
            task = load_task(self.pool.task, data=self.data)
            self.own_evaluator = PoolEvaluator(self.pool, task, limits={"dev": self._limit()})
        return self.own_evaluator

    def _limit(self) -> int | None:
        if self.limit is not None or not (self.pool.root / "transfer.dev.json").exists():
            return self.limit
        limit = self.transfer().provenance.get("limit")
        return limit if isinstance(limit, int) else None

    def logits(self, target: str) -> dict[str, Logits]:
        """Dev logits of every expert on a locale, by expert."""
        evaluator = self.evaluator()
        found = {}
        with self.progress(f"experts on {target}", len(self.pool.locales)) as advance:
            for expert in self.pool.locales:
                found[expert] = evaluator.cell(expert, target, "dev")
                advance(1)
        return found

    def _measured(self, targets: Sequence[str]) -> SimilarityMatrix:
        found = self.transfer()
        for target in targets:
            # It says how to fill a cell that is missing: a source must not drop out of a choice unseen.
            found.column(target)
        return _columns(measured(found), targets)

    def _agreement(self, targets: Sequence[str]) -> SimilarityMatrix:
        # Labels are not looked at: dev text of the target is unlabelled text here.
        return agreement({t: {e: own.values for e, own in self.logits(t).items()} for t in targets})

    def _representation(self, targets: Sequence[str]) -> SimilarityMatrix:
        languages = list(dict.fromkeys([*self.pool.locales, *targets]))
        missing = [language for language in languages if language not in self._vectors]
        if missing:
            evaluator = self.evaluator()
            texts = {language: evaluator.task.load(language, "train").limited(TEXTS) for language in missing}
            self._ids |= {language: own.ids for language, own in texts.items()}
            self._check_parallel(languages)
            model, tokenizer = load_classifier(self.pool.base_folder), evaluator.tokenizer
            with self.progress("texts as vectors", len(missing)) as advance:
                for language, own in texts.items():
                    self._vectors[language] = mean_pooled(model, encode(tokenizer, own.texts))
                    advance(1)
        vectors = {language: self._vectors[language] for language in languages}
        return representation(vectors, self.pool.locales, targets, how=self.how)

    def _check_parallel(self, languages: Sequence[str]) -> None:
        first = languages[0]
        others = [language for language in languages if self._ids[language] != self._ids[first]]
        if self.how == "cka" and others:
            raise SelectionError(
                f"cka needs parallel texts, but {others[0]} and {first} have other ids: use --how cosine"
            )

    def _delta(self, targets: Sequence[str]) -> SimilarityMatrix:
        pool = self.pool
        if absent := [target for target in targets if target not in pool.locales]:
            raise SelectionError(
                f"delta needs the target's own expert, and the pool has none for {absent[0]}"
            )
        if not self._deltas:
            folders = {locale: pool.expert(locale) for locale in pool.locales}
            gram = delta_gram(pool.base_folder, folders, progress=self.progress)
            self._deltas.append(delta(gram, pool.locales))
        return _columns(self._deltas[0], targets)


def _columns(matrix: SimilarityMatrix, targets: Sequence[str]) -> SimilarityMatrix:
    """Only these targets, in this order."""
    places = [matrix.targets.index(target) for target in targets]
    return replace(matrix, targets=tuple(targets), values=matrix.values[:, places])
