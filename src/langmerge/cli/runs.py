"""runs list, best, compare, export, hindsight, predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show
from langmerge.cli.options import Data, Json, Overwrite
from langmerge.errors import InputError

if TYPE_CHECKING:
    from langmerge.pool import Pool

Place = Annotated[
    str,
    typer.Option(
        "--store",
        help="A file (SQLite), a sweep's folder, or postgresql://USER@HOST/NAME.",
        show_default=True,
    ),
]
Target = Annotated[str | None, typer.Option(help="Only this locale.")]
Mode = Annotated[str | None, typer.Option(help="Only ExcTar, or only IncTar.")]
SweepName = Annotated[
    str | None,
    typer.Option("--sweep", help="Only the cells of these sweeps: names or signatures, by commas."),
]

group = typer.Typer(help="What a store of results holds: list, best, compare, export.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(group, name="runs")


@group.command("list")
def listing(
    store: Place = "store.sqlite",
    target: Target = None,
    mode: Mode = None,
    sweep: SweepName = None,
    failed: Annotated[bool, typer.Option("--failed", help="What went wrong, and why, instead.")] = False,
    as_json: Json = False,
) -> None:
    """Every method on every target, over seeds; references among them."""
    from langmerge.experiments.standing import lines, title
    from langmerge.results.stored import stored

    outcomes = stored(store, mode, sweep, target=target)
    if failed:
        wrong = [one for one in outcomes if one.run is None]
        rows = [
            [one.cell.target, one.cell.mode, title(one.cell), str(one.cell.seed), one.reason or ""]
            for one in wrong
        ]
        header = ["target", "mode", "method", "seed", "why"]
        show(as_json, wrong, lambda: print_table(f"{len(wrong)} failed", header, rows))
        return
    found = lines(outcomes)
    show(as_json, found, lambda: _table(f"{len(outcomes)} cells in {store}", found))


@group.command()
def best(
    store: Place = "store.sqlite",
    target: Target = None,
    mode: Mode = None,
    sweep: SweepName = None,
    as_json: Json = False,
) -> None:
    """The merge that is best on dev, for each target and mode: what dev would have chosen, and what test says of it."""
    from langmerge.experiments.standing import lines
    from langmerge.results.stored import stored

    found: dict[tuple[str, str], Any] = {}
    # Among equals on dev that of fewer sources: test has no say.
    for line in sorted(
        lines(stored(store, mode, sweep, target=target)),
        key=lambda one: (-round(one.dev, 9), one.k, one.title),
    ):
        if line.kind == "merge":
            found.setdefault((line.target, line.mode), line)
    chosen = [found[key] for key in sorted(found)]
    show(as_json, chosen, lambda: _table("best on dev", chosen))


@group.command()
def compare(
    first: Annotated[str, typer.Argument(help="As `runs list` calls it: 'wudi, k=5'.", metavar="FIRST")],
    second: Annotated[str, typer.Argument(help="Another: 'best zero-shot'.", metavar="SECOND")],
    store: Place = "store.sqlite",
    target: Target = None,
    mode: Mode = None,
    sweep: SweepName = None,
    as_json: Json = False,
) -> None:
    """FIRST minus SECOND on test, paired over rows; intervals over rows and seeds."""
    from langmerge.experiments.standing import compare as run
    from langmerge.results.stored import checked_mode, stored

    checked_mode(mode)
    found = run(stored(store, None, sweep, target=target), first, second, mode=mode)

    def people() -> None:
        rows = [[name, str(d), str(found.seeds[name])] for name, d in found.targets.items()]
        rows.append(["mean", str(found.over_all), ""])
        print_table(f"{found.first} − {found.second}", ["target", "points, 95 %", "seeds"], rows)

    show(as_json, found, people)


@group.command()
def export(
    out: Annotated[Path, typer.Argument(help="FILE.csv, FILE.parquet or FILE.tex.", metavar="FILE")],
    store: Place = "store.sqlite",
    target: Target = None,
    mode: Mode = None,
    sweep: SweepName = None,
    overwrite: Overwrite = False,
) -> None:
    """Every cell that is done, one row each; as .tex a table of methods × targets."""
    from langmerge.experiments.standing import export as run
    from langmerge.results.stored import stored

    rows = run(stored(store, mode, sweep, target=target), out, overwrite=overwrite)
    say(f"{rows} rows written to {out}")


@group.command()
def hindsight(
    store: Place = "store.sqlite",
    mode: Annotated[str, typer.Option(help="ExcTar or IncTar.")] = "ExcTar",
    sweep: SweepName = None,
    rows: Annotated[
        int | None,
        typer.Option(min=20, help="Labelled rows that rules may look at; all that were kept by default."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of these rows, where more were kept.")] = 50,
    shipped: Annotated[
        bool,
        typer.Option(
            "--shipped", help="By the evidence that auto has by itself, not the store's other targets'."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """What the rule of langmerge auto, and simpler ones, would have chosen on a store's cells, and what that costs on test."""
    from langmerge.auto.hindsight import cases, judge, rules_for
    from langmerge.auto.measured import measured
    from langmerge.results.stored import checked_mode, stored

    checked_mode(mode)
    # A single expert's cell has one mode and serves both: all are read.
    among = cases(stored(store, None, sweep), mode)
    evidence = (lambda target: measured(mode, without=target)) if shipped else None
    found = [
        judge(rule, among, mode, rows=rows, draws=draws, known=evidence) for rule in rules_for(among, rows)
    ]

    def people() -> None:
        header = [
            "rule",
            "gain, points, 95 %",
            "over the soft vote",
            "regret",
            "below the single expert",
            "chosen",
        ]
        lines = [
            [
                one.rule, str(one.gain), str(one.over_vote or "–"), f"{one.regret:.2f}", ", ".join(one.below) or "nowhere",
                ", ".join(f"{name} {share:.0%}" for name, share in one.chosen.items()),
            ]
            for one in found
        ]  # fmt: skip
        labelled = f", {found[0].rows} labelled rows" if found else ""
        print_table(
            f"{mode}: {len(among)} cells of {len({one.target for one in among})} targets{labelled}",
            header,
            lines,
        )
        origin = "what auto has by itself" if shipped else "that of the others"
        say(f"below: significantly, over the target's seeds; evidence of a target is {origin}")

    show(as_json, found, people)


@group.command()
def predict(
    pools: Annotated[
        list[Path], typer.Argument(help="The pools of the store's cells, one for each seed.", metavar="POOL…")
    ],
    store: Place = "store.sqlite",
    mode: Annotated[str, typer.Option(help="ExcTar or IncTar.")] = "ExcTar",
    sweep: SweepName = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write what predicts here (JSON), for langmerge auto --effects."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Can a merge's gain and effect be told before it is made? Each target by a model of the others, against their mean."""
    from langmerge.auto.effect import all_predicted, examples, write_effects
    from langmerge.auto.features import PoolFeatures
    from langmerge.pool import Pool
    from langmerge.results.stored import stored
    from langmerge.similarities import PoolSelectors

    outcomes = stored(store, mode, sweep)
    by_seed: dict[int, PoolFeatures] = {}
    task = Pool.load(pools[0]).task
    outcomes = [one for one in outcomes if one.run is not None and one.run.task == task]
    for folder in pools:
        pool = Pool.load(folder)
        if pool.task != task:
            raise InputError(f"pool {folder} is for {pool.task}, {pools[0]} for {task}: one task at a time")
        seed = _seed(pool)
        if seed in by_seed:
            raise InputError(
                f"pool {folder}: another pool given has seed {seed} too: name one pool for each seed"
            )
        by_seed[seed] = PoolFeatures(PoolSelectors(pool, data=data, progress=bars), progress=bars)

    def features(seed: int, target: str, sources: Any) -> Any:
        if seed not in by_seed:
            raise InputError(
                f"the store has cells of seed {seed}, and no pool given has it: name its pool too"
            )
        has_own = target in by_seed[seed].selectors.pool.locales
        return by_seed[seed].of(target, sources, needs="self" if has_own else "labels")

    found = examples(outcomes, mode, features)
    judged = all_predicted(found)
    helping = write_effects(out, found, judged, task=task, mode=mode) if out is not None else []

    def people() -> None:
        header = [
            "merge",
            "what",
            "features",
            "model",
            "error",
            "of the mean",
            "better, 95 %",
            "rank correlation",
        ]
        lines = [
            [
                one.name, one.what, one.needs, one.model, f"{one.error:.2f}", f"{one.constant:.2f}",
                f"{one.better:+.2f} [{one.low:+.2f}, {one.high:+.2f}]", f"{one.spearman:+.2f}",
            ]
            for one in judged
        ]  # fmt: skip
        print_table(f"{mode}: mean absolute error, points, targets left out", header, lines)
        say("better: than the other targets' mean; the interval is over targets")
        if out is not None:
            say(f"written to {out}; it helps to predict: {', '.join(helping) or 'nothing'}")

    show(as_json, judged, people)


def _seed(pool: "Pool") -> int:
    """Of its experts' training."""
    seeds = {one.training.get("settings", {}).get("seed") for one in pool.experts.values()}
    if len(seeds) != 1 or not isinstance(found := seeds.pop(), int):
        raise InputError(f"pool {pool.root}: its experts are of no one seed, so its cells cannot be told")
    return found


def _table(name: str, found: list[Any]) -> None:
    rows = [
        [
            line.target, line.mode, line.title, ", ".join(map(str, line.seeds)), f"{100 * line.dev:.1f}",
            f"{100 * line.test:.1f}", str(line.gain or ""),
        ]
        for line in found
    ]  # fmt: skip
    print_table(name, ["target", "mode", "method", "seeds", "dev %", "test %", "gain, points, 95 %"], rows)
    say("gain: over the best zero-shot source chosen on dev (ExcTar) or self (IncTar)")
