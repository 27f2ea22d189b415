"""One cell of a sweep, wherever it is worked on: what cells share is read once in each process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from langmerge.checkpoint import folder_signature
from langmerge.evaluate import PoolEvaluator
from langmerge.experiments.board import SPLITS, TargetBoard
from langmerge.experiments.candidates import CandidateScorer
from langmerge.experiments.places import Place
from langmerge.pool import Pool
from langmerge.results.records import Cell, Outcome
from langmerge.selection import TransferMatrix
from langmerge.tasks import load_task
from langmerge.training import Training


@dataclass(frozen=True)
class Ground:
    """What the cells of a pool stand on, as it can be sent to another process.

    Attributes:
        root: the pool's folder.
        data: where the task's data is.
        sources: experts that targets may use; each its own as well.
        limits: at most so many rows of a split.
        seed: of the experts' training.
        state: of experts and matrix: what a process has read of another state is not taken for this one's.
        joint: how one model is trained on the data of several sources.
    """

    root: Path
    data: Path | None
    sources: tuple[str, ...]
    limits: tuple[tuple[str, int | None], ...]
    seed: int
    state: str
    joint: Training | None = None


@dataclass(frozen=True)
class Work:
    """One cell."""

    ground: Ground
    place: Place
    cell: Cell


@dataclass(frozen=True)
class Model:
    """A merge that is to be written.

    Attributes:
        work: its cell.
        folder: where to.
    """

    work: Work
    folder: Path


class Desk:
    """A pool opened, with its tokenised text, its resident model and the boards of its targets.

    Args:
        ground: the pool.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        pool = Pool.load(ground.root)
        task = load_task(pool.task, data=ground.data)
        self.evaluator = PoolEvaluator(pool, task, limits=dict(ground.limits))
        self.scorer = CandidateScorer(self.evaluator)
        self._boards: dict[str, TargetBoard] = {}

    def board(self, target: str) -> TargetBoard:
        """Of a target."""
        if target not in self._boards:
            matrix = TransferMatrix.load(self.evaluator.pool.root / "transfer.dev.json")
            self._boards[target] = TargetBoard(
                self.evaluator, matrix.among({*self.ground.sources, target}), target,
                seed=self.ground.seed, scorer=self.scorer, data=self.ground.data, joint=self.ground.joint,
            )  # fmt: skip
        return self._boards[target]

    def grounds(self, target: str) -> Mapping[str, Any]:
        """What decides the cells of a target: base, experts, and the target's rows by split."""
        pool = self.evaluator.pool
        return {
            "base": folder_signature(pool.base_folder),
            "experts": {one: folder_signature(pool.expert(one)) for one in sorted({*self.ground.sources, target})},
            "rows": {split: self.evaluator.signature("", target, split) for split in SPLITS},
        }  # fmt: skip


@lru_cache(maxsize=1)
def desk(ground: Ground) -> Desk:
    """The desk of a pool; a process keeps one."""
    return Desk(ground)


def fill(work: Work) -> Outcome:
    """Work on a cell; whatever goes wrong with it is its outcome, and stops nothing else."""
    started = time.perf_counter()
    try:
        return desk(work.ground).board(work.place.target).outcome(work.cell, work.place)
    except Exception as error:  # A sweep of days must not end with one cell.
        return failed(work, error, time.perf_counter() - started)


def failed(work: Work, error: BaseException, seconds: float = 0.0) -> Outcome:
    """The outcome of a cell that went wrong."""
    said = " ".join(str(error).split())
    return Outcome(work.cell, reason=f"{type(error).__name__}: {said}"[:1000], seconds=seconds)


def write(model: Model) -> str | None:
    """Write a merge as a model; gives what went wrong, which stops nothing else."""
    try:
        desk(model.work.ground).board(model.work.place.target).write(model.work.place, model.folder)
    except Exception as error:  # As with cells.
        return unwritten(model, error)
    return None


def unwritten(_: Model, error: BaseException) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]
