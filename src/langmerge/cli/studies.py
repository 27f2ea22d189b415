"""demo, sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Data, Json

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
    say(
        "gain: over the best zero-shot source chosen on dev (ExcTar) or self (IncTar); merging effect: over the sources' mean"
    )
    say(
        f"page: {out / 'report.html'}   tables: {out / 'results.md'}   rows: {out / 'study.json'}   took {study.seconds:.0f} s"
    )
