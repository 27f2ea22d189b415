"""plan, merge."""

from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Json, Overwrite, Parameters, parameter_values, source_count
from langmerge.errors import InputError
from langmerge.locales import canonical_locale


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(plan)
    app.command()(merge)


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).", metavar="RECIPE")],
    as_json: Json = False,
) -> None:
    """What would be merged, how, and what is wrong with it; writes nothing."""
    from collections import Counter

    from langmerge.engine import make_plan
    from langmerge.recipe import Recipe

    made = make_plan(Recipe.load(recipe))
    counts = Counter((tensor.treatment, tensor.reason) for tensor in made.tensors)
    payload: dict[str, Any] = {
        "method": made.recipe.method,
        "parameters": dict(made.parameters),
        "coefficients": made.coefficients.values,
        "labels": made.labels,
        "label_rows_permuted": sorted(made.orders),
        "tensors": [vars(tensor) for tensor in made.tensors],
    }

    def people() -> None:
        numbers = made.coefficients.values["model"]
        print_table(
            f"{made.recipe.method} {dict(made.parameters)}",
            ["source", "coefficient"],
            [[s, f"{numbers[s]:.4f}"] for s in made.sources],
        )
        print_table(
            "",
            ["treatment", "tensors", "why"],
            [[t, str(n), why or "by the method"] for (t, why), n in counts.items()],
        )
        for source in sorted(made.orders):
            say(f"label rows of {source} will be put in order by name")

    show(as_json, payload, people)


def merge(
    first: Annotated[
        Path,
        typer.Argument(help="RECIPE, then OUT; or only OUT with --pool and --target.", metavar="[RECIPE]"),
    ],
    second: Annotated[Path | None, typer.Argument(help="The new folder.", metavar="OUT")] = None,
    pool: Annotated[
        Path | None, typer.Option(help="Merge experts of this pool, without a recipe file.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="With --pool: the locale to merge for.")] = None,
    method: Annotated[str, typer.Option(help="With --pool: the method.")] = "wudi",
    k: Annotated[str, typer.Option("-k", help="With --pool: how many sources, or all.")] = "5",
    by: Annotated[str, typer.Option(help="With --pool: how sources are scored.")] = "measured",
    include_target: Annotated[bool, typer.Option("--include-target", help="With --pool: IncTar.")] = False,
    weights: Annotated[str, typer.Option(help="With --pool: uniform, proportional or softmax.")] = "uniform",
    coefficients: Annotated[
        Path | None, typer.Option(help="With --pool: a coefficients file instead of a selection.")
    ] = None,
    parameters: Parameters = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Merge into a folder that from_pretrained loads: by a recipe, or by the experts of a pool."""
    from langmerge.engine import merge as run
    from langmerge.recipe import Recipe

    given = parameter_values(parameters)
    if pool is None:
        if second is None:
            raise InputError("merge needs RECIPE and OUT, or OUT with --pool and --target")
        recipe, out = Recipe.load(first), second
        if given:
            recipe = recipe.model_copy(update={"parameters": {**recipe.parameters, **given}})
    else:
        if second is not None:
            raise InputError(f"with --pool only OUT is given, not a recipe too: found {first} and {second}")
        out = first
        recipe = _pool_recipe(pool, target, by, k, include_target, weights, coefficients).model_copy(
            update={"method": method, "parameters": given}
        )
    run(recipe, out, overwrite=overwrite, progress=bars)
    import json

    receipt = json.loads((out / "langmerge.json").read_text())
    payload = {
        "out": str(out),
        "signature": receipt["signature"],
        "treatments": receipt["treatments"],
        "norm_ratio": receipt["norm_ratio"],
    }

    def people() -> None:
        say(
            f"{recipe.method} of {', '.join(recipe.sources)} written to {out} (signature {receipt['signature']})"
        )
        say(
            ", ".join(f"{count} {treatment}" for treatment, count in receipt["treatments"].items())
            + f"; delta norm ratio {receipt['norm_ratio']}"
        )

    show(as_json, payload, people)


def _pool_recipe(
    folder: Path, target: str | None, by: str, k: str, include_target: bool, weights: str, file: Path | None
) -> Any:
    from langmerge.coefficients import Coefficients
    from langmerge.pool import Pool
    from langmerge.recipe import Recipe
    from langmerge.selection import TransferMatrix, check_selector, select_sources

    opened = Pool.load(folder)
    locale = canonical_locale(target) if target else None
    if file is not None:
        chosen = Coefficients.load(file)
    elif locale is None:
        raise InputError("merge --pool needs --target, or --coefficients FILE")
    else:
        check_selector(by)
        matrix = TransferMatrix.load(folder / "transfer.dev.json")
        chosen = select_sources(
            matrix, locale, k=source_count(k), include_target=include_target, weights=weights
        ).coefficients
    return Recipe(
        base=opened.base_folder,
        sources={source: opened.expert(source) for source in chosen.sources},
        method="linear",
        coefficients=chosen,
        target=locale or chosen.target,
    )
