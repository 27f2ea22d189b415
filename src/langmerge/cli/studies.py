"""demo, sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Data, Json

SINGLE = ("best_zero_shot", "best_in_hindsight", "self")
NAMES = {
    "best_zero_shot": "{name}: best zero-shot (chosen on dev)",
    "best_in_hindsight": "{name}: best source in hindsight (no choice)",
    "self": "{name}: self (trained on the target)",
}


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
    (out / "report.html").write_text(page(study))
    (out / "results.md").write_text(markdown(study))
    show(as_json, study, lambda: _people(study, out))


def _people(study: Any, out: Path) -> None:
    """The tables of a study, its verdicts, and where the rest is."""
    header = ["model", "k", "test %", "95 %", "gain, points", "merging effect", "signature"]
    for target, mode in dict.fromkeys((verdict.target, verdict.mode) for verdict in study.verdicts):
        own = [row for row in study.rows if row.target == target and (row.mode == mode or row.kind in SINGLE)]
        own.sort(key=lambda row: -row.test)
        rows = [
            [
                NAMES.get(row.kind, "{name}").format(name=row.name),
                str(row.k or ""),
                f"{100 * row.test:.1f}",
                f"{100 * row.low:.1f}–{100 * row.high:.1f}",
                str(row.gain or ""),
                str(row.effect or ""),
                row.signature,
            ]
            for row in own
        ]
        print_table(f"{target}, {mode}, {own[0].rows} test rows, seed {own[0].seed}", header, rows)
    for verdict in study.verdicts:
        say(verdict.text)
    say(
        "gain: against the best zero-shot source chosen on dev (ExcTar) or self (IncTar); merging effect: against the mean of the sources"
    )
    say(f"page: {out / 'report.html'}   rows: {out / 'study.json'}   took {study.seconds:.0f} s")
