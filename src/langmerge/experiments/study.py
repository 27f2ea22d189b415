"""A sweep's cells as studies, one for each seed, with their verdicts."""

from collections.abc import Sequence

from langmerge.experiments.verdict import verdict
from langmerge.results.records import Outcome, Scored, Sweep
from langmerge.results.study import Row, Study


def studies_of(sweep: Sweep, outcomes: Sequence[Outcome], *, seconds: float) -> tuple[Study, ...]:
    """What was found, seed by seed.

    Args:
        sweep: what was asked for.
        outcomes: of its cells, in order; those that failed have no row.
        seconds: that the last call took.
    """
    return tuple(
        _study(sweep, int(seed), [one for one in outcomes if one.cell.seed == int(seed)], seconds)
        for seed in sweep.record["matrices"]
    )


def _study(sweep: Sweep, seed: int, outcomes: Sequence[Outcome], seconds: float) -> Study:
    rows = tuple(row_of(one) for one in outcomes if one.run is not None)
    grid = sweep.record["grid"]
    verdicts = [verdict(rows, target, mode) for target in grid["targets"] for mode in grid["modes"]]
    return Study(
        task=sweep.task,
        revision=sweep.revision,
        base=sweep.base,
        rows=rows,
        verdicts=tuple(one for one in verdicts if one is not None),
        matrix=sweep.record["matrices"][str(seed)],
        grid=grid,
        seconds=round(seconds, 1),
        seed=seed,
    )


def row_of(outcome: Outcome) -> Row:
    """A cell as reports have it.

    Raises:
        ValueError: it failed.
    """
    cell, run = outcome.cell, outcome.run
    if run is None:
        raise ValueError(f"a failed cell has no row: {outcome.reason}")
    scores: dict[str, Scored] = {one.split: one for one in run.scores}
    dev, test = scores["dev"], scores["test"]
    return Row(
        target=cell.target,
        kind=cell.kind,
        name=cell.name if cell.k or cell.kind == "first_source" else run.name,
        mode=cell.mode,
        k=cell.k,
        sources=run.sources,
        dev=round(dev.accuracy, 6),
        test=round(test.accuracy, 6),
        low=round(test.low, 6),
        high=round(test.high, 6),
        macro_f1=None if test.macro_f1 is None else round(test.macro_f1, 6),
        gain=outcome.gain,
        effect=outcome.effect,
        rows=test.rows,
        seed=cell.seed,
        signature=test.signature,
    )
