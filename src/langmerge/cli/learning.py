"""learn: coefficients and statistics from data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show, tell
from langmerge.cli.options import Data, Json, Overwrite, PoolArgument, source_count, unread
from langmerge.cli.searching import fewshot, search, soup
from langmerge.cli.statistics import fisher, gram
from langmerge.errors import InputError, OutputError
from langmerge.locales import canonical_locale

if TYPE_CHECKING:
    from langmerge.adapting import Adapted, Decision, Problem
    from langmerge.coefficients import Coefficients
    from langmerge.evaluate import PoolEvaluator
    from langmerge.pool import Pool
    from langmerge.similarities import PoolSelectors
    from langmerge.tasks import Task, Unlabelled

MERGED = "merged"
"""How the model of --on-top-of is called among the sources."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    learn = typer.Typer(
        help="Learn what a merge needs from data: coefficients, Fisher diagonals, Gram matrices.",
        no_args_is_help=True,
    )
    for command in (adamerging, fisher, gram, fewshot, soup, search):
        learn.command()(command)
    app.add_typer(learn, name="learn")


def adamerging(
    pool: PoolArgument,
    target: Annotated[str, typer.Option(help="The locale to merge for.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Write the coefficients here (JSON).")],
    by: Annotated[
        str | None,
        typer.Option(help="How sources are scored; see langmerge select --help.", show_default="measured"),
    ] = None,
    k: Annotated[
        str | None, typer.Option("-k", help="How many sources, all, or auto.", show_default="5")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The start: uniform, proportional, softmax or sinkhorn.", show_default="uniform"),
    ] = None,
    include_target: Annotated[bool, typer.Option("--include-target", help="IncTar.")] = False,
    start: Annotated[
        Path | None,
        typer.Option(help="Start from this coefficients file instead of a selection.", metavar="FILE"),
    ] = None,
    on_top_of: Annotated[
        Path | None,
        typer.Option(
            help="A merged model as one source more, starting at 1 and the others at 0: what they add to its delta.",
            metavar="MODEL",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="safe, or as published: paper_taskwise, paper_layerwise, paper_pp.")
    ] = "safe",
    groups: Annotated[
        str | None, typer.Option(help="What shares a coefficient: model, block, tensor, or given by --start.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="entropy, teacher, infomax, or a sum like teacher+0.5*infomax.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Logits are divided by it.")] = None,
    confident: Annotated[
        float | None, typer.Option(help="Share of a batch that counts: its rows of the lowest entropy.")
    ] = None,
    init: Annotated[float | None, typer.Option(help="Start every coefficient here.")] = None,
    lr: Annotated[float | None, typer.Option(help="Of Adam: about what a step moves a coefficient.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, at most.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a step.")] = None,
    bounds: Annotated[
        str | None, typer.Option(help="projection, sigmoid, simplex, paper_clamp or none.")
    ] = None,
    low: Annotated[float | None, typer.Option(help="Smallest coefficient.")] = None,
    high: Annotated[float | None, typer.Option(help="Largest coefficient.")] = None,
    anchor: Annotated[float | None, typer.Option(help="Weight of the squared distance to the start.")] = None,
    plus: Annotated[
        float | None,
        typer.Option(
            help="AdaMerging++: keep this share of each task vector, and of that what agrees in sign.",
            metavar="DENSITY",
        ),
    ] = None,
    freeze: Annotated[
        str | None, typer.Option(help="Parts that keep the start: head,embeddings,other,block:<n>; or none.")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the text that only decides when to stop.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of rows.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Text to learn on: .txt, .jsonl or .csv; the target's train split by default.",
            metavar="FILE",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split of the pool's task that is read, without labels.")
    ] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of text.")] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Expert whose predictions teach; repeat for a mean. The sources by default."),
    ] = None,
    hybrid: Annotated[
        str | None,
        typer.Option(
            help="Learn only if this simple merge (like ties) does not beat the best single source on dev labels.",
            metavar="METHOD",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Afterwards score start, result and baselines on the target's dev labels."
        ),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with the run's curves here.")] = None,
    data: Data = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """AdaMerging: coefficients by gradient descent on text of the target, without labels. Goes on where it stopped."""
    from langmerge.learned.settings import settings_of

    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists: choose another name, or --overwrite")
    frozen = None if freeze is None else tuple(filter(None, freeze.replace("none", "").split(",")))
    settings = settings_of(
        preset, groups=groups, objective=objective, temperature=temperature, confident=confident, init=init, lr=lr,
        steps=steps, batch_size=batch_size, bounds=bounds, low=low, high=high, anchor=anchor, density=plus,
        freeze=frozen, held_out=held_out, seed=seed,
    )  # fmt: skip
    if start is not None:
        unread(
            {"--by": by, "-k": k, "--weights": weights, "--include-target": include_target or None},
            "--start says it",
        )
    if teacher and "teacher" not in settings.objective:
        raise InputError(
            f"--teacher: the objective {settings.objective} has none; leave it out, or say --objective teacher"
        )
    if start is not None or on_top_of is not None:
        if init is not None:
            raise InputError(
                "--init starts every coefficient at one number, --start and --on-top-of at others: give one"
            )
        # A preset's own number is not what was asked for.
        settings = settings.model_copy(update={"init": None})
    from langmerge.adapting import Problem
    from langmerge.pool import Pool
    from langmerge.similarities import PoolSelectors
    from langmerge.tasks import load_task

    locale = canonical_locale(target)
    opened = Pool.load(pool)
    _check_teachers(opened, teacher)
    found = _text(load_task(opened.task, data=data), locale, text, split, limit)
    selectors = PoolSelectors(opened, data=data, progress=bars)
    numbers = _start(
        selectors, locale, start, by or "measured", k or "5", include_target, weights or "uniform"
    )
    extra = {} if on_top_of is None else {MERGED: on_top_of}
    problem = Problem(
        _on_top(numbers) if extra else numbers,
        locale,
        found,
        settings,
        tuple(teacher) if teacher else None,
        extra,
    )
    _learn(selectors.evaluator(), problem, out, hybrid=hybrid, compare=compare, html=html, as_json=as_json)


def _learn(
    evaluator: "PoolEvaluator",
    problem: "Problem",
    out: Path,
    *,
    hybrid: str | None,
    compare: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    from langmerge.adapting import adapt
    from langmerge.learned.steps import peak_memory

    decision = None if hybrid is None else _decided(evaluator, problem, hybrid)
    if decision is not None and not decision.learns:
        _keep_simple(problem, decision, out, as_json)
        return
    state = out.with_name(f"{out.name}.state.json")
    made = adapt(evaluator, problem, state=state, beside=compare, progress=bars)
    for note in problem.text.notes:
        tell(f"note: {note}")
    file = made.coefficients
    if decision is not None:
        file = file.model_copy(update={"provenance": {**file.provenance, "decision": _recorded(decision)}})
    if html is not None:
        from langmerge.files import replace_text
        from langmerge.report.learning import learning_page

        replace_text(html, learning_page(file))
    file.save(out)
    state.unlink(missing_ok=True)
    payload = {
        "out": out,
        "coefficients": file.values,
        "step": made.learned.step,
        "diagnostics": made.learned.diagnostics,
        "history": made.learned.history,
        "beside": made.beside,
        "decision": None if decision is None else _recorded(decision),
        "signature": file.provenance["signature"],
        "peak_memory": peak_memory(),
    }
    show(as_json, payload, lambda: _tell_people(made, decision, out, html))


def _tell_people(made: "Adapted", decision: "Decision | None", out: Path, html: Path | None) -> None:
    from langmerge.learned.steps import peak_memory

    file, learned = made.coefficients, made.learned
    sources = file.sources
    means = [
        sum(row[place] for row in learned.values.tolist()) / len(learned.values)
        for place in range(len(sources))
    ]
    names = file.provenance["sources"]
    start = file.provenance["history"][0]["coefficients"]
    rows = [
        [name, f"{sum(row[i] for row in start) / len(start):.4f}", f"{means[i]:.4f}",
         f"{learned.values[:, i].min():.4f} to {learned.values[:, i].max():.4f}"]
        for i, name in enumerate(names)
    ]  # fmt: skip
    if decision is not None:
        say(decision.reason)
    title = f"coefficients for {file.target}, step {learned.step}, {len(learned.values)} groups"
    print_table(title, ["source", "start", "learned (mean)", "range"], rows)
    for one in learned.diagnostics["streams"]:
        say(
            f"held-out text: {100 * one['flips']:.1f} % of labels changed, logits grew {one['logit_norm_growth']:.2f} "
            f"times, entropy {one['entropy_before']:.3f} to {one['entropy_after']:.3f} nats"
        )
    for group, inert in learned.diagnostics["inert"].items():
        say(f"inert in {group}: {', '.join(inert)} (zero task vectors: the coefficient means nothing)")
    if made.beside:
        print_beside(made.beside)
    say(f"written to {out}; merge with: langmerge merge OUT --pool POOL --coefficients {out}")
    say(f"peak memory {peak_memory() / 1e9:.2f} GB, mapped files and libraries included")
    if html is not None:
        say(f"curves: {html}")


def print_beside(lines: list[dict[str, Any]]) -> None:
    """Dev accuracies beside each other, with paired differences."""
    rows = [
        [
            line["name"],
            f"{100 * line['accuracy']:.1f}",
            f"{line['difference']:+.1f} [{line['low']:+.1f}, {line['high']:+.1f}]"
            if "difference" in line
            else "",
        ]
        for line in lines
    ]
    print_table(f"dev, {lines[0]['rows']} rows", ["model", "accuracy %", "learned minus this, points"], rows)


def _check_teachers(pool: "Pool", teachers: list[str] | None) -> None:
    for one in teachers or []:
        pool.expert(one)


def _text(task: "Task", locale: str, file: Path | None, split: str, limit: int | None) -> "Unlabelled":
    from langmerge.tasks import file_text, task_text

    if file is not None:
        return file_text(file, locale=locale, task=task if locale in task.locales else None, limit=limit)
    return task_text(task, locale, split=split, limit=limit)


def _start(
    selectors: "PoolSelectors",
    target: str,
    file: Path | None,
    by: str,
    k: str,
    include_target: bool,
    weights: str,
) -> "Coefficients":
    from langmerge.choosing import Wish, choose
    from langmerge.coefficients import Coefficients

    if file is not None:
        return Coefficients.load(file)
    wish = Wish(target, by, "auto" if k == "auto" else source_count(k), include_target, weights)
    return choose(selectors, wish).selection.coefficients


def _on_top(start: "Coefficients") -> "Coefficients":
    """The sources at 0, the merged model at 1."""
    if MERGED in start.sources:
        raise InputError(f"--on-top-of: the start has a source {MERGED!r} already")
    row = {MERGED: 1.0, **dict.fromkeys(start.sources, 0.0)}
    return type(start)(target=start.target, values={"model": row}, provenance=start.provenance)


def _decided(evaluator: "PoolEvaluator", problem: "Problem", method: str) -> "Decision":
    from langmerge.adapting import decide
    from langmerge.scoring import MergeScorer

    if problem.extra:
        raise InputError("--hybrid compares a merge of the pool's experts: leave out --on-top-of")
    simple = MergeScorer(evaluator, problem.target, method=method).logits(problem.start)
    sources = {s: evaluator.cell(s, problem.target, "dev") for s in problem.start.sources}
    return decide(simple, sources, method=method, target=problem.target)


def _recorded(decision: "Decision") -> dict[str, Any]:
    from dataclasses import asdict

    return {"rule": "hybrid", **asdict(decision), "learned": decision.learns, "reason": decision.reason}


def _keep_simple(problem: "Problem", decision: "Decision", out: Path, as_json: bool) -> None:
    provenance = {
        "made_by": "hybrid",
        "method": decision.method,
        "parameters": {},
        "decision": _recorded(decision),
    }
    file = problem.start.model_copy(update={"target": problem.target, "provenance": provenance})
    file.save(out)
    payload = {"out": out, "coefficients": file.values, "decision": _recorded(decision)}

    def people() -> None:
        say(decision.reason)
        say(f"written to {out}; merge with: langmerge merge OUT --pool POOL --coefficients {out}")

    show(as_json, payload, people)
