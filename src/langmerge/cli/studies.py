"""demo, sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Data, Json, Store

NAMES = {
    "best_zero_shot": "best zero-shot: {name}",
    "best_in_hindsight": "best in hindsight: {name} (no choice)",
    "self": "self: {name}",
}
"""How the experts among the rows are called; everything else has a name of its own."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(demo)
    app.command()(sweep)


def demo(
    out: Annotated[
        Path, typer.Option(help="Where base, experts, results and page go; a second run goes on from there.")
    ] = Path("demo"),
    as_json: Json = False,
) -> None:
    """The whole story on the embedded corpus: train, measure, select, merge, compare, judge. Needs no download."""
    from langmerge.experiments import DEMO_GRID

    _run(DEMO_GRID, out, None, as_json, name="demo")


def sweep(
    grid: Annotated[Path, typer.Argument(help="Grid file (YAML).", metavar="GRID")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Where base, experts, logits and pages go; a second run goes on from there."
        ),
    ],
    store: Store = None,
    name: Annotated[
        str | None, typer.Option(help="How the store calls it; the file's name by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost, and do nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try cells again that have failed.")
    ] = False,
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models", help="Write every merge as a model into OUT/models, by its cell's signature."
        ),
    ] = False,
    executor: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster that sees OUT; without it one is started here.")
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="With ray: GPUs of a cell, 0.5 for two cells on one.")
    ] = 0.0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train, measure, select, merge and judge what a grid file says; resumes exactly."""
    from langmerge.experiments import Grid, Workers, estimate

    workers = Workers(executor, ray_address, gpus)
    read = Grid.load(grid)
    _check_out(out)
    if dry_run:
        with opened(store, out, write=False) as kept:
            found = estimate(read, out, store=kept, data=data, retry=retry_failed)
        show(as_json, found, lambda: _costs(found))
        return
    _run(
        read, out, data, as_json, store=store, name=name or grid.stem, workers=workers, retry=retry_failed,
        keep_models=keep_models,
    )  # fmt: skip


def _check_out(out: Path) -> None:
    from langmerge.errors import OutputError

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file, not a folder: choose another place with --out")


@contextmanager
def opened(store: str | None, out: Path | None = None, *, write: bool = True) -> Iterator[Any]:
    """The store that was asked for, or that in a sweep's folder; None where nothing is to be written and none is there."""
    from langmerge.results.store import STORE
    from langmerge.results.store import Store as Opened

    place: str | Path = store if store is not None else (out or Path()) / STORE
    if not write and "://" not in str(place) and not Path(place).exists():
        yield None
        return
    with Opened(place) as found:
        yield found


def _costs(found: Any) -> None:
    from langmerge.report.words import duration

    for seed, missing in found.untrained.items():
        say(f"seed {seed}: {len(missing)} experts to train and measure: {', '.join(missing)}")
    say(
        f"{found.cells} cells: {found.done} done, {found.failed} failed, {found.due} to do; "
        f"--keep-models would write {found.unwritten} models"
    )
    costs = {"training": found.training, "measuring": found.measuring, "cells": found.filling}
    due = {name: cost for name, cost in costs.items() if cost.seconds}
    for name, cost in due.items():
        by = "a few rows tried here" if cost.tried else "what others took"
        say(f"{name}: about {duration(cost.seconds)}, by {by}")
    if due:
        say(f"about {duration(sum(cost.seconds for cost in due.values()))} in all, one after the other")


def _run(
    grid: Any, out: Path, data: Path | None, as_json: bool, *, store: str | None = None, **how: Any
) -> None:
    from langmerge.experiments import run_sweep
    from langmerge.report import markdown, page

    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    with opened(store, out) as kept:
        found = run_sweep(grid, out, store=kept, data=data, progress=bars, **how)
    for study in found.studies:
        end = "" if len(found.studies) == 1 else f"-{study.seed}"
        (out / f"report{end}.html").write_text(page(study), encoding="utf-8")
        (out / f"results{end}.md").write_text(markdown(study), encoding="utf-8")
    show(as_json, found, lambda: _summary(found, out))


def _summary(found: Any, out: Path) -> None:
    for study in found.studies:
        _people(study)
    for one in found.failed:
        say(f"FAILED: {one.cell.target}, {one.cell.mode}, {one.cell.name}, k={one.cell.k}: {one.reason}")
    for cell, reason in found.unwritten.items():
        say(f"NOT WRITTEN: the model of cell {cell}: {reason}")
    say(
        "gain: over the best zero-shot source chosen on dev (ExcTar) or self (IncTar); merging effect: over the sources' mean"
    )
    cells = found.found + found.filled
    failed = f", {len(found.failed)} failed (--retry-failed tries them again)" if found.failed else ""
    say(f"{cells} cells, {found.found} of them found{failed}; took {found.seconds:.0f} s; all in {out}")


def _people(study: Any) -> None:
    """The verdicts and a short table for each target; macro-F1, sources and signatures are on the page."""
    from langmerge.report import standings

    for standing in standings(study):
        rows = []
        for row in sorted(standing.rows, key=lambda row: (-row.test, row.name, row.k)):
            interval = f"{100 * row.test:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
            gain = "reference" if row is standing.reference else str(row.gain or "")
            name = NAMES.get(row.kind, "{name}").format(name=row.name)
            rows.append(
                [
                    f"{name} *" if standing.is_chosen(row) else name,
                    str(row.k or ""),
                    interval,
                    gain,
                    str(row.effect or ""),
                ]
            )
        first = standing.rows[0]
        title = f"{standing.target}, {standing.mode}: {first.rows} test rows, training seed {first.seed}"
        print_table(
            title,
            [
                "* best merge on dev",
                "k",
                "test %, 95 %",
                "gain, points, 95 %",
                "merging effect, points, 95 %",
            ],
            rows,
        )
    for verdict in study.verdicts:
        say(verdict.text)
