"""demo, sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Data, Json

ONLY_ON_PAGE = ("dev %", "macro-F1 %", "sources")


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

    _run(DEMO_GRID, out, None, as_json)


def sweep(
    grid: Annotated[Path, typer.Argument(help="Grid file (YAML).", metavar="GRID")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Where base, experts, results and page go; a second run goes on from there."
        ),
    ],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train, measure, select, merge and judge what a grid file says; resumes exactly."""
    from langmerge.experiments import Grid

    _run(Grid.load(grid), out, data, as_json)


def _run(grid: Any, out: Path, data: Path | None, as_json: bool) -> None:
    from langmerge.errors import OutputError
    from langmerge.experiments import run_study
    from langmerge.report import markdown, page

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file, not a folder: choose another place with --out")
    study = run_study(grid, out, data=data, progress=bars)
    (out / "report.html").write_text(page(study), encoding="utf-8")
    (out / "results.md").write_text(markdown(study), encoding="utf-8")
    show(as_json, study, lambda: _people(study, out))


def _people(study: Any, out: Path) -> None:
    """The tables of a study without the columns that only its page has room for, and its verdicts."""
    from langmerge.report import standing_table, standings

    for standing in standings(study):
        table = standing_table(standing)
        shown = [i for i, column in enumerate(table.columns) if column.name not in ONLY_ON_PAGE]
        print_table(
            table.title,
            [table.columns[i].name for i in shown],
            [[row[i] for i in shown] for row in table.rows],
        )
    for verdict in study.verdicts:
        say(verdict.text)
    say(
        f"page: {out / 'report.html'}   tables: {out / 'results.md'}   rows: {out / 'study.json'}   took {study.seconds:.0f} s"
    )
