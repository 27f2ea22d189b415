"""What can be known of a merge before it is made: from kept logits, the weights of the sources, and typology."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.engine.deltas import delta_gram, sign_agreement
from langmerge.progress import Progress, silent
from langmerge.results import Logits
from langmerge.results.ensembles import soft_vote
from langmerge.selection import typology
from langmerge.selection.label_free import agreements
from langmerge.selection.selectors import probabilities
from langmerge.similarities import PoolSelectors
from langmerge.tasks import Unlabelled, task_text

FEATURES: Mapping[str, tuple[str, str]] = {
    "disagreement": ("text", "mean share of rows on which two sources predict otherwise"),
    "confidence": ("text", "mean largest probability of the sources' vote"),
    "cosine": ("text", "mean cosine of two sources' task vectors"),
    "signs": ("text", "mean share of entries that two sources move in the same direction"),
    "typology": ("text", "mean typological similarity of sources and target"),
    "level": ("labels", "best source's accuracy on dev, points"),
    "spread": ("labels", "standard deviation of the sources' accuracies on dev, points"),
    "vote gain": ("labels", "the vote's accuracy above the best source's on dev, points"),
    "ZS/Self": ("self", "best source's accuracy over that of the target's own expert, on dev"),
}
"""By name: what it needs of the target (unlabelled text; labels; an expert of its own), and what it is."""

TEXTS = 512
"""Unlabelled texts of the target that sources are run on."""

NEEDS = ("text", "labels", "self")
"""From least to most: a set of features is all that need no more than one of these."""


def names(needs: str) -> list[str]:
    """The features that need no more than this.

    >>> names("text")
    ['disagreement', 'confidence', 'cosine', 'signs', 'typology']
    """
    return [name for name, (own, _) in FEATURES.items() if NEEDS.index(own) <= NEEDS.index(needs)]


@dataclass
class PoolFeatures:
    """The features of sets of sources of one pool; task vectors are compared once.

    Attributes:
        selectors: of the pool, with the rows that are looked at.
        experts: that sets are made of; all of the pool by default.
        progress: told of what takes long.
    """

    selectors: PoolSelectors
    experts: Sequence[str] = ()
    progress: Progress = silent
    _logits: dict[str, dict[str, Logits]] = field(default_factory=dict)
    _texts: dict[str, Unlabelled] = field(default_factory=dict)

    def of(self, target: str, sources: Sequence[str], *, needs: str = "self") -> dict[str, float]:
        """Features of a set of sources for a target, all that need no more than `needs`.

        Raises:
            SelectionError, LocaleError: the target has no text, no labels, or no typology.
        """
        wanted = names(needs)
        # Of the same kind of rows wherever a merge is to be predicted: text of the task without its labels.
        read = [self._on_text(source, target) for source in sources]
        predicted = [one.predictions for one in read]
        found = {
            "disagreement": 1 - _pairs(agreements(predicted)),
            "confidence": float(probabilities(soft_vote(read)).max(axis=1).mean()),
            "cosine": _pairs(self._of(self._cosines, sources)),
            "signs": _pairs(self._of(self._signs, sources)),
            "typology": float(np.nanmean(typology(list(sources), [target]).values)),
        }
        if "level" in wanted:
            own = [self._cell(source, target) for source in sources]
            right = [100.0 * float(one.correct.mean()) for one in own]
            voted = 100.0 * float((soft_vote(own).argmax(axis=1) == own[0].labels).mean())
            found |= {"level": max(right), "spread": float(np.std(right)), "vote gain": voted - max(right)}
        if "ZS/Self" in wanted:
            others = [self._cell(source, target) for source in sources if source != target]
            # Nothing but the own expert: there is no zero-shot source to divide by it.
            best = max((float(one.correct.mean()) for one in others), default=float("nan"))
            found["ZS/Self"] = best / float(self._cell(target, target).correct.mean())
        return {name: found[name] for name in wanted}

    def _cell(self, source: str, target: str) -> Logits:
        known = self._logits.setdefault(target, {})
        if source not in known:
            known[source] = self.selectors.evaluator().cell(source, target, "dev")
        return known[source]

    def _on_text(self, source: str, target: str) -> Logits:
        evaluator = self.selectors.evaluator()
        if target not in self._texts:
            self._texts[target] = task_text(evaluator.task, target, limit=TEXTS)
        return evaluator.on_text(source, self._texts[target])

    def _of(self, whole: np.ndarray[Any, Any], sources: Sequence[str]) -> np.ndarray[Any, Any]:
        places = [list(self._folders).index(source) for source in sources]
        return np.asarray(whole[np.ix_(places, places)])

    @property
    def _folders(self) -> dict[str, Path]:
        pool = self.selectors.pool
        return {one: pool.expert(one) for one in (self.experts or pool.locales)}

    @cached_property
    def _cosines(self) -> np.ndarray[Any, Any]:
        gram = delta_gram(self.selectors.pool.base_folder, self._folders, progress=self.progress)
        norms = np.sqrt(np.diag(gram))
        return np.asarray(gram / np.outer(norms, norms))

    @cached_property
    def _signs(self) -> np.ndarray[Any, Any]:
        return sign_agreement(self.selectors.pool.base_folder, self._folders, progress=self.progress)


def _pairs(matrix: np.ndarray[Any, Any]) -> float:
    """Mean over pairs; 1 of a single source, which is like itself."""
    above = np.triu_indices(len(matrix), 1)
    return float(np.nanmean(matrix[above])) if len(matrix) > 1 else 1.0
