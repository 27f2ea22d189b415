"""What a merge is compared with: the honest baselines of one target."""

from collections.abc import Sequence

import numpy as np

from langmerge.evaluate import PoolEvaluator, score
from langmerge.experiments.candidates import Candidate, CandidateScorer
from langmerge.results import Logits, signature, soft_vote
from langmerge.results.study import Difference, Kind, Row
from langmerge.selection import TransferMatrix, rank_sources
from langmerge.tasks import accuracy, mean_interval, paired_difference


class TargetBoard:
    """Everything measured for one target.

    Args:
        evaluator: of the pool.
        matrix: dev scores; rows are the sources this target may use, and its own expert.
        target: the locale.
        seed: the experts' training seed, stated in every row.
    """

    def __init__(self, evaluator: PoolEvaluator, matrix: TransferMatrix, target: str, *, seed: int) -> None:
        self.evaluator, self.matrix, self.target, self.seed = evaluator, matrix, target, seed
        self.column = matrix.column(target)
        self.best_source = matrix.best_zero_shot(target)
        """The best source other than the target's own expert, chosen on dev."""

    def test(self, expert: str) -> Logits:
        """An expert's logits on the target's test rows."""
        return self.evaluator.cell(expert, self.target, "test")

    def reference(self, mode: str) -> str:
        """The expert that gains are measured against: the best zero-shot source (ExcTar) or self (IncTar)."""
        return self.target if mode == "IncTar" else self.best_source

    def references(self, modes: Sequence[str], sizes: Sequence[int]) -> list[Row]:
        """Best zero-shot, best in hindsight, self; and for every number of sources their mean and soft vote."""
        others = [source for source in self.matrix.sources if source != self.target]
        hindsight = max(others, key=lambda source: (float(self.test(source).correct.mean()), source))
        rows = [
            self._expert_row("best_zero_shot", self.best_source),
            self._expert_row("best_in_hindsight", hindsight),
        ]
        if self.target in self.matrix.sources:
            rows.append(self._expert_row("self", self.target))
        for mode in modes:
            ranked = rank_sources(self.column, self.target, include_target=mode == "IncTar")
            for size in sizes:
                if size <= len(ranked):
                    rows += [self._mean_row(mode, ranked[:size]), self._vote_row(mode, ranked[:size])]
        return rows

    def merge_row(self, candidate: Candidate, scorer: CandidateScorer) -> Row:
        """A merge, scored on dev and test."""
        dev = scorer.logits(candidate, "dev")
        test = scorer.logits(candidate, "test")
        sources = candidate.selection.sources
        return self._row(
            "merge", candidate.choice.name, candidate.mode, sources, float(dev.correct.mean()), test
        )

    def gain(self, logits: Logits, mode: str) -> Difference:
        """Against the best zero-shot source chosen on dev (ExcTar) or self (IncTar), paired over test rows."""
        return paired(logits, self.test(self.reference(mode)))

    def effect(self, logits: Logits, sources: Sequence[str]) -> Difference:
        """Merging effect: against the mean of exactly these sources, paired over test rows."""
        mean = np.mean([self.test(source).correct for source in sources], axis=0)
        points, interval = mean_interval(100 * (logits.correct - mean))
        return Difference(points, interval.low, interval.high)

    def _expert_row(self, kind: Kind, expert: str) -> Row:
        return self._row(
            kind,
            expert,
            "ExcTar" if expert != self.target else "IncTar",
            (expert,),
            self.column[expert],
            self.test(expert),
        )

    def _vote_row(self, mode: str, sources: Sequence[str]) -> Row:
        voted = {}
        for split in ("dev", "test"):
            members = [self.evaluator.cell(source, self.target, split) for source in sources]
            own = signature(["soft_vote", [member.signature for member in members]])
            voted[split] = Logits(own, members[0].ids, members[0].labels, soft_vote(members))
        dev = accuracy(voted["dev"].labels, voted["dev"].predictions)
        return self._row("soft_vote", "soft vote", mode, sources, dev, voted["test"])

    def _row(self, kind: Kind, name: str, mode: str, sources: Sequence[str], dev: float, test: Logits) -> Row:
        found = score(test)
        combined = kind in ("merge", "soft_vote")
        return Row(
            target=self.target,
            kind=kind,
            name=name,
            mode=mode,
            k=len(sources) if combined else 0,
            sources=tuple(sources),
            dev=round(dev, 6),
            test=round(found.accuracy, 6),
            low=round(found.accuracy_interval.low, 6),
            high=round(found.accuracy_interval.high, 6),
            macro_f1=round(found.macro_f1, 6),
            gain=self.gain(test, mode) if combined or sources[0] != self.reference(mode) else None,
            effect=self.effect(test, sources) if combined else None,
            rows=found.rows,
            seed=self.seed,
            signature=found.signature,
        )

    def _mean_row(self, mode: str, sources: Sequence[str]) -> Row:
        tests = [self.test(source) for source in sources]
        correct = np.mean([one.correct for one in tests], axis=0)
        mean, interval = mean_interval(correct)
        points, difference = mean_interval(100 * (correct - self.test(self.reference(mode)).correct))
        return Row(
            target=self.target,
            kind="source_mean",
            name="mean of the sources",
            mode=mode,
            k=len(sources),
            sources=tuple(sources),
            dev=round(float(np.mean([self.column[source] for source in sources])), 6),
            test=round(mean, 6),
            low=round(interval.low, 6),
            high=round(interval.high, 6),
            macro_f1=None,
            gain=Difference(points, difference.low, difference.high),
            effect=None,
            rows=len(correct),
            seed=self.seed,
            signature=signature(["source_mean", [one.signature for one in tests]]),
        )


def paired(first: Logits, second: Logits) -> Difference:
    """First minus second on the same rows.

    Raises:
        ValueError: the rows differ.
    """
    if first.ids != second.ids:
        raise ValueError("paired difference over different rows")
    found = paired_difference(first.correct, second.correct)
    return Difference(found.points, found.low, found.high, found.p_value)
