"""adapters train, adapters compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, show, tell
from langmerge.cli.options import (
    BatchSize,
    Data,
    Epochs,
    HeadRate,
    Json,
    Locales,
    MaxDev,
    MaxTrain,
    locale_list,
)
from langmerge.errors import InputError
from langmerge.locales import canonical_locale

if TYPE_CHECKING:
    from langmerge.transferring import Compared, Line

BenchArgument = Annotated[Path, typer.Argument(help="Folder of the adapters.", metavar="BENCH")]


def register(adapters: typer.Typer) -> None:
    """Add this module's commands."""
    adapters.command()(train)
    adapters.command()(compare)


def train(
    bench: BenchArgument,
    locales: Locales,
    task: Annotated[
        str,
        typer.Option(
            help="massive:intent, massive:scenario, massive:slots, sib200:topic, demo:intent or folder:PATH. With mlm: or clm: "
            "before it, masked or causal language modelling on its train text; with prompt: its labels' names as completions "
            "by a causal language model."
        ),
    ] = "massive:intent",
    base: Annotated[
        Path | None, typer.Option(help="Pretrained encoder: needed once, when the bench is made.")
    ] = None,
    kind: Annotated[str, typer.Option(help="lora, ia3 or prefix.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA.")] = 16,
    alpha: Annotated[
        float, typer.Option(min=1e-6, help="LoRA's product is multiplied by alpha / rank.")
    ] = 32,
    rslora: Annotated[bool, typer.Option("--rslora", help="By alpha / √rank instead.")] = False,
    modules: Annotated[
        str | None,
        typer.Option(
            help="Ends of the names of the modules that are changed, by commas.", show_default="by kind"
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Virtual tokens of a prefix.")] = 16,
    epochs: Epochs = 3,
    max_train: MaxTrain = None,
    max_dev: MaxDev = 500,
    lr: Annotated[
        float | None,
        typer.Option(
            min=1e-12,
            help="Peak learning rate of the adapter.",
            show_default="lora 0.002, of mlm: 0.0003; ia3 0.01, prefix 0.03",
        ),
    ] = None,
    head_lr: HeadRate = 2e-3,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    on: Annotated[
        str | None,
        typer.Option(
            help="Train above this task's adapters of the same locales, put in for good: mlm:… gives MAD-X's task above a language.",
            metavar="TASK",
        ),
    ] = None,
    shared: Annotated[
        bool,
        typer.Option("--shared/--own-draws", help="All adapters begin at the same draw, or each at its own."),
    ] = True,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train one PEFT adapter per locale on one base. Continues where it stopped."""
    from langmerge.models import AdapterShape
    from langmerge.training import AdapterTraining, Bench, train_adapters

    if kind not in ("lora", "ia3", "prefix"):
        raise InputError(f"--kind is {kind!r}: give lora, ia3 or prefix")
    chosen = locale_list(locales)
    targets = tuple(filter(None, modules.split(","))) if modules else None
    shape = AdapterShape(
        kind=kind, rank=rank, alpha=alpha, rslora=rslora, targets=targets, tokens=tokens  # type: ignore[arg-type]
    )  # fmt: skip
    training = AdapterTraining(
        shape=shape,
        epochs=epochs,
        max_train=max_train,
        max_dev=max_dev,
        lr=lr,
        head_lr=head_lr,
        batch_size=batch_size,
        seed=seed,
        shared=shared,
        on=on,
    )
    opened = Bench.opened(bench, base=base, data=data)
    records = train_adapters(opened, task, chosen, training, progress=bars)

    def people() -> None:
        rows = [
            [locale, f"{max(one['training']['scores']):.3f}", f"{one['seconds']:.0f}"]
            for locale, one in records.items()
        ]
        score = next(iter(records.values()))["training"]["score"]
        print_table(f"{kind} adapters for {task} in {bench}", ["locale", score, "seconds"], rows)

    show(as_json, records, people)


def compare(
    bench: BenchArgument,
    reference: Annotated[str, typer.Option(help="Task with adapters in the source and in every target.")],
    targets: Annotated[
        str,
        typer.Option(
            help="Two or more locales: every number for one is chosen on the dev rows of the others."
        ),
    ],
    task: Annotated[str, typer.Option(help="Whose adapter is moved.")] = "massive:intent",
    source: Annotated[str, typer.Option(help="The language that has labels.")] = "en-US",
    mode: Annotated[
        str | None, typer.Option(help="See langmerge transfer --help.", show_default="product, ratio, safe")
    ] = None,
    grid: Annotated[str, typer.Option(help="Values of t beside 0, by commas.")] = "0.25,0.5,0.75,1",
    dev: Annotated[int | None, typer.Option(min=1, help="At most so many dev rows of each locale.")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="At most so many test rows of each locale.")] = None,
    report: Annotated[str, typer.Option(help="dev, or test: dev and test accuracy.")] = "dev",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """AdaMergeX beside its baselines: direct transfer, AriMerge, language arithmetic, layer swap, the bare base, self. What
    was predicted is kept.
    """
    from langmerge.training import Bench
    from langmerge.transferring import Crossing, compare_transfers

    if report not in ("dev", "test"):
        raise InputError(f"--report is {report!r}: give dev or test")
    crossing = Crossing(
        Bench.opened(bench, data=data),
        task,
        reference,
        canonical_locale(source),
        tuple(locale_list(targets)),
        mode=mode,
        grid=_numbers(grid),
        limits={"dev": dev, "test": test},
        splits=("dev",) if report == "dev" else ("dev", "test"),
    )
    found = compare_transfers(crossing, progress=bars)
    for name, why in found.left_out.items():
        tell(f"note: {name} is left out: {why}")
    show(as_json, found, lambda: _print(found, crossing.splits))


def _numbers(text: str) -> tuple[float, ...]:
    """`0.5,1` as numbers, 0 left out.

    Raises:
        InputError: one is none, or none is left.
    """
    try:
        found = tuple(sorted({float(one) for one in text.split(",") if one.strip()} - {0.0}))
    except ValueError:
        found = ()
    if not found:
        raise InputError(f"--grid {text!r}: give numbers by commas, one at least that is not 0")
    return found


def _print(found: "Compared", splits: tuple[str, ...]) -> None:
    targets = list(found.curve[0].accuracies)
    rows = [
        [
            point.name,
            f"{point.value:g}",
            *(f"{100 * point.accuracies[one]:.1f}" for one in targets),
            _gain(point.gain),
        ]
        for point in found.curve
    ]
    header = ["dev accuracy %", "t, c, weight, depth", *targets, "gain over 0, points"]
    print_table("every value on dev", header, rows)
    for split in splits:
        lines = [line for line in found.lines if line.split == split]
        rows = [_row(line) for line in lines]
        said = " (of the chosen values; a target's labels choose nothing)"
        header = ["", "method", "value", "accuracy %", "95 %", "gain over direct, points"]
        print_table(f"{split}, {lines[0].rows} rows of each{said}", header, rows)


def _row(line: "Line") -> list[str]:
    interval = f"{100 * line.interval.low:.1f}–{100 * line.interval.high:.1f}"
    value = "" if line.value is None else f"{line.value:g}"
    gain = "" if line.gain is None else _gain(line.gain)
    return [line.target, line.name, value, f"{100 * line.accuracy:.1f}", interval, gain]


def _gain(one: Any) -> str:
    return f"{one.points:+.1f} [{one.low:+.1f}, {one.high:+.1f}]"
