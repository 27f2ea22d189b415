"""Candidates: merges that are scored in memory, without being written."""

from dataclasses import dataclass
from pathlib import Path

from langmerge.engine import Plan, make_plan, recipe_payload
from langmerge.evaluate import PoolEvaluator
from langmerge.experiments.grid import MethodChoice
from langmerge.measuring import head_statistics
from langmerge.recipe import Recipe
from langmerge.results import Logits, signature
from langmerge.scoring import ResidentClassifier
from langmerge.selection import Selection


@dataclass(frozen=True)
class Candidate:
    """A merge for a target.

    Attributes:
        target: the locale.
        mode: ExcTar or IncTar.
        choice: method and parameters.
        selection: sources and coefficients.
    """

    target: str
    mode: str
    choice: MethodChoice
    selection: Selection


class CandidateScorer:
    """Merges candidates into one resident model and scores them.

    Args:
        evaluator: of the pool that the sources come from.
    """

    def __init__(self, evaluator: PoolEvaluator) -> None:
        self._evaluator = evaluator
        self._resident = ResidentClassifier(evaluator.pool)
        self._last: tuple[Candidate, Plan, str] | None = None

    def recipe(self, candidate: Candidate) -> Recipe:
        """What would write the candidate as a model."""
        pool = self._evaluator.pool
        return Recipe(
            base=pool.base_folder,
            sources={source: pool.expert(source) for source in candidate.selection.sources},
            method=candidate.choice.method,
            parameters=candidate.choice.parameters,
            coefficients=candidate.selection.coefficients,
            target=candidate.target,
            head=candidate.choice.head,
            statistics=self._head_statistics(candidate) if candidate.choice.head == "regmean" else {},
        )

    def _head_statistics(self, candidate: Candidate) -> dict[str, Path]:
        """The head's Gram of each source on the target's text; kept in the pool, by expert."""
        return head_statistics(
            self._evaluator.pool, self._evaluator.task, candidate.selection.sources, candidate.target
        )

    def logits(self, candidate: Candidate, split: str) -> Logits:
        """The candidate's logits on its target; kept, so that nothing is merged twice."""
        plan, own = self._planned(candidate)
        kept = self.kept(candidate, split)
        return self._evaluator.logits(
            lambda: self._resident.filled(plan, own), own, candidate.target, split, kept=kept
        )

    def kept(self, candidate: Candidate, split: str) -> Path:
        """Where the candidate's logits are kept."""
        _, own = self._planned(candidate)
        return self._evaluator.kept(f"merges/{own}", candidate.target, split)

    def _planned(self, candidate: Candidate) -> tuple[Plan, str]:
        """Its plan and the plan's signature."""
        if self._last is None or self._last[0] is not candidate:
            plan = make_plan(self.recipe(candidate))
            self._last = candidate, plan, signature(recipe_payload(plan))
        return self._last[1:]
