"""Evidence from a store: what the candidates have brought for other targets."""

from collections.abc import Iterable, Sequence

from langmerge.auto.evidence import Evidence
from langmerge.auto.options import options
from langmerge.errors import InputError
from langmerge.results.records import Outcome
from langmerge.results.study import Difference

WIDTH = 2 * 1.96
"""Standard errors in a 95 % interval."""


def evidence_of(gains: Iterable[tuple[str, Difference]], origin: str) -> dict[str, Evidence]:
    """Evidence by candidate, of those that have two gains or more.

    Args:
        gains: candidate and its gain over the single expert, one a cell.
        origin: where they come from.
    """
    points: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for name, gain in gains:
        points.setdefault(name, []).append(gain.points)
        errors.setdefault(name, []).append((gain.high - gain.low) / WIDTH)
    return {name: Evidence.of(own, errors[name], origin) for name, own in points.items() if len(own) > 1}


def cells_of(mode: str) -> dict[str, str]:
    """Name of a sweep's cell → the candidate that it is."""
    return {one.cell: one.name for one in options(mode, statistics=True, refines=False) if one.cell}


def evidence_from(
    outcomes: Sequence[Outcome], *, task: str, target: str, mode: str, origin: str
) -> dict[str, Evidence]:
    """What a store says of `auto`'s candidates for other targets than this one.

    Args:
        outcomes: of the store.
        task: only cells of this task count.
        target: the locale that is to be decided for.
        mode: ExcTar or IncTar.
        origin: how the store is called.

    Raises:
        InputError: it knows nothing of any candidate.
    """
    cells = cells_of(mode)
    gains = {
        one.cell.signature: (cells[one.cell.name], one.gain)
        for one in outcomes
        if one.run is not None and one.gain is not None and one.run.task == task
        and one.cell.kind == "merge" and one.cell.mode == mode and one.cell.name in cells and one.cell.target != target
    }  # fmt: skip
    found = evidence_of(gains.values(), origin)
    if not found:
        raise InputError(
            f"{origin} has no two cells of auto's candidates ({', '.join(cells)}) for other targets of {task}, {mode}: "
            "run a sweep like examples/deciding.yaml first"
        )
    return found
