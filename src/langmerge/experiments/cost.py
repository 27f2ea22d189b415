"""What a sweep would cost, before it is begun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from langmerge.experiments.desk import Work
from langmerge.experiments.grid import Grid
from langmerge.experiments.places import Place, places
from langmerge.experiments.sweep import MATRIX, MODELS, ground_of, planned, pool_folder
from langmerge.measuring import ROWS as HEAD_ROWS
from langmerge.pool import Pool
from langmerge.results.store import Store
from langmerge.results.study import SINGLE_EXPERTS
from langmerge.selection import TransferMatrix
from langmerge.tasks import Task, load_task
from langmerge.training import OFFLINE, Training, ensure_base
from langmerge.training.bases import is_kept, offline_provenance
from langmerge.training.pool import untrained
from langmerge.training.rates import Rates, measured_rates


@dataclass(frozen=True)
class Cost:
    """Seconds that something takes, one piece after the other.

    Attributes:
        seconds: how long.
        tried: they come from a few rows on this machine, for nothing of the kind has finished; else from what has.
    """

    seconds: float
    tried: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a sweep would cost.

    Attributes:
        untrained: experts that are missing, by seed.
        cells: all cells.
        done: those that the store has.
        failed: those that went wrong before.
        due: those that would be filled.
        unwritten: merges that are no models in the sweep's folder yet: what `keep_models` would write.
        training: the missing experts, if none stops early.
        measuring: their rows of the dev matrix.
        filling: the rest of the cells; where it is tried, without the merging itself and with every source read once.
    """

    untrained: Mapping[int, tuple[str, ...]]
    cells: int
    done: int
    failed: int
    due: int
    unwritten: int
    training: Cost
    measuring: Cost
    filling: Cost


@dataclass(frozen=True)
class Passes:
    """Rows that go through a model.

    Attributes:
        forward: to be predicted.
        training: to be trained on, counted once an epoch.
    """

    forward: int = 0
    training: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.training + other.training)

    def __mul__(self, times: int) -> "Passes":
        return Passes(times * self.forward, times * self.training)

    def seconds(self, rates: Rates) -> float:
        """At a machine's rates."""
        return self.forward * rates.forward + self.training * rates.training


def estimate(
    grid: Grid, out: Path, *, store: Store | None = None, data: Path | None = None, retry: bool = False
) -> Estimate:
    """What is still to be done, and what it would cost; writes nothing.

    Where nothing of a kind has finished, a model is trained on and predicts a few rows, in memory.

    Args:
        grid: what to do.
        out: the sweep's folder.
        store: where finished cells are.
        data: where the task's data is.
        retry: cells that have failed are tried again.

    Raises:
        LocaleError, DataError: the task has no such locale, or too few rows for shares of them.
        OutputError: the folder has a base for other locales.
        CheckpointError: the base cannot be read.
    """
    task = load_task(grid.task, data=data)
    if grid.base == OFFLINE:
        is_kept(out / "base", offline_provenance(task, grid.locales))
    for locale in grid.locales:
        grid.trainings[0].rows(task.load(locale, "train"))
    states = [_State(grid, out, training, task) for training in grid.trainings]
    works = [work for state in states for work in state.planned(data)]
    found = store.states([work.cell.signature for work in works]) if store is not None else {}
    settled = ("done",) if retry else ("done", "failed")
    rest = {
        state.seed: [
            *(
                w.place
                for w in works
                if w.ground.seed == state.seed and found.get(w.cell.signature) not in settled
            ),
            *(place for place in places(grid) if place.target not in state.ready),
        ]
        for state in states
    }
    written = sum((out / MODELS / one.cell.signature).exists() for one in works if one.place.kind == "merge")
    counted = _Counted(grid, out, task)
    return Estimate(
        {state.seed: state.untrained for state in states if state.untrained},
        len(places(grid)) * len(states),
        sum(one == "done" for one in found.values()),
        sum(one == "failed" for one in found.values()),
        sum(map(len, rest.values())),
        sum(place.kind == "merge" for place in places(grid)) * len(states) - written,
        counted.training(sum(len(state.untrained) for state in states)),
        counted.measuring(sum(state.unmeasured for state in states)),
        counted.filling(rest, store),
    )


class _State:
    """What there is of a seed.

    Args:
        grid: of the sweep.
        out: its folder.
        training: of the seed's experts.
        task: of the grid, loaded.

    Attributes:
        seed: of the training.
        untrained: locales without an expert, or with one of other settings.
        ready: targets that can be worked on as soon as the matrix is there: all of their experts are.
    """

    def __init__(self, grid: Grid, out: Path, training: Training, task: Task) -> None:
        self.grid, self.out, self.seed = grid, out, training.seed
        self.root = pool_folder(grid, out, training.seed)
        there = (self.root / "pool.yaml").exists()
        missing = untrained(Pool.load(self.root), task, grid.locales, training) if there else grid.locales
        self.untrained = tuple(missing)
        ready = not set(missing) & set(grid.sources)
        self.ready = tuple(target for target in grid.targets if ready and target not in missing)

    @property
    def unmeasured(self) -> int:
        """Rows of the dev matrix that are not there."""
        if not (self.root / MATRIX).exists():
            return len(self.grid.locales)
        matrix = TransferMatrix.load(self.root / MATRIX)
        if matrix.provenance.get("limit") != self.grid.matrix_limit or set(self.grid.measured_on) - set(
            matrix.targets
        ):
            return len(self.grid.locales)
        return len({*self.untrained, *(one for one in self.grid.locales if one not in matrix.sources)})

    def planned(self, data: Path | None) -> list[Work]:
        """Cells whose signatures are known."""
        if not self.ready:
            return []
        return planned(self.grid, [ground_of(self.grid, self.out, self.seed, data)], self.ready)


class _Counted:
    """Pieces of a sweep, counted in rows, and what they cost.

    Args:
        grid: of the sweep.
        out: its folder.
        task: of the grid, loaded.
    """

    def __init__(self, grid: Grid, out: Path, task: Task) -> None:
        self.grid, self.out, self.task = grid, out, task

    @cached_property
    def rates(self) -> Rates:
        """Of this machine; tried once, and only if they are needed."""
        training, locale = self.grid.trainings[0], self.grid.targets[0]
        with TemporaryDirectory(prefix="langmerge-") as folder:
            base: Path | str = self.grid.base
            if base == OFFLINE:
                kept = self.out / "base"
                base = kept if kept.exists() else ensure_base(
                    OFFLINE, Path(folder) / "base", task=self.task, locales=[locale]
                )  # fmt: skip
            return measured_rates(base, self.task, locale, training)

    def tried(self, passes: Passes) -> Cost:
        """By the machine's rates; nothing is tried for nothing."""
        return Cost(passes.seconds(self.rates), tried=True) if passes != Passes() else Cost(0.0)

    def rows(self, locale: str, split: str) -> int:
        """That are predicted of a split."""
        limit = self.grid.matrix_limit if split == "dev" else self.grid.test_limit
        return len(self.task.load(locale, split).limited(limit))

    def training(self, missing: int) -> Cost:
        """So many experts."""
        finished = [
            float(one.training["seconds"])
            for training in self.grid.trainings
            if ((root := pool_folder(self.grid, self.out, training.seed)) / "pool.yaml").exists()
            for one in Pool.load(root).experts.values()
            # Of other settings they take another time.
            if "seconds" in one.training
            and one.training.get("settings", {}).get("epochs") == training.epochs
            and one.training.get("settings", {}).get("batch_size") == training.batch_size
        ]
        if finished:
            return Cost(missing * sum(finished) / len(finished))
        training = self.grid.trainings[0]
        return self.tried(self._trained([self.grid.locales[0]], training) * missing)

    def _trained(self, locales: Sequence[str], training: Training) -> Passes:
        """A model trained on the rows of these locales; dev rows are read once an epoch."""
        rows = sum(len(training.rows(self.task.load(locale, "train"))) for locale in locales)
        dev = len(self.task.load(locales[0], "dev").limited(training.max_dev))
        return Passes(dev, rows) * training.epochs

    def measuring(self, missing: int) -> Cost:
        """Rows of the dev matrix."""
        if not missing:
            return Cost(0.0)
        return self.tried(Passes(missing * sum(self.rows(one, "dev") for one in self.grid.measured_on)))

    def filling(self, rest: Mapping[int, Sequence[Place]], store: Store | None) -> Cost:
        """Cells, by what others of their kinds took, or by their rows."""
        kinds = [place.kind for own in rest.values() for place in own]
        known = store.expected_seconds(kinds) if store is not None else None
        if known is not None:
            return Cost(known)
        passes = Passes()
        for seed, own in rest.items():
            for target in dict.fromkeys(place.target for place in own):
                passes += self._target(target, [place for place in own if place.target == target], seed)
        return self.tried(passes)

    def _target(self, target: str, own: Sequence[Place], seed: int) -> Passes:
        """Cells of one target with one seed: sources on test, once each, and every merge on dev and test."""
        dev, test = self.rows(target, "dev"), self.rows(target, "test")
        sources = {place.selector: 0 for place in own if place.k}
        for place in own:
            if place.k:
                sources[place.selector] = max(sources[place.selector], place.k)
        experts = sum(place.kind in SINGLE_EXPERTS for place in own) + sum(sources.values())
        everyone = len(self.grid.locales)
        if any(place.kind == "best_in_hindsight" for place in own):
            experts = everyone
        # Where sources are measured on targets alone, these have dev logits already.
        found = Passes(min(experts, everyone) * test)
        for place in own:
            if place.kind == "merge":
                head = place.choice is not None and place.choice.head == "regmean"
                found += Passes(dev + test + (place.k * HEAD_ROWS if head else 0))
            elif place.kind == "joint" and (joint := self.grid.joint_training(seed)) is not None:
                found += self._trained(self.grid.locales[: place.k], joint) + Passes(dev + test)
        return found
