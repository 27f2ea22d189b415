"""Evidence from a store: what the candidates have brought for other targets."""

from collections.abc import Iterable, Sequence

import numpy as np

from langmerge.auto.evidence import Evidence
from langmerge.auto.options import options
from langmerge.errors import InputError
from langmerge.results.records import Outcome
from langmerge.results.study import Difference

WIDTH = 2 * 1.96
"""Standard errors in a 95 % interval."""


def evidence_of(gains: Iterable[tuple[str, str, Difference]], origin: str) -> dict[str, Evidence]:
    """Evidence by candidate, of those that have gains on two targets or more.

    Args:
        gains: candidate, target, and gain over the single expert; seeds of a target are averaged, they are no languages.
        origin: where they come from.
    """
    known: dict[str, dict[str, list[Difference]]] = {}
    for name, target, gain in gains:
        known.setdefault(name, {}).setdefault(target, []).append(gain)
    found = {}
    for name, targets in known.items():
        points = [float(np.mean([one.points for one in own])) for own in targets.values()]
        # As if seeds shared no row: less of the spread is then taken for noise.
        errors = [
            float(np.mean([(one.high - one.low) / WIDTH for one in own])) / len(own) ** 0.5
            for own in targets.values()
        ]
        if len(points) > 1:
            found[name] = Evidence.of(points, errors, origin)
    return found


def cells_of(mode: str) -> dict[str, str]:
    """Name of a sweep's cell → the candidate that it is."""
    return {one.cell: one.name for one in options(mode, statistics=True, refines=False) if one.cell}


def candidates(outcomes: Sequence[Outcome], mode: str, by: str = "measured") -> list[Outcome]:
    """Those outcomes that are merges which `auto` tries, of sources chosen by a selector, once each.

    Raises:
        InputError: two different ones stand for the same thing: pools, settings or numbers of sources are mixed.
    """
    cells, known = {_called(cell, by) for cell in cells_of(mode)}, dict[tuple[str, int, str], Outcome]()
    for one in outcomes:
        cell = one.cell
        if (
            one.run is None
            or one.gain is None
            or (cell.kind, cell.mode) != ("merge", mode)
            or cell.name not in cells
        ):
            continue
        other = known.setdefault((cell.target, cell.seed, cell.name), one)
        if other.run is not None and other.run.signature != one.run.signature:
            raise InputError(
                f"{cell.target}, seed {cell.seed}: the store has several cells called {cell.name} (other pools, settings or "
                "numbers of sources): name one sweep"
            )
    return list(known.values())


def _called(cell: str, by: str) -> str:
    """As sweeps call a cell whose sources were chosen so."""
    return cell if by == "measured" else f"{cell}, by {by}"


def evidence_from(
    outcomes: Sequence[Outcome], *, task: str, target: str, mode: str, origin: str, by: str = "measured"
) -> dict[str, Evidence]:
    """What a store says of `auto`'s candidates for other targets than this one.

    Args:
        outcomes: of the store, or of a sweep.
        task: only cells of this task count.
        target: the locale that is to be decided for.
        mode: ExcTar or IncTar.
        origin: how the store is called.
        by: how sources are chosen; where the store has no merges of such, those of sources chosen by labels stand in, and
            the origin says so.

    Raises:
        InputError: it knows nothing of any candidate, or mixes pools.
    """
    cells = cells_of(mode)
    own = [
        one for one in outcomes if one.run is not None and one.run.task == task and one.cell.target != target
    ]
    names = {_called(cell, by): name for cell, name in cells.items()}
    gains = [
        (names[o.cell.name], o.cell.target, o.gain) for o in candidates(own, mode, by) if o.gain is not None
    ]
    found = evidence_of(gains, origin)
    if not found and by != "measured":
        return evidence_from(
            outcomes, task=task, target=target, mode=mode, origin=f"{origin}, sources chosen by labels"
        )
    if not found:
        raise InputError(
            f"{origin} has no cells of auto's candidates ({', '.join(cells)}) for two other targets of {task}, {mode}: "
            "run a sweep like examples/deciding.yaml first"
        )
    return found
