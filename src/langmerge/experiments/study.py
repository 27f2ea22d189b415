"""The whole story: base, experts, matrix, selection, merges, references, verdicts."""

import json
import time
from pathlib import Path

from langmerge.evaluate import PoolEvaluator, transfer_matrix
from langmerge.experiments.candidates import CandidateScorer, candidates
from langmerge.experiments.grid import Grid
from langmerge.experiments.references import TargetBoard
from langmerge.experiments.verdict import verdict
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.results.study import Row, Study, Verdict
from langmerge.selection import TransferMatrix
from langmerge.tasks import load_task
from langmerge.training import ORIGIN, ensure_base, train_pool


def run_study(grid: Grid, out: Path, *, data: Path | None = None, progress: Progress = silent) -> Study:
    """Do what a grid says; everything finished is kept in `out`, and a second call goes on from there.

    Choices (sources, best zero-shot source, verdict) read dev; test is only reported.

    Args:
        grid: what to do.
        out: folder for the base, the pool with its logits, and `study.json`.
        data: where the task's data is.
        progress: told about every step.

    Returns:
        The study, also written to `out`/study.json.
    """
    started = time.monotonic()
    task = load_task(grid.task, data=data)
    base = ensure_base(grid.base, out / "base", task=task, locales=grid.locales, progress=progress)
    pool = train_pool(
        out / "pool", base=base, task=task, locales=grid.locales, training=grid.training, progress=progress
    )
    evaluator = PoolEvaluator(pool, task, limits={"dev": grid.matrix_limit})
    columns = grid.locales if grid.columns == "all" else grid.targets
    matrix = transfer_matrix(evaluator, split="dev", locales=columns, progress=progress)
    rows, verdicts = _judged(grid, evaluator, matrix, progress)
    study = Study(
        task=task.name,
        revision=task.revision,
        base=base_name(pool),
        rows=tuple(rows),
        verdicts=tuple(verdicts),
        matrix={
            "sources": list(matrix.sources),
            "targets": list(matrix.targets),
            "values": matrix.values.round(6).tolist(),
            "split": matrix.split,
            "signature": matrix.provenance["signature"],
        },
        grid=grid.model_dump(mode="json"),
        seconds=round(time.monotonic() - started, 1),
    )
    study.save(out / "study.json")
    return study


def _judged(
    grid: Grid, evaluator: PoolEvaluator, matrix: TransferMatrix, progress: Progress
) -> tuple[list[Row], list[Verdict]]:
    scorer = CandidateScorer(evaluator)
    plans = {}
    for target in grid.targets:
        own = matrix.among({*grid.sources, target})
        plans[target] = (own, candidates(own, target, ks=grid.k, modes=grid.modes, methods=grid.methods))
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    total = sum(len(found) for _, found in plans.values()) + len(plans)
    with progress("merging and testing", total) as advance:
        for target, (own, found) in plans.items():
            board = TargetBoard(evaluator, own, target, seed=grid.training.seed)
            references = board.references(grid.modes, sorted({len(c.selection.sources) for c in found}))
            advance(1)
            merges = []
            for candidate in found:
                merges.append(board.merge_row(candidate, scorer))
                advance(1)
            rows += [*references, *merges]
            verdicts += [verdict(board, merges, mode) for mode in grid.modes]
    return rows, verdicts


def base_name(pool: Pool) -> str:
    """How results call a pool's base."""
    origin = pool.base_folder / ORIGIN
    return str(json.loads(origin.read_text())["name"]) if origin.exists() else str(pool.base)
