"""select."""

from pathlib import Path
from typing import Annotated

import typer

from langmerge.cli.console import print_table, say, show
from langmerge.cli.options import Json, PoolArgument, source_count
from langmerge.locales import canonical_locale


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(select)


def select(
    pool: PoolArgument,
    target: Annotated[str, typer.Option(help="The locale to merge for.")],
    by: Annotated[str, typer.Option(help="How sources are scored: measured.")] = "measured",
    k: Annotated[
        str, typer.Option("-k", help="How many sources, or all; the target's expert counts in IncTar.")
    ] = "5",
    include_target: Annotated[
        bool, typer.Option("--include-target", help="IncTar: the target's own expert and the best others.")
    ] = False,
    weights: Annotated[str, typer.Option(help="uniform, proportional or softmax.")] = "uniform",
    temperature: Annotated[float, typer.Option(help="Of softmax, in accuracy.")] = 0.1,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the coefficients here.")] = None,
    as_json: Json = False,
) -> None:
    """Choose sources for a target by how well each does on it (dev), and weight them."""
    from langmerge.pool import Pool
    from langmerge.selection import TransferMatrix, check_selector, select_sources

    check_selector(by)
    matrix = TransferMatrix.load(Pool.load(pool).root / "transfer.dev.json")
    chosen = select_sources(
        matrix,
        canonical_locale(target),
        k=source_count(k),
        include_target=include_target,
        weights=weights,
        temperature=temperature,
    )
    if out is not None:
        chosen.coefficients.save(out)

    def people() -> None:
        numbers = chosen.coefficients.values["model"]
        rows = [
            [source, f"{100 * score:.1f}", f"{numbers[source]:.4f}"]
            for source, score in chosen.scores.items()
        ]
        print_table(
            f"sources for {chosen.target}, by dev accuracy on it",
            ["source", "accuracy %", "coefficient"],
            rows,
        )
        if out is not None:
            say(f"coefficients written to {out}")

    show(as_json, chosen.coefficients, people)
