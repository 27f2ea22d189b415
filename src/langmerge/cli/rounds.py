"""rounds."""

from typing import TYPE_CHECKING, Annotated

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import (
    BatchSize,
    Data,
    FreezeEmbeddings,
    HeadRate,
    Json,
    Limit,
    Locales,
    MaxDev,
    MaxTrain,
    Parameters,
    PoolArgument,
    Rate,
    locale_list,
    parameter_values,
)

if TYPE_CHECKING:
    from langmerge.experiments.rounds import Rounds


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(rounds)


def rounds(
    pool: PoolArgument,
    base: Annotated[
        str,
        typer.Option(
            help="Pretrained encoder: a folder or a hub id; e5-small builds the offline one in the folder."
        ),
    ],
    locales: Locales,
    targets: Annotated[
        str | None, typer.Option(help="Locales to score on, by commas; those of the experts by default.")
    ] = None,
    task: Annotated[str, typer.Option(help="As for langmerge train.")] = "massive:intent",
    rounds: Annotated[int, typer.Option(min=1, help="How often to train and merge.")] = 3,
    epochs_per_round: Annotated[int, typer.Option(min=1, help="Passes of each expert in a round.")] = 1,
    method: Annotated[str, typer.Option(help="By which to merge, with equal coefficients.")] = "linear",
    parameters: Parameters = None,
    about: Annotated[
        str,
        typer.Option(
            help="Task vectors against the pretrained base, or against what the round began from: round."
        ),
    ] = "base",
    max_train: MaxTrain = None,
    max_dev: MaxDev = 500,
    lr: Rate = 1e-4,
    head_lr: HeadRate = 2e-3,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(help="Of round 1; one more in each round.")] = 0,
    freeze_embeddings: FreezeEmbeddings = True,
    limit: Limit = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train, merge, train on from the merge; beside it the same training without merging. Continues where it stopped."""
    from langmerge.experiments.rounds import RoundsSettings, run_rounds
    from langmerge.training import Training

    settings = RoundsSettings.checked(
        task=task,
        base=base,
        locales=locale_list(locales),
        targets=locale_list(targets) if targets is not None else (),
        rounds=rounds,
        method=method,
        parameters=parameter_values(parameters),
        about=about,
        training=Training(
            epochs=epochs_per_round,
            max_train=max_train,
            max_dev=max_dev,
            lr=lr,
            head_lr=head_lr,
            batch_size=batch_size,
            seed=seed,
            freeze_embeddings=freeze_embeddings,
        ),
    )
    found = run_rounds(settings, pool, data=data, limit=limit, progress=bars)
    show(as_json, found.payload(), lambda: _people(found))


def _people(found: "Rounds") -> None:
    rows = [
        [
            f"{row.round} {row.target}",
            *(f"{100 * x:.1f}" for x in (row.merged, row.experts, row.control_merged, row.control_experts)),
            str(row.over_experts),
            str(row.over_control_merged),
            str(row.over_control_experts),
        ]
        for row in found.rows
    ]
    header = ["round", "merged", "experts", "control", "its experts"]
    header += ["over experts", "over control", "over its experts"]
    title = (
        f"rounds by {found.settings.method} on {found.rows[0].rows} dev rows, %; differences in points, 95 %"
    )
    print_table(title, header, rows)
    say("experts: their mean; control: the merge of experts trained as long without merging in between")
    if not found.same_steps:
        say("the control took another number of steps (early stopping): see steps in rounds.json")
