"""transfer, adapters merge."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from langmerge.cli import benches
from langmerge.cli.console import bars, print_table, say, show, tell
from langmerge.cli.options import Json, Overwrite, Parameters, parameter_values
from langmerge.errors import InputError

Dtype = Annotated[str, typer.Option(help="keep (the widest of those stored), float32, bfloat16 or float16.")]
SameBase = Annotated[
    bool,
    typer.Option(
        "--same-base", help="The bases are the same model, whatever the adapters' configs call them."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(transfer)
    adapters = typer.Typer(
        help="PEFT adapters: merged as adapters, from their files alone.", no_args_is_help=True
    )
    adapters.command()(merge)
    benches.register(adapters)
    app.add_typer(adapters, name="adapters")


def transfer(
    out: Annotated[Path, typer.Argument(help="The new folder.", metavar="OUT")],
    task_source: Annotated[Path, typer.Option(help="P1: the task, in the source language.", metavar="P1")],
    reference_target: Annotated[
        Path, typer.Option(help="P2: a reference task, in the target language.", metavar="P2")
    ],
    reference_source: Annotated[
        Path, typer.Option(help="P3: the same reference task, in the source language.", metavar="P3")
    ],
    t: Annotated[float, typer.Option("-t", help="How much of P2 − P3 is taken.")] = 1.0,
    mode: Annotated[
        str | None,
        typer.Option(
            help="LoRA: product (exact), svd (of --rank) or factors (A and B apart, not exact). (IA)³: ratio or geometric. "
            "Prefix: safe or paper.",
            show_default="product, ratio, safe",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="With --mode svd: of the result.", show_default="P1's")
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(
            help="(IA)³: hold ratios within [1 / CLIP, CLIP] instead of refusing those that are none."
        ),
    ] = None,
    dtype: Dtype = "keep",
    same_base: SameBase = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Move a task adapter to another language (AdaMergeX): P1 + t (P2 − P3), as its kind demands. Reads adapter files
    alone; whole models go too.
    """
    from langmerge.adapters import Transfer
    from langmerge.adapters import transfer as run

    record = run(
        out,
        task_source=task_source,
        reference_target=reference_target,
        reference_source=reference_source,
        asked=Transfer(t=t, mode=mode, rank=rank, clip=clip, dtype=dtype, same_base=same_base),
        overwrite=overwrite,
        progress=bars,
    )
    for note in record.get("notes", []):
        tell(f"note: {note}")
    show(as_json, {"out": str(out), **record}, lambda: _print_transfer(out, record))


def merge(
    out: Annotated[Path, typer.Argument(help="The new folder.", metavar="OUT")],
    adapters: Annotated[
        list[str], typer.Argument(help="PEFT folders with their weights.", metavar="FOLDER:WEIGHT…")
    ],
    mode: Annotated[
        str | None,
        typer.Option(
            help="LoRA: cat (the exact sum), svd (the best of --rank), product or core (a --method on the updates multiplied "
            "out, or in their common bases). (IA)³: linear or geometric. Prefix: linear.",
            show_default="cat, linear; core with --method",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="With product and core: ties, dare_linear, wudi, …: see docs/methods.md.")
    ] = "task_arithmetic",
    parameters: Parameters = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="With svd and product: of the result.", show_default="largest; sum"),
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            help="Heads are averaged by label names; position: as they lie; or the name of the adapter whose head is kept.",
            metavar="names|position|NAME",
        ),
    ] = "names",
    dtype: Dtype = "keep",
    same_base: SameBase = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Merge PEFT adapters of one base into one that PEFT loads: Σ w ΔW, whatever their ranks, alphas and modules."""
    from langmerge.adapters import Merging
    from langmerge.adapters import merge as run

    asked = Merging(
        mode=mode,
        method=method,
        parameters=parameter_values(parameters),
        rank=rank,
        head=head,
        dtype=dtype,
        same_base=same_base,
    )
    record = run(out, weighted(adapters), asked=asked, overwrite=overwrite, progress=bars)
    for note in record["notes"]:
        tell(f"note: {note}")
    show(as_json, {"out": str(out), **record}, lambda: _print_merge(out, record))


def weighted(given: list[str]) -> dict[Path, float]:
    """`a:0.5 b:0.5` as folders and weights.

    Raises:
        InputError: no weight, no number, or a folder twice.
    """
    found: dict[Path, float] = {}
    for one in given:
        folder, colon, number = one.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            colon = ""
        if not colon or not folder:
            raise InputError(f"{one!r} is no FOLDER:WEIGHT: write it like {one.rstrip(':')}:0.5")
        if Path(folder) in found:
            raise InputError(f"adapter {folder} is given twice")
        found[Path(folder)] = weight
    return found


def _print_transfer(out: Path, record: Mapping[str, Any]) -> None:
    if record.get("how") != "transfer":
        say(f"θ1 + t (θ2 − θ3) written to {out} (signature {record['signature']})")
        return
    settings, totals = record["settings"], record["totals"]
    rows = [[name, *_cells(one)] for name, one in (*record["layers"].items(), ("all", totals))]
    header = ["layer", "‖P2 − P3‖ / ‖P1‖", "cosine", "error %", "clipped"]
    empty = [place for place in range(len(header)) if not any(row[place] for row in rows)]
    rows = [[cell for place, cell in enumerate(row) if place not in empty] for row in rows]
    title = f"{record['kind']}, {settings['mode']}, t = {settings['t']:g}"
    print_table(title, [word for place, word in enumerate(header) if place not in empty], rows)
    if record["left_out"]:
        say(f"left out, being the references' own: {', '.join(record['left_out'][:4])}")
    say(f"written to {out}")


def _cells(one: Mapping[str, Any]) -> list[str]:
    ratio = "" if one["ratio"] is None else f"{one['ratio']:.3f}"
    error = f"{100 * one['error']:.2f}" if "error" in one else ""
    return [ratio, f"{one['cosine']:+.3f}", error, str(one.get("clipped", ""))]


def _print_merge(out: Path, record: Mapping[str, Any]) -> None:
    settings, totals = record["settings"], record["totals"]
    words = settings["mode"] + (f" by {settings['method']}" if settings["method"] else "")
    names = list(record["inputs"])
    if "cosines" in totals and len(names) > 1:
        rows = [
            [name, f"{record['inputs'][name]['weight']:g}", *(f"{value:+.3f}" for value in row)]
            for name, row in zip(names, totals["cosines"], strict=True)
        ]
        print_table("cosines between the weighted updates", ["", "weight", *names], rows)
    lost = f"; {100 * totals['error']:.2f} % of the update is lost to the rank" if "error" in totals else ""
    say(f"{record['kind']}, {words}, of {', '.join(names)} written to {out}{lost}")
