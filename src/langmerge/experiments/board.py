"""Everything of one target: merges beside their honest baselines."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.checkpoint import folder_signature
from langmerge.choosing import Wish, choose
from langmerge.engine import merge
from langmerge.evaluate import PoolEvaluator, score
from langmerge.experiments.candidates import Candidate, CandidateScorer
from langmerge.experiments.places import Place
from langmerge.models import load_classifier
from langmerge.results import Logits, signature
from langmerge.results.ensembles import ENSEMBLES
from langmerge.results.records import Cell, Outcome, Run, Scored
from langmerge.results.study import Difference
from langmerge.selection import Selection, TransferMatrix
from langmerge.similarities import PoolSelectors
from langmerge.tasks import mean_interval, paired_difference
from langmerge.training import Training, joint_model

SPLITS = ("dev", "test")
"""Choices look at the first; the second is reported."""


@dataclass(frozen=True)
class Found:
    """A run, and what its logits or, for a mean, its rows' outcomes on test are.

    Attributes:
        run: with its scores.
        right: share of the models that have each test row right, (n,).
        test: logits, where there are any.
    """

    run: Run
    right: np.ndarray[Any, Any]
    test: Logits | None = None


class TargetBoard:
    """What stands in the places of one target.

    Args:
        evaluator: of the pool.
        matrix: dev scores; rows are the sources this target may use, and its own expert.
        target: the locale.
        seed: of the experts' training, stated in every run.
        scorer: of merges.
        data: where the task's data is.
        joint: how one model is trained on the data of several sources.
    """

    def __init__(
        self,
        evaluator: PoolEvaluator,
        matrix: TransferMatrix,
        target: str,
        *,
        seed: int,
        scorer: CandidateScorer,
        data: Path | None = None,
        joint: Training | None = None,
    ) -> None:
        self.joint = joint
        self.evaluator, self.matrix, self.target, self.seed, self.scorer = (
            evaluator, matrix, target, seed, scorer,
        )  # fmt: skip
        self.column = matrix.column(target)
        self.best_source = matrix.best_zero_shot(target)
        """The best source other than the target's own expert, chosen on dev."""
        pool = evaluator.pool
        own = pool.model_copy(update={"experts": {e: pool.experts[e] for e in matrix.sources}})
        self._selectors = PoolSelectors(own, data=data, own_evaluator=evaluator)

    def outcome(self, cell: Cell, place: Place) -> Outcome:
        """What stands in a place, beside the place's references."""
        started = time.perf_counter()
        found = self._found(place)
        gain = None
        if place.k or found.run.sources != (self.reference(place.mode),):
            gain = self.gain(found, place.mode)
        effect = self.effect(found) if found.test is not None and place.k else None
        seconds = time.perf_counter() - started
        return Outcome(cell, replace(found.run, seconds=seconds), None, gain, effect, seconds)

    def _found(self, place: Place) -> Found:
        if place.kind == "merge":
            return self._merge(place)
        if place.kind in ENSEMBLES:
            return self._vote(place)
        if place.kind == "source_mean":
            return self._mean(place)
        if place.kind == "joint":
            return self._joint(place)
        single: Mapping[str, Callable[[], str]] = {
            "best_zero_shot": lambda: self.best_source,
            "best_in_hindsight": self._hindsight,
            "first_source": lambda: self.selection(replace(place, k=1)).sources[0],
            "self": lambda: self.target,
        }
        return self._expert(single[place.kind]())

    # References and differences

    def test(self, expert: str) -> Logits:
        """An expert's logits on the target's test rows."""
        return self.evaluator.cell(expert, self.target, "test")

    def reference(self, mode: str) -> str:
        """The expert that gains are measured against: the best zero-shot source (ExcTar) or self (IncTar)."""
        return self.target if mode == "IncTar" else self.best_source

    def gain(self, found: Found, mode: str) -> Difference:
        """Against the best zero-shot source chosen on dev (ExcTar) or self (IncTar), paired over test rows."""
        other = self.test(self.reference(mode))
        return paired(found.test, other) if found.test is not None else _mean_of(found.right - other.correct)

    def effect(self, found: Found) -> Difference:
        """Merging effect: against the mean of exactly the sources merged, paired over test rows."""
        return _mean_of(
            found.right - np.mean([self.test(source).correct for source in found.run.sources], axis=0)
        )

    # What stands in a place

    def selection(self, place: Place) -> Selection:
        """The sources of a place, and how much of each."""
        choice = place.choice
        weights = choice.weights if choice is not None else "softmax"
        wish = Wish(
            self.target, place.selector or "measured", place.k, place.mode == "IncTar", weights,
            choice.temperature if choice is not None and weights in ("softmax", "sinkhorn") else None,
            own=choice.own if choice is not None else None,
        )  # fmt: skip
        return choose(self._selectors, wish).selection

    def _hindsight(self) -> str:
        others = [source for source in self.matrix.sources if source != self.target]
        return max(others, key=lambda source: (float(self.test(source).correct.mean()), source))

    def write(self, place: Place, out: Path) -> None:
        """The merge of a place as a model; a folder that is there already stays."""
        merge(self.scorer.recipe(self._candidate(place)), out)

    def _candidate(self, place: Place) -> Candidate:
        if place.choice is None:
            raise ValueError(f"a merge without a method: {place}")
        return Candidate(self.target, place.mode, place.choice, self.selection(place))

    def _merge(self, place: Place) -> Found:
        candidate = self._candidate(place)
        own = {split: self.scorer.logits(candidate, split) for split in SPLITS}
        return self._run(
            place.what, candidate.selection.sources, own,
            kept={split: self.scorer.kept(candidate, split) for split in SPLITS},
            method=candidate.choice.method, parameters=candidate.choice.parameters,
            coefficients=candidate.selection.coefficients.values,
        )  # fmt: skip

    def _vote(self, place: Place) -> Found:
        vote, is_weighted = ENSEMBLES[place.kind]
        chosen = self.selection(place)
        weights = list(chosen.coefficients.values["model"].values()) if is_weighted else None
        own = {}
        for split in SPLITS:
            members = [self.evaluator.cell(source, self.target, split) for source in chosen.sources]
            made = signature([place.kind, weights, [member.signature for member in members]])
            own[split] = Logits(made, members[0].ids, members[0].labels, vote(members, weights))
        return self._run(place.what, chosen.sources, own)

    def _joint(self, place: Place) -> Found:
        """What one would train with the sources' data in hand; none of the target's, unless it is a source."""
        if self.joint is None:
            raise ValueError("a joint model without a training")
        sources = self.selection(place).sources
        # The same set in another order is the same data.
        folder = joint_model(self.evaluator.pool, self.evaluator.task, sorted(sources), self.joint)
        own_signature = folder_signature(folder)
        model = cache(partial(load_classifier, folder))
        kept = {split: self.evaluator.kept(f"joint/{own_signature}", self.target, split) for split in SPLITS}
        own = {
            split: self.evaluator.logits(model, own_signature, self.target, split, kept=kept[split])
            for split in SPLITS
        }
        return self._run(place.what, sources, own, kept=kept)

    def _expert(self, expert: str) -> Found:
        own = {split: self.evaluator.cell(expert, self.target, split) for split in SPLITS}
        kept = {split: self.evaluator.kept(expert, self.target, split) for split in SPLITS}
        return self._run(expert, (expert,), own, kept=kept)

    def _mean(self, place: Place) -> Found:
        """No model: the mean of its sources' numbers."""
        sources = self.selection(place).sources
        right, scores = {}, []
        for split in SPLITS:
            members = [self.evaluator.cell(source, self.target, split) for source in sources]
            right[split] = np.mean([one.correct for one in members], axis=0)
            mean, interval = mean_interval(right[split])
            own = signature(["source_mean", [one.signature for one in members]])
            ids = signature(list(members[0].ids))
            scores.append(Scored(split, own, len(right[split]), mean, interval.low, interval.high, ids=ids))
        return Found(self._record(place.what, sources, scores), right["test"])

    def _run(
        self,
        name: str,
        sources: Sequence[str],
        own: Mapping[str, Logits],
        *,
        kept: Mapping[str, Path] | None = None,
        **merged: Any,
    ) -> Found:
        scores = [_scored(split, logits, str(kept[split]) if kept else None) for split, logits in own.items()]
        return Found(
            self._record(name, tuple(sources), scores, **merged),
            own["test"].correct.astype(float),
            own["test"],
        )

    def _record(self, name: str, sources: tuple[str, ...], scores: Sequence[Scored], **merged: Any) -> Run:
        task = self.evaluator.task
        own = signature([self.target, [one.signature for one in scores]])
        return Run(
            own, name, self.target, task.name, task.revision, sources, self.seed, tuple(scores), **merged
        )


def _scored(split: str, logits: Logits, kept: str | None) -> Scored:
    found = score(logits)
    return Scored(
        split, logits.signature, found.rows, found.accuracy, found.accuracy_interval.low, found.accuracy_interval.high,
        found.macro_f1, kept, signature(list(logits.ids)), np.packbits(logits.correct).tobytes(),
    )  # fmt: skip


def _mean_of(shares: np.ndarray[Any, Any]) -> Difference:
    points, interval = mean_interval(100 * shares)
    return Difference(points, interval.low, interval.high)


def paired(first: Logits, second: Logits) -> Difference:
    """First minus second on the same rows.

    Raises:
        ValueError: the rows differ.
    """
    if first.ids != second.ids:
        raise ValueError("paired difference over different rows")
    found = paired_difference(first.correct, second.correct)
    return Difference(found.points, found.low, found.high, found.p_value)
