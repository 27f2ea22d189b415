"""The table of iterative merging: both runs, scored on dev, and their paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.checkpoint import folder_signature
from langmerge.evaluate import PoolEvaluator
from langmerge.models import load_classifier
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.results import Logits
from langmerge.results.study import Difference
from langmerge.tasks import Task, mean_interval, paired_difference

EVERY = "all"
"""Stands for the mean over the targets."""


@dataclass(frozen=True)
class RoundRow:
    """One round on one target's dev rows; accuracies in [0, 1], differences in points.

    Attributes:
        round: from 1.
        target: a locale, or `all` for the mean over them, where their rows are parallel.
        merged: the merge of the round's experts.
        experts: mean of the round's experts, the target's own included.
        control_experts: mean of the experts trained as long without merging.
        control_merged: the merge of those.
        over_experts: merged − experts.
        over_control_experts: merged − control_experts.
        over_control_merged: merged − control_merged: what merging in between has brought.
        rows: dev rows of a target.
        signature: of the merge.
        control_signature: of the control's merge.
    """

    round: int
    target: str
    merged: float
    experts: float
    control_experts: float
    control_merged: float
    over_experts: Difference
    over_control_experts: Difference
    over_control_merged: Difference
    rows: int
    signature: str
    control_signature: str


@dataclass(frozen=True)
class Scored:
    """A pool's experts and their merge on one target."""

    merged: Logits
    experts: np.ndarray[Any, np.dtype[np.float64]]
    """Share of the experts that are right, by row."""


def scores(
    pool: Pool,
    merged: Path,
    task: Task,
    targets: Sequence[str],
    limit: int | None,
    progress: Progress = silent,
) -> dict[str, Scored]:
    """A pool's experts and their merge on the targets' dev rows; logits are kept in the pool's folder.

    Args:
        pool: the experts.
        merged: folder of their merge.
        task: loaded.
        targets: locales.
        limit: at most so many rows.
        progress: told of every model and target.
    """
    evaluator = PoolEvaluator(pool, task, limits={"dev": limit})
    rows = "dev" if limit is None else f"dev.{limit}"
    own = folder_signature(merged)
    loaded: list[Any] = []

    def model() -> Any:
        if not loaded:
            loaded.append(load_classifier(merged))
        return loaded[0]

    correct: dict[str, list[Any]] = {target: [] for target in targets}
    found = {}
    with progress(f"scoring {pool.root.name}", len(targets) * (len(pool.locales) + 1)) as advance:
        for expert in pool.locales:
            for target in targets:
                correct[target].append(evaluator.cell(expert, target, "dev").correct)
                advance(1)
        for target in targets:
            kept = pool.root / "logits" / rows / target / "merges" / "merged.safetensors"
            logits = evaluator.logits(model, own, target, "dev", kept=kept)
            found[target] = Scored(logits, np.mean(correct[target], axis=0))
            advance(1)
    return found


def table(
    number: int, targets: Sequence[str], run: Mapping[str, Scored], control: Mapping[str, Scored]
) -> list[RoundRow]:
    """Rows of one round.

    Args:
        number: of the round.
        targets: locales.
        run: by target.
        control: by target, on the same rows.
    """
    parts = {
        t: (run[t].merged.correct, run[t].experts, control[t].experts, control[t].merged.correct)
        for t in targets
    }
    rows = [
        _row(number, t, parts[t], (run[t].merged.signature, control[t].merged.signature)) for t in targets
    ]
    if len(targets) > 1 and len({run[t].merged.ids for t in targets}) == 1:
        # By sentence, over the targets: its translations are not independent rows.
        means = [np.mean(column, axis=0) for column in zip(*parts.values(), strict=True)]
        rows.append(_row(number, EVERY, tuple(means), ("", "")))
    return rows


def _row(number: int, target: str, parts: tuple[Any, ...], signatures: tuple[str, str]) -> RoundRow:
    merged, experts, control_experts, control_merged = parts
    return RoundRow(
        round=number,
        target=target,
        merged=_mean(merged),
        experts=_mean(experts),
        control_experts=_mean(control_experts),
        control_merged=_mean(control_merged),
        over_experts=_difference(merged, experts),
        over_control_experts=_difference(merged, control_experts),
        over_control_merged=_difference(merged, control_merged),
        rows=len(merged),
        signature=signatures[0],
        control_signature=signatures[1],
    )


def _mean(correct: Any) -> float:
    return round(float(correct.mean()), 6)


def _difference(first: Any, second: Any) -> Difference:
    """In points, paired by row; with McNemar's test where both are single models."""
    if first.dtype == second.dtype == np.bool_:
        found = paired_difference(first, second)
        return Difference(found.points, found.low, found.high, found.p_value)
    points, interval = mean_interval(100 * (first.astype(np.float64) - second))
    return Difference(points, interval.low, interval.high)
