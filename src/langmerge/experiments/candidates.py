"""Candidates: merges that are scored in memory, without being written."""

from dataclasses import dataclass

from langmerge.engine import Plan, make_plan, recipe_payload
from langmerge.evaluate import PoolEvaluator
from langmerge.experiments.grid import MethodChoice
from langmerge.methods import spec_of
from langmerge.recipe import Recipe
from langmerge.results import Logits, signature
from langmerge.scoring import ResidentClassifier
from langmerge.selection import Selection, TransferMatrix, select_sources


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


def candidates(
    matrix: TransferMatrix,
    target: str,
    *,
    ks: tuple[int | str, ...],
    modes: tuple[str, ...],
    methods: tuple[MethodChoice, ...],
) -> list[Candidate]:
    """Every merge of a grid for one target, without repeats.

    A k of `all`, or beyond what there is, takes every source. Methods for exactly two sources take the best two, once.
    """
    found: dict[tuple[str, str, int], Candidate] = {}
    for mode in modes:
        include = mode == "IncTar"
        most = sum(1 for source in matrix.sources if include or source != target)
        for choice in methods:
            for k in ks:
                fixed = spec_of(choice.method).sources[1]
                size = fixed or (most if k == "all" else min(int(k), most))
                selection = select_sources(
                    matrix,
                    target,
                    k=size,
                    include_target=include,
                    weights=choice.weights,
                    temperature=choice.temperature,
                )
                found.setdefault((mode, choice.name, size), Candidate(target, mode, choice, selection))
    return list(found.values())


class CandidateScorer:
    """Merges candidates into one resident model and scores them.

    Args:
        evaluator: of the pool that the sources come from.
    """

    def __init__(self, evaluator: PoolEvaluator) -> None:
        self._evaluator = evaluator
        self._resident = ResidentClassifier(evaluator.pool)

    def plan(self, candidate: Candidate) -> Plan:
        """The candidate's plan."""
        pool = self._evaluator.pool
        return make_plan(
            Recipe(
                base=pool.base_folder,
                sources={source: pool.expert(source) for source in candidate.selection.sources},
                method=candidate.choice.method,
                parameters=candidate.choice.parameters,
                coefficients=candidate.selection.coefficients,
                target=candidate.target,
            )
        )

    def logits(self, candidate: Candidate, split: str) -> Logits:
        """The candidate's logits on its target; kept, so that nothing is merged twice."""
        plan = self.plan(candidate)
        own = signature(recipe_payload(plan))
        kept = (
            self._evaluator.pool.root / "logits" / split / candidate.target / "merges" / f"{own}.safetensors"
        )
        return self._evaluator.logits(
            lambda: self._resident.filled(plan, own), own, candidate.target, split, kept=kept
        )
