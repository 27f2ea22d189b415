"""auto."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Data, Json, Overwrite, PoolArgument
from langmerge.cli.options import Store as StoreOption
from langmerge.errors import InputError
from langmerge.locales import canonical_locale


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(auto)


def auto(
    pool: PoolArgument,
    out: Annotated[Path, typer.Argument(help="The new folder.", metavar="OUT")],
    target: Annotated[str, typer.Option(help="Locale to decide for.")],
    labels: Annotated[
        str,
        typer.Option(help="dev: the target's labelled dev rows choose; none: no label of it is looked at."),
    ] = "dev",
    rows: Annotated[int, typer.Option(min=20, help="At most so many labelled rows.")] = 500,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of sources.")] = 5,
    by: Annotated[
        str | None,
        typer.Option(help="How sources are chosen; measured with labels and composite without, by default."),
    ] = None,
    exclude_target: Annotated[
        bool, typer.Option("--exclude-target", help="Leave the target's own expert out, where there is one.")
    ] = False,
    text: Annotated[
        str,
        typer.Option(
            help="Unlabelled text of the target to refine on: the task's (task), a FILE (.txt, .jsonl, .csv), or none.",
            metavar="task|none|FILE",
        ),
    ] = "none",
    texts: Annotated[int, typer.Option(min=1, help="At most so many unlabelled texts.")] = 3072,
    learned: Annotated[
        bool,
        typer.Option(
            "--learned",
            help="Learn coefficients on the text too (minutes; so far equal weights have been better).",
        ),
    ] = False,
    no_statistics: Annotated[
        bool,
        typer.Option(
            "--no-statistics", help="Do not run experts on the task's unlabelled text of the target."
        ),
    ] = False,
    test: Annotated[bool, typer.Option("--test", help="Report the choice on test, once.")] = False,
    evidence: Annotated[
        str | None,
        typer.Option(
            help="A store: what the candidates have brought there for other targets counts, instead of what langmerge's own "
            "study says.",
            metavar="STORE",
        ),
    ] = None,
    evidence_sweep: Annotated[
        str | None, typer.Option(help="With --evidence: only these sweeps of the store, by commas.")
    ] = None,
    effects: Annotated[
        Path | None,
        typer.Option(
            help="A file of langmerge runs predict: gains predicted for this target count, where prediction was seen to help."
        ),
    ] = None,
    store: StoreOption = None,
    overwrite: Overwrite = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Merge for a target or not, and how: tries, decides, writes the model with the record of the decision."""
    from langmerge.auto import Question, decide
    from langmerge.pool import Pool
    from langmerge.results.store import Store
    from langmerge.tasks import load_task

    if labels not in ("dev", "none"):
        raise InputError(f"--labels {labels}: it is dev or none")
    opened, locale = Pool.load(pool), canonical_locale(target)
    task = load_task(opened.task, data=data)
    question = Question(
        opened, task, locale, data=data, labels="dev" if labels == "dev" else "none", rows=rows, k=k, by=by,
        include_target=False if exclude_target else None, statistics=not no_statistics,
        text=_text(text, task, locale, texts), learned=learned, effects=effects, test=test,
    )  # fmt: skip
    if evidence is not None:
        question = replace(question, evidence=_evidence(evidence, evidence_sweep, question))
    elif evidence_sweep is not None:
        raise InputError("--evidence-sweep names a sweep of a store: say which store with --evidence")
    kept = Store(store) if store is not None else None
    try:
        found = decide(question, out, store=kept, overwrite=overwrite, progress=bars)
    finally:
        if kept is not None:
            kept.close()
    show(as_json, found, lambda: _people(found))


def _evidence(store: str, sweep: str | None, question: Any) -> Any:
    from langmerge.auto.measured import measured
    from langmerge.auto.stored import evidence_from
    from langmerge.results.stored import stored

    outcomes = stored(store, question.mode, sweep)
    found = evidence_from(
        outcomes,
        task=question.task.name,
        target=question.target,
        mode=question.mode,
        origin=f"the store {store}",
        by=question.selector,
    )
    # Of candidates that sweeps do not have (refined) there is langmerge's own.
    return {**measured(question.mode, without=question.target), **found}


def _text(given: str, task: Any, locale: str, limit: int) -> Any:
    from langmerge.tasks import file_text, task_text

    if given == "none":
        return None
    if given == "task":
        return task_text(task, locale, limit=limit)
    return file_text(Path(given), locale=locale, task=task, limit=limit)


def _people(found: Any) -> None:
    rows = []
    for one in found.record["candidates"]:
        known = one["belief"]
        rows.append(
            [
                f"{one['name']} *" if one["name"] == found.choice else one["name"],
                "" if one["accuracy"] is None else f"{100 * one['accuracy']:.1f}",
                "" if one["difference"] is None else f"{one['difference']:+.1f}",
                "" if known is None else f"{known['mean']:+.1f} ± {1.96 * known['deviation']:.1f}",
                f"{one['seconds']:.0f}",
                one["out"] or "",
            ]
        )
    header = ["* chosen", "dev %", "over single, dev", "expected gain, 95 %", "s", "given up because"]
    print_table("points", header, rows)
    for line in found.reasons:
        say(line)
    if (test := found.record["test"]) is not None:
        gain = test["gain"]
        say(
            f"test: {100 * test['accuracy']:.1f} %, {gain['points']:+.1f} points [{gain['low']:+.1f}, {gain['high']:+.1f}] "
            f"over the single expert ({test['rows']} rows)"
        )
    say(f"model: {found.out}")
