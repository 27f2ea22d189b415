"""learn fisher, learn gram."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langmerge.cli.console import bars, print_table, say, show, tell
from langmerge.cli.options import (
    Data,
    Json,
    Overwrite,
    Parameters,
    PoolArgument,
    locale_list,
    parameter_values,
    source_count,
)
from langmerge.locales import canonical_locale

if TYPE_CHECKING:
    from langmerge.measuring import Measured, Measurement
    from langmerge.pool import Pool

Target = Annotated[str, typer.Option(help="The locale to merge for.")]
Sources = Annotated[
    str | None, typer.Option(help="Experts of the pool, by commas, instead of a selection; all count alike.")
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the statistics and a recipe.yaml.")]
By = Annotated[str, typer.Option(help="How sources are scored; see langmerge select --help.")]
Count = Annotated[str, typer.Option("-k", help="How many sources, all, or auto.")]
Weights = Annotated[str, typer.Option(help="uniform, proportional, softmax or sinkhorn.")]
IncTar = Annotated[bool, typer.Option("--include-target", help="IncTar.")]
Text = Annotated[
    str,
    typer.Option(
        help="target: the target's train text, without labels. source: each source's own train text."
    ),
]
Rows = Annotated[int, typer.Option(min=1, help="At most so many texts of each locale.")]


def fisher(
    pool: PoolArgument,
    target: Target,
    out: Out,
    sources: Sources = None,
    by: By = "measured",
    k: Count = "5",
    weights: Weights = "uniform",
    include_target: IncTar = False,
    text: Text = "target",
    rows: Rows = 256,
    kind: Annotated[
        str,
        typer.Option(
            help="sampled: squared gradients at labels drawn from the prediction. exact: over all labels, weighted. "
            "empirical: at the given labels (with --text source)."
        ),
    ] = "sampled",
    seed: Annotated[int, typer.Option(min=0, help="Of sampled.")] = 0,
    data: Data = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Diagonal Fisher of every source, for langmerge merge FOLDER/recipe.yaml. Goes on where it stopped."""
    from langmerge.measuring import measure_fishers
    from langmerge.pool import Pool
    from langmerge.tasks import load_task

    opened = Pool.load(pool)
    wanted = _wanted(opened, target, sources, by, k, weights, include_target, text, rows, data)
    task = load_task(opened.task, data=data)
    made = measure_fishers(
        opened, task, wanted, out, kind=kind, seed=seed, overwrite=overwrite, progress=bars
    )
    _show(made, as_json)


def gram(
    pool: PoolArgument,
    target: Target,
    out: Out,
    sources: Sources = None,
    by: By = "measured",
    k: Count = "5",
    weights: Weights = "uniform",
    include_target: IncTar = False,
    text: Text = "target",
    rows: Rows = 256,
    plus: Annotated[
        bool,
        typer.Option(
            "--plus",
            help="RegMean++: inputs of each source's layer come through the merged layers before it.",
        ),
    ] = False,
    head_only: Annotated[
        bool,
        typer.Option(
            "--head-only", help="The head's Gram alone, for a recipe's head: regmean (small files)."
        ),
    ] = False,
    parameters: Parameters = None,
    data: Data = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Grams of every source's layer inputs, for langmerge merge FOLDER/recipe.yaml (RegMean). Goes on where it stopped."""
    from langmerge.measuring import measure_grams
    from langmerge.pool import Pool
    from langmerge.tasks import load_task

    opened = Pool.load(pool)
    wanted = _wanted(opened, target, sources, by, k, weights, include_target, text, rows, data)
    made = measure_grams(
        opened,
        load_task(opened.task, data=data),
        wanted,
        out,
        plus=plus,
        head_only=head_only,
        parameters=parameter_values(parameters),
        overwrite=overwrite,
        progress=bars,
    )
    _show(made, as_json)


def _wanted(
    pool: "Pool",
    target: str,
    sources: str | None,
    by: str,
    k: str,
    weights: str,
    include_target: bool,
    text: str,
    rows: int,
    data: Path | None,
) -> "Measurement":
    from langmerge.measuring import Measurement

    locale = canonical_locale(target)
    if sources is not None:
        from langmerge.coefficients import Coefficients

        return Measurement(Coefficients.uniform(locale_list(sources), target=locale), locale, text, rows)
    from langmerge.choosing import Wish, choose
    from langmerge.similarities import PoolSelectors

    wish = Wish(locale, by, "auto" if k == "auto" else source_count(k), include_target, weights)
    chosen = choose(PoolSelectors(pool, data=data, progress=bars), wish).selection
    return Measurement(chosen.coefficients, locale, text, rows)


def _show(made: "Measured", as_json: bool) -> None:
    for note in made.notes:
        tell(f"note: {note}")

    def people() -> None:
        rows = [
            [source, f"{file.stat().st_size / 1e6:.1f}", "kept" if source in made.kept else "made"]
            for source, file in made.files.items()
        ]
        print_table("statistics", ["source", "MB", ""], rows)
        say(f"peak memory {made.peak / 1e9:.2f} GB; merge with: langmerge merge {made.recipe} OUT")

    show(as_json, made, people)
