"""learn fewshot, learn soup, learn search: coefficients from the target's dev labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Data, Json, Limit, Parameters, PoolArgument, parameter_values, source_count
from langmerge.errors import InputError, OutputError
from langmerge.locales import canonical_locale

if TYPE_CHECKING:
    from langmerge.coefficients import Coefficients
    from langmerge.evaluate import PoolEvaluator
    from langmerge.learned.search import SearchResult
    from langmerge.scoring import MergeScorer

Target = Annotated[str, typer.Option(help="The locale to merge for; its dev labels are looked at.")]
Count = Annotated[str, typer.Option("-k", help="How many sources, all, or auto.")]
By = Annotated[str, typer.Option(help="How sources are scored; see langmerge select --help.")]
Included = Annotated[bool, typer.Option("--include-target", help="IncTar.")]
Out = Annotated[
    Path, typer.Option("-o", "--out", help="Write the coefficients here, for langmerge merge --coefficients.")
]

OBJECTIVES = ("accuracy", "cross-entropy")


def fewshot(
    pool: PoolArgument,
    target: Target,
    out: Out,
    k: Count = "5",
    by: By = "measured",
    include_target: Included = False,
    rows: Annotated[int, typer.Option(min=1, help="Labelled dev rows to look at.")] = 64,
    temperature: Annotated[float, typer.Option(min=1e-12, help="Of the softmax over losses, in nats.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of rows.")] = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Weights by a softmax over each source's loss on a few labelled examples."""
    from langmerge.learned.fewshot import few_rows
    from langmerge.learned.fewshot import fewshot as weigh

    _check_out(out)
    evaluator, start = _begun(pool, target, k, by, include_target, data, None)
    assert start.target is not None
    # Asked for before any model runs: there may be fewer rows.
    few_rows(len(evaluator.rows(start.target, "dev").examples), rows, seed=seed)
    cells = {source: evaluator.cell(source, start.target, "dev") for source in start.sources}
    found = weigh(cells, n=rows, temperature=temperature, seed=seed, target=start.target)
    found = _said(found, start)
    found.save(out)

    def people() -> None:
        losses = found.provenance["losses"]
        print_table(
            f"few-shot weights for {target} from {rows} dev rows",
            ["source", "loss, nats", "coefficient"],
            [[s, f"{losses[s]:.4f}", f"{weight:.4f}"] for s, weight in found.values["model"].items()],
        )
        say(f"coefficients written to {out}")

    show(as_json, found, people)


def soup(
    pool: PoolArgument,
    target: Target,
    out: Out,
    k: Count = "5",
    by: By = "measured",
    include_target: Included = False,
    limit: Limit = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Greedy soup: sources in order of dev accuracy, each kept if the average with it is no worse. Merge by linear."""
    from langmerge.learned.soup import greedy_soup
    from langmerge.scoring import MergeScorer
    from langmerge.tasks import accuracy

    _check_out(out)
    evaluator, start = _begun(pool, target, k, by, include_target, data, limit)
    assert start.target is not None
    scorer = MergeScorer(evaluator, start.target, method="linear", keep=True)
    cells = {source: evaluator.cell(source, start.target, "dev") for source in start.sources}
    alone = {source: accuracy(cell.labels, cell.predictions) for source, cell in cells.items()}
    found = greedy_soup(alone, scorer.accuracy, target=start.target, progress=bars)
    found = _said(found, start, method="linear", parameters={}, scored=scorer.about(start))
    found.save(out)

    def people() -> None:
        rows = [
            [
                step["source"],
                f"{100 * step['accuracy']:.2f}",
                "–" if step["score"] is None else f"{100 * step['score']:.2f}",
                "in" if step["added"] else "out",
            ]
            for step in found.provenance["trace"]
        ]
        print_table(
            f"greedy soup for {target} on dev", ["source", "alone %", "soup with it %", "decision"], rows
        )
        say(f"coefficients written to {out}, for a linear merge")

    show(as_json, found, people)


def search(
    pool: PoolArgument,
    target: Target,
    out: Out,
    k: Count = "5",
    by: By = "measured",
    include_target: Included = False,
    start: Annotated[
        Path | None, typer.Option(help="A coefficients file to begin from, instead of a selection.")
    ] = None,
    groups: Annotated[
        str, typer.Option(help="model: a number per source; block: per source and layer.")
    ] = "model",
    objective: Annotated[str, typer.Option(help="On dev: accuracy or cross-entropy.")] = "cross-entropy",
    method: Annotated[str, typer.Option(help="By which to merge.")] = "task_arithmetic",
    parameters: Parameters = None,
    budget: Annotated[int, typer.Option(min=1, help="Merges to score, the start's included.")] = 100,
    population: Annotated[int | None, typer.Option(min=2, help="Merges of a generation.")] = None,
    sigma: Annotated[float, typer.Option(help="First standard deviation of a step.")] = 0.1,
    low: Annotated[float, typer.Option(help="Smallest coefficient.")] = 0.0,
    high: Annotated[float, typer.Option(help="Largest coefficient.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the steps.")] = 0,
    limit: Limit = 600,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """CMA-ES over coefficients; every score is kept in OUT.journal, and the same command goes on from there."""
    from langmerge.learned.search import SearchSettings
    from langmerge.learned.search import search as look
    from langmerge.scoring import MergeScorer

    _check_out(out)
    for name, value, choices in (
        ("groups", groups, ("model", "block")),
        ("objective", objective, OBJECTIVES),
    ):
        if value not in choices:
            raise InputError(f"--{name} is {value!r}: there are {' and '.join(choices)}")
    evaluator, first = _begun(pool, target, k, by, include_target, data, limit, start)
    assert first.target is not None
    scorer = MergeScorer(evaluator, first.target, method=method, parameters=parameter_values(parameters))
    result = look(
        first,
        scorer.accuracy if objective == "accuracy" else lambda tried: -scorer.cross_entropy(tried),
        SearchSettings(low, high, sigma, budget, population, seed),
        groups=scorer.groups(first) if groups == "block" else (),
        about={**scorer.about(first), "objective": objective, "begun": first.provenance},
        journal=out.with_name(f"{out.name}.journal"),
        progress=bars,
    )
    # Where merge --coefficients looks for the method.
    by_method = {**result.best.provenance, "method": scorer.method, "parameters": scorer.parameters}
    found = result.best.model_copy(update={"provenance": by_method})
    found.save(out)
    show(as_json, found, lambda: _people(result, objective, scorer, out))


def _people(result: "SearchResult", objective: str, scorer: "MergeScorer", out: Path) -> None:
    said = result.best.provenance
    rows = [
        [group, source, f"{number:.4f}"]
        for group, row in result.best.values.items()
        if group in said["groups"]
        for source, number in row.items()
    ]
    print_table(
        f"coefficients for {result.best.target} by {scorer.method}", ["group", "source", "number"], rows
    )
    begun = "no score" if said["start_score"] is None else f"{said['start_score']:.4f}"
    say(
        f"{objective} on dev (higher is better): {begun} at the start, {said['score']:.4f} found at evaluation "
        f"{said['best'] + 1} of {said['evaluations']}; stopped: {result.stopped}"
    )
    if result.flat:
        say("every merge has the same score: these numbers do not matter to it, and the start is kept")
    if said["not_finite"]:
        say(f"{said['not_finite']} merges had no finite score")
    say(f"coefficients written to {out}; merge them with --method {scorer.method}")


def _begun(
    folder: Path,
    target: str,
    k: str,
    by: str,
    include_target: bool,
    data: Path | None,
    limit: int | None,
    file: Path | None = None,
) -> "tuple[PoolEvaluator, Coefficients]":
    """An evaluator of the pool, and the coefficients to begin from: a file's, or those of a selection."""
    from langmerge.choosing import Wish, choose
    from langmerge.coefficients import Coefficients
    from langmerge.evaluate import PoolEvaluator
    from langmerge.pool import Pool
    from langmerge.similarities import PoolSelectors
    from langmerge.tasks import load_task

    opened = Pool.load(folder)
    locale = canonical_locale(target)
    task = load_task(opened.task, data=data)
    task.load(locale, "dev")
    if file is not None:
        chosen = Coefficients.load(file).model_copy(update={"target": locale})
        for source in chosen.sources:
            opened.expert(source)
    else:
        wish = Wish(locale, by, "auto" if k == "auto" else source_count(k), include_target)
        chosen = choose(PoolSelectors(opened, data=data, progress=bars), wish).selection.coefficients
    return PoolEvaluator(opened, task, limits={"dev": limit}), chosen


def _said(found: "Coefficients", start: "Coefficients", **more: Any) -> "Coefficients":
    """With how the sources were chosen."""
    provenance = {**found.provenance, **more, "begun": start.provenance}
    return found.model_copy(update={"provenance": provenance})


def _check_out(out: Path) -> None:
    """Raise now, not after an hour, where the file cannot be written."""
    if out.is_dir() or not out.parent.is_dir():
        raise OutputError(f"{out} cannot be written: give a file in a folder that exists")
