"""A sweep: base, experts, matrices, and every cell of a grid, each written down when it is done."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from langmerge.errors import OutputError
from langmerge.evaluate import PoolEvaluator, transfer_matrix
from langmerge.executors import check_executor, executed, started
from langmerge.experiments.desk import Ground, Model, Work, desk, failed, fill, unwritten, write
from langmerge.experiments.grid import Grid
from langmerge.experiments.places import cell_of, places
from langmerge.experiments.study import studies_of
from langmerge.progress import Progress, silent
from langmerge.results import signature
from langmerge.results.records import Outcome, Sweep
from langmerge.results.store import STORE, Store
from langmerge.results.study import Study
from langmerge.selection import TransferMatrix
from langmerge.tasks import load_task
from langmerge.training import base_name, ensure_base, train_pool

MODELS = "models"
"""In a sweep's folder, where merges are written, if they are to be."""

MATRIX = "transfer.dev.json"
"""In a pool's folder, by which sources are chosen."""


@dataclass(frozen=True)
class Workers:
    """Who works on cells.

    Attributes:
        executor: `local`, or `ray`.
        address: of a Ray cluster that sees the sweep's folder.
        gpus: of a cell, as Ray counts them.

    Raises:
        InputError: there is no such executor, or Ray's settings are given without Ray.
    """

    executor: str = "local"
    address: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check_executor(self.executor, self.address, self.gpus)


@dataclass(frozen=True)
class Swept:
    """What came out.

    Attributes:
        sweep: as the store has it.
        studies: one for each seed.
        failed: cells that went wrong, with their reasons.
        found: cells that were there before.
        filled: cells that this call has filled.
        seconds: that it took.
        unwritten: by cell, why its merge could not be written as a model.
    """

    sweep: Sweep
    studies: tuple[Study, ...]
    failed: tuple[Outcome, ...]
    found: int
    filled: int
    seconds: float
    unwritten: Mapping[str, str] = field(default_factory=dict)


def run_sweep(
    grid: Grid,
    out: Path,
    *,
    store: Store | None = None,
    name: str = "sweep",
    data: Path | None = None,
    workers: Workers = Workers(),
    retry: bool = False,
    keep_models: bool = False,
    progress: Progress = silent,
) -> Swept:
    """Do what a grid says; everything finished is kept, and a second call goes on from there.

    Choices (sources, best zero-shot source, verdict) read dev; test is only reported.

    Args:
        grid: what to do.
        out: folder for the base and the pools with their logits.
        store: where results go; `out`/store.sqlite by default.
        name: how the sweep is called.
        data: where the task's data is.
        workers: who works on cells.
        retry: try cells again that have failed.
        keep_models: write every merge as a model, `out`/models/<signature of its cell>; those of cells that are done too.
        progress: told about every step.

    Raises:
        OutputError: another sweep is at work in the folder.
    """
    begun = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    opened = nullcontext(store) if store is not None else Store(out / STORE)
    with opened as kept, _alone(out), started(workers.executor, workers.address):
        grounds = prepare(grid, out, data=data, workers=workers, progress=progress)
        works = planned(grid, grounds)
        sweep = _sweep(grid, name, grounds, works)
        cells = [work.cell.signature for work in works]
        kept.plan(sweep, cells)
        states = kept.states(cells)
        again = {"done"} if retry else {"done", "failed"}
        todo = [work for work in works if states.get(work.cell.signature) not in again]
        with progress("cells", len(works)) as advance:
            advance(len(works) - len(todo))
            for _, outcome in executed(
                fill, todo, executor=workers.executor, address=workers.address, gpus=workers.gpus, failed=failed
            ):  # fmt: skip
                kept.record(outcome)
                advance(1)
        unwritten = _write_models(kept, works, out, workers, progress) if keep_models else {}
        seconds = time.monotonic() - begun
        found = swept(kept, sweep, found=len(works) - len(todo), filled=len(todo), seconds=seconds)
        return replace(found, unwritten=unwritten)


def _write_models(
    kept: Store, works: Sequence[Work], out: Path, workers: Workers, progress: Progress
) -> dict[str, str]:
    """Every merge that is done and not there yet, as a model; by cell what went wrong."""
    done = kept.states([work.cell.signature for work in works])
    models = [
        Model(work, folder)
        for work in works
        if work.place.kind == "merge" and done.get(work.cell.signature) == "done"
        and not (folder := out.absolute() / MODELS / work.cell.signature).exists()
    ]  # fmt: skip
    wrong = {}
    with progress("models", len(models)) as advance:
        for place, said in executed(
            write, models, executor=workers.executor, address=workers.address, gpus=workers.gpus, failed=unwritten
        ):  # fmt: skip
            if said is not None:
                wrong[models[place].work.cell.signature] = said
            advance(1)
    return wrong


def swept(store: Store, sweep: Sweep, *, found: int, filled: int, seconds: float) -> Swept:
    """A sweep as the store has it."""
    outcomes = store.outcomes(sweep.signature)
    wrong = tuple(one for one in outcomes if one.run is None)
    return Swept(sweep, studies_of(sweep, outcomes, seconds=seconds), wrong, found, filled, seconds)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two sweeps in one folder would do the same work twice."""
    try:
        with FileLock(out / ".sweep.lock", timeout=0):
            yield
    except Timeout:
        raise OutputError(
            f"another sweep is at work in {out}: wait for it, or choose another folder"
        ) from None


def prepare(
    grid: Grid,
    out: Path,
    *,
    data: Path | None = None,
    workers: Workers = Workers(),
    progress: Progress = silent,
) -> list[Ground]:
    """Base, experts and dev matrices, one ground for each seed."""
    task = load_task(grid.task, data=data)
    base = ensure_base(grid.base, out / "base", task=task, locales=grid.locales, progress=progress)
    found = []
    for training in grid.trainings:
        pool = train_pool(
            pool_folder(grid, out, training.seed), base=base, task=task, locales=grid.locales,
            training=training, executor=workers.executor, address=workers.address, gpus=workers.gpus, data=data,
            progress=progress,
        )  # fmt: skip
        evaluator = PoolEvaluator(pool, task, limits={"dev": grid.matrix_limit})
        transfer_matrix(
            evaluator, split="dev", locales=grid.measured_on, executor=workers.executor, address=workers.address,
            gpus=workers.gpus, data=data, progress=progress,
        )  # fmt: skip
        found.append(ground_of(grid, out, training.seed, data))
    return found


def pool_folder(grid: Grid, out: Path, seed: int) -> Path:
    """Where the experts of a seed are."""
    parts = ["pool", *(["disjoint"] if grid.ids == "disjoint" else ())]
    return out / "-".join([*parts, *([str(seed)] if seed != grid.training.seed else ())])


def ground_of(grid: Grid, out: Path, seed: int, data: Path | None) -> Ground:
    """What the cells of a seed stand on; the pool may lack experts yet, and the matrix."""
    root = pool_folder(grid, out, seed).absolute()
    state = signature([(root / name).read_text() for name in ("pool.yaml", MATRIX) if (root / name).exists()])
    limits = (("dev", grid.matrix_limit), ("test", grid.test_limit))
    return Ground(root, data, grid.sources, limits, seed, state, grid.joint_training(seed))


def planned(grid: Grid, grounds: Sequence[Ground], targets: Sequence[str] | None = None) -> list[Work]:
    """Every cell of a sweep, seed by seed and target by target; none twice.

    Args:
        grid: what to do.
        grounds: of its seeds.
        targets: only these; their own experts and the sources' must be there.
    """
    found: dict[str, Work] = {}
    wanted = grid.targets if targets is None else targets
    for ground in grounds:
        own = {target: desk(ground).grounds(target) for target in wanted}
        joint = ground.joint.payload() if ground.joint is not None else None
        for place in places(grid):
            if place.target not in own:
                continue
            cell = cell_of(place, own[place.target], seed=ground.seed, columns=grid.measured_on, joint=joint)
            found.setdefault(cell.signature, Work(ground, place, cell))
    return list(found.values())


def _sweep(grid: Grid, name: str, grounds: Sequence[Ground], works: Sequence[Work]) -> Sweep:
    evaluator = desk(grounds[-1]).evaluator
    task = evaluator.task
    record: dict[str, Any] = {"grid": grid.model_dump(mode="json"), "matrices": {}}
    for ground in grounds:
        record["matrices"][str(ground.seed)] = _matrix(TransferMatrix.load(ground.root / MATRIX))
    # One grid under two names is two sweeps, of the same cells.
    own = signature(["sweep", name, record["grid"], [work.cell.signature for work in works]])
    return Sweep(own, name, task.name, task.revision, base_name(evaluator.pool), record)


def _matrix(matrix: TransferMatrix) -> dict[str, Any]:
    return {
        "sources": list(matrix.sources),
        "targets": list(matrix.targets),
        "values": matrix.values.round(6).tolist(),
        "split": matrix.split,
        "signature": matrix.provenance["signature"],
    }
