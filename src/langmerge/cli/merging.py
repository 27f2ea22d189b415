"""plan, merge, verify."""

from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Json, Overwrite, Parameters, parameter_values, source_count, unread
from langmerge.errors import InputError, VerifyError
from langmerge.locales import canonical_locale


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(plan)
    app.command()(merge)
    app.command()(verify)


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).", metavar="RECIPE")],
    as_json: Json = False,
) -> None:
    """What would be merged, how, and what is wrong with it; writes nothing."""
    from collections import Counter

    from langmerge.engine.planning import load_recipe, make_plan

    made = make_plan(load_recipe(recipe))
    counts = Counter((tensor.treatment, tensor.reason) for tensor in made.tensors)
    payload: dict[str, Any] = {
        "method": made.method,
        "parameters": dict(made.parameters),
        "coefficients": made.coefficients.values if made.coefficients else None,
        "labels": made.labels,
        "label_rows_permuted": list(made.permuted),
        "vocabulary": dict(made.vocabulary),
        "statistics": {
            name: {"file": str(one.file), "kind": one.kind, "signature": one.signature}
            for name, one in made.statistics.items()
        },
        "tensors": [_tensor(tensor) for tensor in made.tensors],
    }

    def people() -> None:
        numbers = made.coefficients.values["model"] if made.coefficients else {}
        print_table(
            f"{made.method} {dict(made.parameters)}",
            ["source", "coefficient"],
            [[s, f"{numbers[s]:.4f}" if s in numbers else "by tensor"] for s in made.sources],
        )
        print_table(
            "",
            ["treatment", "tensors", "why"],
            [[t, str(n), why or "by the method"] for (t, why), n in counts.items()],
        )
        for source in made.permuted:
            say(f"label rows of {source} will be put in order by name")
        if made.statistics:
            kinds = {one.kind for one in made.statistics.values()}
            say(f"reads {', '.join(sorted(kinds))} of every source (--json names the files)")
        if made.vocabulary:
            say("vocabularies differ: rows of embeddings are matched by piece (--json has the report)")

    show(as_json, payload, people)


def _tensor(tensor: Any) -> dict[str, Any]:
    """One line of a plan."""
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "treatment": tensor.treatment,
        "reason": tensor.reason,
        "method": tensor.method,
        "parameters": dict(tensor.parameters),
        "weights": dict(zip(tensor.sources, tensor.weights, strict=False)),
    }


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
    method: Annotated[
        str | None,
        typer.Option(help="With --pool: the method; what --coefficients were learned for, else wudi."),
    ] = None,
    k: Annotated[
        str | None, typer.Option("-k", help="With --pool: how many sources, all, or auto.", show_default="5")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="With --pool: how sources are scored; see langmerge select --help.", show_default="measured"
        ),
    ] = None,
    include_target: Annotated[bool, typer.Option("--include-target", help="With --pool: IncTar.")] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="With --pool: uniform, proportional, softmax or sinkhorn.", show_default="uniform"),
    ] = None,
    coefficients: Annotated[
        Path | None, typer.Option(help="With --pool: a coefficients file instead of a selection.")
    ] = None,
    parameters: Parameters = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; all cores by default. Their number changes no byte.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="For methods that torch computes: cpu, cuda, cuda:1, …")
    ] = "cpu",
    shard: Annotated[float, typer.Option(min=0.001, help="Largest weight file, in GB.")] = 5.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Merge into a folder that from_pretrained loads: by a recipe (langmerge's or mergekit's), or by a pool's experts."""
    from langmerge.engine.execute import merge as run
    from langmerge.engine.planning import AnyRecipe, load_recipe
    from langmerge.recipe import Recipe

    recipe: AnyRecipe

    given = parameter_values(parameters)
    selection = {"-k": k, "--by": by, "--weights": weights, "--include-target": include_target or None}
    if pool is None:
        if second is None:
            raise InputError("merge needs RECIPE and OUT, or OUT with --pool and --target")
        unread(
            {"--target": target, "--method": method, "--coefficients": coefficients, **selection},
            "a recipe says it",
        )
        recipe, out = load_recipe(first), second
        if given and not isinstance(recipe, Recipe):
            raise InputError("-p is for langmerge's own recipes: a mergekit recipe holds its parameters")
        if given and isinstance(recipe, Recipe):
            recipe = recipe.model_copy(update={"parameters": {**recipe.parameters, **given}})
    else:
        if second is not None:
            raise InputError(f"with --pool only OUT is given, not a recipe too: found {first} and {second}")
        out = first
        if coefficients is not None:
            unread(selection, "--coefficients says it")
        made = _pool_recipe(
            pool, target, by or "measured", k or "5", include_target, weights or "uniform", coefficients
        )
        recipe = made.model_copy(update=_method(made, method, given))
    run(
        recipe,
        out,
        overwrite=overwrite,
        max_shard=int(shard * 1e9),
        threads=threads,
        device=device,
        progress=bars,
    )
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
            f"{receipt['method']} of {', '.join(receipt['hashes']['sources'])} written to {out} "
            f"(signature {receipt['signature']})"
        )
        say(
            ", ".join(f"{count} {treatment}" for treatment, count in receipt["treatments"].items())
            + f"; delta norm ratio {receipt['norm_ratio']}"
        )

    show(as_json, payload, people)


def verify(
    out: Annotated[Path, typer.Argument(help="A folder that langmerge merge wrote.", metavar="OUT")],
    sample: Annotated[int, typer.Option(min=1, help="How many tensors to compute again.")] = 16,
    everything: Annotated[bool, typer.Option("--all", help="All tensors.")] = False,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Compute a sample of a merged model's tensors again from its receipt, and compare byte by byte."""
    from langmerge.engine.verify import verify as run

    found = run(out, sample=None if everything else sample, seed=seed, progress=bars)
    show(
        as_json,
        found,
        lambda: say(
            f"{len(found.compared)} of {found.tensors} tensors computed again: {len(found.differing)} differ"
        ),
    )
    if not found.agrees:
        differing = [f"tensor {name!r} has other bytes" for name in found.differing]
        raise VerifyError(f"{out} is not what its receipt says: {'; '.join([*found.faults, *differing][:8])}")


def _method(recipe: Any, method: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The method asked for; or the one that the coefficients were learned for, with its parameters; or wudi."""
    learned = recipe.weights.provenance
    if method is None and isinstance(learned.get("method"), str):
        return {"method": learned["method"], "parameters": {**learned.get("parameters", {}), **given}}
    return {"method": method or "wudi", "parameters": given}


def _pool_recipe(
    folder: Path, target: str | None, by: str, k: str, include_target: bool, weights: str, file: Path | None
) -> Any:
    from langmerge.coefficients import Coefficients
    from langmerge.pool import Pool
    from langmerge.recipe import Recipe

    opened = Pool.load(folder)
    locale = canonical_locale(target) if target else None
    if file is not None:
        chosen = Coefficients.load(file)
    elif locale is None:
        raise InputError("merge --pool needs --target, or --coefficients FILE")
    else:
        from langmerge.choosing import Wish, choose
        from langmerge.similarities import PoolSelectors

        wish = Wish(locale, by, "auto" if k == "auto" else source_count(k), include_target, weights)
        chosen = choose(PoolSelectors(opened, progress=bars), wish).selection.coefficients
    extra = {name: Path(folder) for name, folder in chosen.provenance.get("extra", {}).items()}
    return Recipe(
        base=opened.base_folder,
        sources={s: extra[s] if s in extra else opened.expert(s) for s in chosen.sources},
        method="linear",
        coefficients=chosen,
        target=locale or chosen.target,
    )
