"""What a store holds, over seeds: lines of cells that differ in target and seed alone, and two of them compared in pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.errors import InputError, MissingExtraError, OutputError
from langmerge.experiments.study import row_of
from langmerge.files import replaced
from langmerge.results.records import Cell, Outcome
from langmerge.results.study import KINDS, SINGLE_EXPERTS, Difference, Kind
from langmerge.tasks import seeded_interval

FORMATS = (".csv", ".parquet", ".tex")


@dataclass(frozen=True)
class Line:
    """One method with one number of sources on one target, over seeds.

    Attributes:
        target: the locale.
        mode: ExcTar or IncTar.
        title: method, parameters, selector and number of sources.
        kind: a merge, or which reference.
        k: number of sources; 0 for single experts.
        seeds: of the training.
        dev: mean accuracy on dev, in [0, 1].
        test: mean accuracy on test.
        gain: over the cells' references, in points; of one seed its own interval, of several one over rows and seeds,
            None where the references' rows are not known.
    """

    target: str
    mode: str
    title: str
    kind: Kind
    k: int
    seeds: tuple[int, ...]
    dev: float
    test: float
    gain: Difference | None


def title(cell: Cell) -> str:
    """How a cell is called where no other in its target, mode and seed is called so."""
    return f"{cell.name}, k={cell.k}" if cell.k else cell.name


def lines(outcomes: Sequence[Outcome]) -> list[Line]:
    """All that is done, by target and mode, and there by test accuracy, best first."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in outcomes:
        if one.run is not None:
            groups.setdefault((one.cell.target, one.cell.mode, title(one.cell)), []).append(one)
    found = [_line(*key, own, outcomes) for key, own in groups.items()]
    return sorted(found, key=lambda line: (line.target, line.mode, -line.test, line.title))


def _line(target: str, mode: str, name: str, own: Sequence[Outcome], among: Sequence[Outcome]) -> Line:
    own = _one_a_seed(own, name)
    rows = [row_of(one) for one in own]
    gain = own[0].gain
    if len(own) > 1 and gain is not None:
        against = "self" if mode == "IncTar" else "best_zero_shot"
        reference = [one for one in among if (one.cell.target, one.cell.kind) == (target, against)]
        gain = _over_seeds(own, reference)
    return Line(
        target, mode, name, own[0].cell.kind, own[0].cell.k, tuple(sorted({row.seed for row in rows})),
        float(np.mean([row.dev for row in rows])), float(np.mean([row.test for row in rows])), gain,
    )  # fmt: skip


def one_task(outcomes: Sequence[Outcome]) -> None:
    """Raise InputError where cells are of several tasks: these share locales and row ids, and no number."""
    tasks = {(one.run.task, one.run.revision) for one in outcomes if one.run is not None}
    if len(tasks) > 1:
        names = ", ".join(f"{task} ({revision})" for task, revision in sorted(tasks))
        raise InputError(f"the cells are of several tasks, {names}: name sweeps of one with --sweep")


def _one_a_seed(own: Sequence[Outcome], name: str) -> list[Outcome]:
    """Each target and seed once. Cells of two pools that share a seed are no two draws of one thing."""
    known: dict[tuple[str, int], Outcome] = {}
    one_task(own)
    for one in own:
        other = known.setdefault((one.cell.target, one.cell.seed), one)
        if one.run is not None and other.run is not None and other.run.signature != one.run.signature:
            raise InputError(
                f"{one.cell.target}, {one.cell.mode}, seed {one.cell.seed}: several cells are called {name!r} (other pools, "
                "other settings): name one sweep with --sweep"
            )
    return list(known.values())


def _over_seeds(first: Sequence[Outcome], second: Sequence[Outcome]) -> Difference | None:
    cells = _differences(first, second)
    if len(cells) < len(first):
        return None
    points, interval = seeded_interval(cells)
    return Difference(points, interval.low, interval.high)


def _differences(
    first: Sequence[Outcome], second: Sequence[Outcome]
) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
    """100 · (right − right) of each test row, where both have a target and seed, on the same rows."""
    others = {(one.cell.target, one.cell.seed): _right(one) for one in second}
    found = {}
    for one in first:
        place = (one.cell.target, one.cell.seed)
        own, other = _right(one), others.get(place)
        if own is None or other is None:
            continue
        if own[0] != other[0]:
            raise InputError(f"{place[0]}, seed {place[1]}: the two were tested on other rows")
        found[place] = 100.0 * (own[1].astype(float) - other[1])
    return found


def _right(outcome: Outcome) -> tuple[str, np.ndarray[Any, Any]] | None:
    scores = {one.split: one for one in outcome.run.scores} if outcome.run else {}
    correct = scores["test"].correct if "test" in scores else None
    return None if correct is None else (scores["test"].ids, correct)


@dataclass(frozen=True)
class Comparison:
    """Two lines over all targets and seeds that both have.

    Attributes:
        first: title.
        second: title.
        targets: target → difference in points, over its seeds.
        over_all: mean over targets.
        seeds: how many seeds took part, by target.
    """

    first: str
    second: str
    targets: dict[str, Difference]
    over_all: Difference
    seeds: dict[str, int]


def compare(outcomes: Sequence[Outcome], first: str, second: str, *, mode: str | None = None) -> Comparison:
    """First minus second, paired over test rows, with a bootstrap over rows and seeds.

    Args:
        outcomes: of a store.
        first: title of a line, or a method that has one number of sources only.
        second: another.
        mode: where a title has lines in both.

    Raises:
        InputError: there is no such line, or several; or they share no target and seed.
    """
    one, other = (_one_a_seed(_named(outcomes, name, mode), name) for name in (first, second))
    cells = _differences(one, other)
    if not cells:
        raise InputError(f"{first} and {second} share no target and seed whose rows are known one by one")
    by_target: dict[str, dict[tuple[str, int], np.ndarray[Any, Any]]] = {}
    for (target, seed), values in cells.items():
        by_target.setdefault(target, {})[target, seed] = values

    def difference(own: dict[tuple[str, int], np.ndarray[Any, Any]]) -> Difference:
        points, interval = seeded_interval(own)
        return Difference(points, interval.low, interval.high)

    return Comparison(
        title(one[0].cell), title(other[0].cell), {target: difference(own) for target, own in by_target.items()},
        difference(cells), {target: len(own) for target, own in by_target.items()},
    )  # fmt: skip


def _named(outcomes: Sequence[Outcome], name: str, mode: str | None) -> list[Outcome]:
    own = [one for one in outcomes if one.run is not None]
    exact = [one for one in own if title(one.cell) == name]
    found = exact or [one for one in own if one.cell.name == name or one.cell.kind == name]
    lines = {(title(one.cell), one.cell.mode) for one in found if one.cell.k}
    if mode is not None and lines:
        found = [one for one in found if one.cell.mode == mode]
        lines = {line for line in lines if line[1] == mode}
    if not found:
        known = sorted({title(one.cell) for one in own})
        raise InputError(
            f"the store has no {name!r}{f' in {mode}' if mode else ''}: it has {'; '.join(known) or 'nothing'}"
        )
    if len(lines) > 1:
        said = "; ".join(f"{line} ({where})" for line, where in sorted(lines))
        raise InputError(f"{name!r} may be several: {said}. Give one, and --mode where both modes have it")
    return found


def export(outcomes: Sequence[Outcome], path: Path, *, overwrite: bool = False) -> int:
    """What is done, as CSV or Parquet (a row for every cell) or as a LaTeX table (methods × targets); gives the cells' number.

    Raises:
        InputError: another ending.
        OutputError: the file exists, and is not to be replaced.
        MissingExtraError: pandas is not installed.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path} ends with {path.suffix or 'nothing'}: give one of {', '.join(FORMATS)}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another place, or say --overwrite")
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingExtraError("pandas", extra="export", needed_for=f"writing {path.suffix}") from error
    table = pd.DataFrame([_flat(one) for one in outcomes if one.run is not None])
    with replaced(path) as place:
        if path.suffix == ".csv":
            table.to_csv(place, index=False)
        elif path.suffix == ".parquet":
            table.to_parquet(place, index=False)
        else:
            place.write_text(_latex(pd, lines(outcomes)), encoding="utf-8")
    return len(table)


def _latex(pd: Any, found: Sequence[Line]) -> str:
    """Test accuracy in %, methods × targets, with the mean where no target is missing; single experts by what they are."""
    rows = [
        {"mode": line.mode, "method": KINDS[line.kind] if line.kind in SINGLE_EXPERTS else line.title, "target": line.target,
         "test": 100 * line.test}
        for line in found
    ]  # fmt: skip
    table = pd.DataFrame(rows).pivot_table(index=["mode", "method"], columns="target", values="test")
    table["mean"] = table.mean(axis=1, skipna=False)
    text: str = table.reset_index().to_latex(index=False, escape=True, float_format="%.1f", na_rep="--")
    return text


def _flat(outcome: Outcome) -> dict[str, Any]:
    row, run = row_of(outcome), outcome.run
    found: dict[str, Any] = {
        "target": row.target, "mode": row.mode, "kind": row.kind, "name": row.name, "selector": outcome.cell.selector,
        "k": row.k, "seed": row.seed, "sources": " ".join(row.sources), "method": run and run.method,
        "dev": row.dev, "test": row.test, "low": row.low, "high": row.high, "macro_f1": row.macro_f1, "rows": row.rows,
    }  # fmt: skip
    for name, own in (("gain", row.gain), ("effect", row.effect)):
        for part in ("points", "low", "high", "p_value"):
            found[f"{name}_{part}"] = None if own is None else getattr(own, part)
    return {**found, "seconds": outcome.seconds, "task": run and run.task, "revision": run and run.revision,
            "cell": outcome.cell.signature, "run": run and run.signature, "signature": row.signature}  # fmt: skip
