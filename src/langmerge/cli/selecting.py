"""similarity, select, estimate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import (
    Data,
    Json,
    Limit,
    PoolArgument,
    locale_list,
    named_numbers,
    source_count,
)
from langmerge.errors import InputError
from langmerge.locales import canonical_locale

if TYPE_CHECKING:
    from langmerge.choosing import Choice, Compared
    from langmerge.selection import SimilarityMatrix
    from langmerge.similarities import PoolSelectors

By = Annotated[
    str,
    typer.Option(
        help="How sources are scored: measured (needs labels of the target), typology, strength, composite, agreement, "
        "representation, delta (needs the target's expert), manual."
    ),
]
Features = Annotated[
    str | None,
    typer.Option(
        help="Weights of typology's feature sets: syntax=1,family=0.5 (also phonology, inventory, geography)."
    ),
]
How = Annotated[str, typer.Option("--how", help="How representation compares: cka or cosine.")]
Page = Annotated[
    Path | None,
    typer.Option("--html", help="Write a page with heat map, dendrogram and map of languages here."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(similarity)
    app.command()(select)
    app.command()(estimate)


def similarity(
    pool: Annotated[
        Path | None, typer.Argument(help="The pool's folder; or none, with --locales.", metavar="[POOL]")
    ] = None,
    by: By = "typology",
    locales: Annotated[
        str | None,
        typer.Option(help="Languages: the targets of a pool; without a pool all pairs (by typology)."),
    ] = None,
    features: Features = None,
    how: How = "cka",
    limit: Limit = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the matrix here (JSON).")] = None,
    html: Page = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """How good each source looks for each target, by one selector."""
    from langmerge.selection import typology

    if features and by != "typology":
        raise InputError(f"--features weighs what typology is made of, and --by is {by}: leave it out")
    weights = named_numbers(features, "--features") if features else None
    if pool is None:
        if by != "typology" or locales is None:
            raise InputError(
                "without a pool give --locales, and --by typology: the other selectors need experts"
            )
        names = [part.strip() for part in locales.split(",") if part.strip()]
        if not names:
            raise InputError("--locales is empty: give languages, like sw-KE,Welsh,deu")
        found = typology(names, names, weights)
    else:
        selectors = _selectors(pool, data, features, how, limit)
        targets = locale_list(locales) if locales else list(selectors.pool.locales)
        found = selectors.matrix(by, targets)
    if html is not None:
        from langmerge.files import replace_text
        from langmerge.report.languages import languages_page

        replace_text(html, languages_page(found))
    if out is not None:
        found.save(out)

    def people() -> None:
        rows = [
            [source, *("–" if value != value else f"{value:.3f}" for value in row)]
            for source, row in zip(found.sources, found.values.tolist(), strict=True)
        ]
        print_table(f"{found.by}: source (row) for target (column)", ["source", *found.targets], rows)
        _print_missing(found)
        for path in filter(None, (out, html)):
            say(f"written to {path}")

    show(as_json, found.payload(), people)


def select(
    pool: PoolArgument,
    target: Annotated[str, typer.Option(help="The locale to merge for.")],
    by: By = "measured",
    k: Annotated[
        str | None,
        typer.Option(
            "-k",
            help="How many sources, all, or auto; the target's expert counts in IncTar. 5, or with manual all.",
        ),
    ] = None,
    include_target: Annotated[
        bool, typer.Option("--include-target", help="IncTar: the target's own expert and the best others.")
    ] = False,
    weights: Annotated[str, typer.Option(help="uniform, proportional, softmax or sinkhorn.")] = "uniform",
    temperature: Annotated[
        float | None,
        typer.Option(help="Of softmax and sinkhorn, in the unit of the scores (0.1; composite: 1)."),
    ] = None,
    own: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="IncTar: the share of the target's own expert; --weights share out the rest."
        ),
    ] = None,
    joint: Annotated[
        str,
        typer.Option(
            help="rank: the best singles. greedy: the set whose soft vote is best on the target's dev labels. "
            "diverse: good and unlike each other."
        ),
    ] = "rank",
    trade: Annotated[
        float, typer.Option(min=0, max=1, help="With diverse: 1 looks at scores alone, 0 at likeness alone.")
    ] = 0.5,
    scores: Annotated[
        str | None, typer.Option(help="With --by manual: de-DE=0.7,fr-FR=0.5.", metavar="LOCALE=NUMBER,…")
    ] = None,
    features: Features = None,
    how: How = "cka",
    limit: Limit = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="All selectors side by side; nothing is written.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="For each source every score, its rank, and why it is in or out."),
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the coefficients here.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Choose sources for a target, and weight them."""
    from langmerge.choosing import Wish, choose, compared

    if features and by != "typology" and not (compare or explain):
        raise InputError(f"--features weighs what typology is made of, and --by is {by}: leave it out")
    if own is not None and not include_target:
        raise InputError("--own is the share of the target's own expert: say --include-target too")
    selectors = _selectors(pool, data, features, how, limit)
    wish = Wish(
        target=canonical_locale(target),
        by=by,
        k="auto" if k == "auto" else source_count(k or ("all" if by == "manual" else "5")),
        include_target=include_target,
        weights=weights,
        temperature=temperature,
        joint=joint,
        trade=trade,
        scores=named_numbers(scores, "--scores") if scores else None,
        own=own,
    )
    if compare:
        if out is not None:
            raise InputError(
                "--compare shows what every selector would choose; choose one with --by to write -o"
            )
        table = compared(selectors, wish)
        show(as_json, table.payload(), lambda: _print_compared(table))
        return
    chosen = choose(selectors, wish)
    others = compared(selectors, wish) if explain else None
    if out is not None:
        chosen.selection.coefficients.save(out)
    payload = chosen.selection.coefficients.model_dump(mode="json")
    if others is not None:
        payload["explained"] = chosen.explained(others)

    def people() -> None:
        _print_choice(chosen)
        if others is not None:
            _print_explained(chosen, others)
        if out is not None:
            say(f"coefficients written to {out}")

    show(as_json, payload, people)


def estimate(
    pool: PoolArgument,
    target: Annotated[
        str | None,
        typer.Option(help="Locale without labels. Without it: every locale of the pool, against the truth."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="entropy, confidence, atc, agreement_line, agreement; or all.")
    ] = "all",
    limit: Limit = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a calibration plot here.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Accuracy of every expert on a target without labels; or how wrong such estimates are on this pool."""
    from dataclasses import asdict

    from langmerge.estimates import calibration, estimated
    from langmerge.selection.label_free import ESTIMATORS

    selectors = _selectors(pool, data, None, "cka", limit)
    hows = list(ESTIMATORS) if by == "all" else [part.strip() for part in by.split(",")]
    known = target is None
    if html is not None and not known:
        raise InputError("a calibration plot needs the truth: leave --target out")
    targets = list(selectors.pool.locales) if target is None else [canonical_locale(target)]
    found = estimated(selectors, targets, hows, with_truth=known)
    errors = calibration(found) if known else []
    if html is not None:
        from langmerge.files import replace_text
        from langmerge.report.languages import calibration_page

        replace_text(html, calibration_page(found, errors))
    payload = {"estimates": [asdict(one) for one in found], "calibration": [asdict(one) for one in errors]}

    def people() -> None:
        if known:
            rows = [
                [
                    one.how,
                    f"{one.mean_absolute_error:.1f}",
                    f"{one.low:.1f}–{one.high:.1f}",
                    f"{one.bias:+.1f}",
                ]
                for one in errors
            ]
            title = f"error of label-free estimates on dev, points, over {len(targets)} targets"
            print_table(title, ["estimate", "mean absolute error", "95 %", "bias"], rows)
        else:
            table = {(one.expert, one.how): one.estimated for one in found}
            experts = list(dict.fromkeys(one.expert for one in found))
            experts.sort(key=lambda expert: (-table[expert, hows[0]], expert))
            rows = [[e, *(f"{100 * table[e, how]:.1f}" for how in hows)] for e in experts]
            print_table(f"estimated accuracy % on {targets[0]}", ["expert", *hows], rows)
        if html is not None:
            say(f"written to {html}")

    show(as_json, payload, people)


def _selectors(
    pool: Path, data: Path | None, features: str | None, how: str, limit: int | None
) -> "PoolSelectors":
    from langmerge.pool import Pool
    from langmerge.similarities import PoolSelectors

    weights = named_numbers(features, "--features") if features else None
    return PoolSelectors(Pool.load(pool), data=data, features=weights, how=how, limit=limit, progress=bars)


def _print_missing(found: "SimilarityMatrix") -> None:
    for language, why in found.missing.items():
        say(f"{language}: {why}")


def _print_choice(choice: "Choice") -> None:
    chosen = choice.selection
    numbers = chosen.coefficients.values["model"]
    rows = [[source, f"{score:.3f}", f"{numbers[source]:.4f}"] for source, score in chosen.scores.items()]
    print_table(choice.title, ["source", choice.matrix.by, "coefficient"], rows)
    for source, why in chosen.left_out.items():
        say(f"left out: {source}: {why}")


def _print_compared(table: "Compared") -> None:
    rows = []
    for by, entry in table.chosen.items():
        if isinstance(entry, str):
            rows.append([by, "–", "–", entry])
        else:
            rho = table.spearman.get(by)
            rows.append([by, "yes" if table.needs_labels(by) else "no", _number(rho), ", ".join(entry)])
    title = f"sources for {table.target} by every selector (ρ: Spearman with dev accuracy, where it is known)"
    print_table(title, ["selector", "target labels", "ρ", "sources, best first"], rows)


def _print_explained(choice: "Choice", others: "Compared") -> None:
    names = list(others.scores)
    rows = [
        [
            line["source"],
            *(
                f"{line['scores'][by]:.3f} ({line['ranks'][by]})" if by in line["scores"] else "–"
                for by in names
            ),
            line["why"],
        ]
        for line in choice.explained(others)
    ]
    print_table("every score (and rank) of every source", ["source", *names, "in or out"], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
