"""What is to be decided, and with what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from langmerge.auto.evidence import Evidence
from langmerge.pool import Pool
from langmerge.tasks import Task, Unlabelled
from langmerge.training import Refinement

Labels = Literal["dev", "none"]


@dataclass(frozen=True)
class Question:
    """What is to be decided, and with what.

    Attributes:
        pool: of the experts.
        task: the pool's, loaded.
        target: the locale.
        data: where the task's data is.
        labels: `dev`: labelled dev rows of the target choose; `none`: nothing of the target is looked at but its text.
        rows: at most so many labelled rows.
        k: number of sources.
        by: selector; by default `measured` with labels, else `composite`.
        include_target: IncTar; by default where the pool has the target's own expert.
        statistics: the experts may be run on the task's train text of the target, without labels.
        text: unlabelled text of the target to refine on; none: nothing is refined.
        refinement: how.
        learned: learn coefficients on the text too. Not by default: it costs minutes, and has lost to equal weights.
        evidence: gains elsewhere, by candidate; those of `langmerge.auto.measured` by default, without the target.
        effects: a file of `langmerge.auto.effect`: gains predicted for this target stand in for those elsewhere, of the
            candidates for which it was seen that this is better.
        test: report the choice and the reference on test, once.
    """

    pool: Pool
    task: Task
    target: str
    data: Path | None = None
    labels: Labels = "dev"
    rows: int = 500
    k: int = 5
    by: str | None = None
    include_target: bool | None = None
    statistics: bool = True
    text: Unlabelled | None = None
    refinement: Refinement = field(default_factory=lambda: Refinement(rounds=2))
    learned: bool = False
    evidence: Mapping[str, Evidence] | None = None
    effects: Path | None = None
    test: bool = False

    @property
    def mode(self) -> str:
        """ExcTar or IncTar."""
        own = self.target in self.pool.locales if self.include_target is None else self.include_target
        return "IncTar" if own else "ExcTar"

    @property
    def selector(self) -> str:
        """By which sources are chosen."""
        return self.by or ("measured" if self.labels == "dev" else "composite")
