"""AdaMergeX beside its baselines on a bench of adapters; t, and every baseline's own number, chosen on other languages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import numpy as np

from langmerge.adapters import (
    AdaptedModel,
    Merging,
    Transfer,
    arimerge,
    emptied,
    layer_swap,
    merge,
    open_parsed,
    transfer_adapter,
)
from langmerge.adapters.measures import layer_of
from langmerge.adapters.three import MODES
from langmerge.errors import InputError
from langmerge.evaluate import Evaluator
from langmerge.models import load_adapted_classifier, load_classifier, load_tokenizer
from langmerge.progress import Advance, Progress, silent
from langmerge.results import Logits, signature
from langmerge.tasks import (
    Interval,
    PairedDifference,
    accuracy,
    bootstrap_interval,
    load_task,
    paired_difference,
)
from langmerge.training import Bench

GRID = (0.25, 0.5, 0.75, 1.0)

MAKING = 2
"""Number of the way in which adapters are put together: kept logits of another one are not taken."""

DIRECT, SELF, BARE, STACK = "direct transfer", "self", "head on the bare base", "MAD-X stack"


@dataclass(frozen=True)
class Crossing:
    """What is compared.

    Attributes:
        bench: the adapters.
        task: whose adapter of `source` is moved.
        reference: the task that has adapters in the source and every target.
        source: the language with labels.
        targets: two or more: t for one is chosen on the dev rows of the others.
        mode: of the transfer, see `langmerge.adapters.three.MODES`.
        grid: values of t beside 0, which is direct transfer.
        limits: at most so many rows of a split.
        splits: dev, or dev and test; test is predicted with the chosen values only.
    """

    bench: Bench
    task: str
    reference: str
    source: str
    targets: tuple[str, ...]
    mode: str | None = None
    grid: tuple[float, ...] = GRID
    limits: Mapping[str, int | None] | None = None
    splits: tuple[str, ...] = ("dev",)


class Roles(TypedDict):
    """Three adapters by what they are in a transfer."""

    task_source: Path
    reference_target: Path
    reference_source: Path


@dataclass(frozen=True)
class Family:
    """Adapters for a target that differ by one number; 0 is direct transfer.

    Attributes:
        name: of the method.
        values: of the number, without 0.
        write: writes the adapter for a target and a value.
    """

    name: str
    values: tuple[float, ...]
    write: Callable[[Path, str, float], Any]


@dataclass(frozen=True)
class Line:
    """One method on one target.

    Attributes:
        target: the language.
        name: of the method.
        value: the chosen number; None where it has none.
        split: dev or test.
        accuracy: in [0, 1].
        interval: bootstrap 95 % over rows.
        gain: over direct transfer, paired, in points; None for direct transfer.
        rows: number of rows.
    """

    target: str
    name: str
    value: float | None
    split: str
    accuracy: float
    interval: Interval
    gain: PairedDifference | None
    rows: int


@dataclass(frozen=True)
class Point:
    """One value of a method's number, on all targets' dev rows.

    Attributes:
        name: of the method.
        value: its number.
        accuracies: by target.
        gain: of all rows together over direct transfer, paired, in points.
    """

    name: str
    value: float
    accuracies: Mapping[str, float]
    gain: PairedDifference


@dataclass(frozen=True)
class Compared:
    """What came out.

    Attributes:
        lines: by target, method and split.
        curve: every value on dev.
        left_out: methods that could not be tried, and why.
    """

    lines: tuple[Line, ...]
    curve: tuple[Point, ...]
    left_out: Mapping[str, str]


def compare_transfers(crossing: Crossing, *, progress: Progress = silent) -> Compared:
    """Every method on every target; what was predicted before is kept in the bench.

    Each method's number is that with the best mean dev accuracy over the other targets, 0 among them: a target's own
    labels choose nothing.

    Raises:
        InputError: fewer than two targets, or the source among them.
        PoolError: an adapter is missing; says how to train it.
    """
    work = Comparison(crossing)
    total = len(crossing.targets) * sum(len(family.values) for family in work.families)
    with progress("trying every value on dev", total) as advance:
        work.try_all(advance)
    lines = []
    with progress("measuring what was chosen", len(crossing.splits) * len(crossing.targets)) as advance:
        for target in crossing.targets:
            for split in crossing.splits:
                lines += work.lines(target, split)
                advance(1)
    return Compared(tuple(lines), tuple(work.points()), work.left_out)


class Comparison:
    """Adapters, rows and kept logits of one comparison.

    Args:
        crossing: what is compared.

    Raises:
        InputError, PoolError: see `compare_transfers`.
    """

    def __init__(self, crossing: Crossing) -> None:
        if len(set(crossing.targets)) < 2 or crossing.source in crossing.targets:
            raise InputError(
                f"targets {', '.join(crossing.targets) or 'none'}: give two or more, without the source "
                f"{crossing.source} (each is a proxy for the others)"
            )
        self.crossing, bench = crossing, crossing.bench
        self.evaluator = Evaluator(
            load_task(crossing.task, data=bench.data),
            load_tokenizer(bench.model(crossing.task)),
            limits=crossing.limits,
        )
        self.one = bench.trained(crossing.task, crossing.source)
        self.three = bench.trained(crossing.reference, crossing.source)
        self.two = {target: bench.trained(crossing.reference, target) for target in crossing.targets}
        self.mode = crossing.mode or MODES[open_parsed(self.one).kind][0]
        self.left_out: dict[str, str] = {}
        self.signatures = {
            folder: open_parsed(folder).signature() for folder in (self.one, self.three, *self.two.values())
        }
        self.families = self._families()
        self._tried: dict[tuple[str, str, float], Logits] = {}

    @cached_property
    def _model(self) -> AdaptedModel:
        return AdaptedModel(load_classifier(self.crossing.bench.model(self.crossing.task)))

    def _families(self) -> list[Family]:
        """The transfer and its baselines, where they can be made of these adapters."""
        numbers = {layer_of(module) for module in open_parsed(self.one).keys} - {None}
        layers = sorted(number for number in numbers if number is not None)
        depths = tuple(float(n) for n in (1, 2, 3) if 2 * n < len(layers))

        def roles(target: str) -> Roles:
            return {
                "task_source": self.one,
                "reference_target": self.two[target],
                "reference_source": self.three,
            }

        def moved(out: Path, target: str, t: float) -> None:
            transfer_adapter(out, **roles(target), asked=Transfer(t=t, mode=self.mode))

        def summed(out: Path, target: str, c: float) -> None:
            arimerge(out, **roles(target), c=c)

        def arithmetic(out: Path, target: str, weight: float) -> None:
            merge(out, {self.one: 1.0, self.two[target]: weight}, asked=Merging(head=self.one.name))

        def swapped(out: Path, target: str, depth: float) -> None:
            ends = {*layers[: int(depth)], *layers[-int(depth) :]}
            layer_swap(out, task=self.one, language=self.two[target], layers=ends)

        found = [
            Family("AdaMergeX", self.crossing.grid, moved),
            Family("AriMerge", (0.1, 0.25, 0.5), summed),
            Family("language arithmetic", (0.25, 0.5, 1.0), arithmetic),
            Family("layer swap", depths, swapped),
        ]
        return [family for family in found if family.values and self._possible(family)]

    def _possible(self, family: Family) -> bool:
        """Whether its first adapter can be written; for all but the transfer itself a reason is kept instead of raised."""
        try:
            with TemporaryDirectory(prefix="langmerge-") as place:
                family.write(Path(place) / "out", self.crossing.targets[0], family.values[0])
        except InputError as error:
            if family.name == "AdaMergeX":
                raise
            self.left_out[family.name] = str(error)
            return False
        return True

    def try_all(self, advance: Advance = lambda _: None) -> None:
        """Dev logits of every value on every target."""
        for family in self.families:
            for target in self.crossing.targets:
                for value in family.values:
                    self.tried(family, target, value)
                    advance(1)

    def tried(self, family: Family, target: str, value: float) -> Logits:
        """Dev logits of one value."""
        key = (family.name if value else DIRECT, target, value)
        if key not in self._tried:
            self._tried[key] = self.logits(family if value else DIRECT, target, value, "dev")
        return self._tried[key]

    def points(self) -> list[Point]:
        """The curves of all methods."""
        return [self._point(family, value) for family in self.families for value in (0.0, *family.values)]

    def _point(self, family: Family, value: float) -> Point:
        own = {target: self.tried(family, target, value).correct for target in self.crossing.targets}
        start = np.concatenate([self.tried(family, target, 0.0).correct for target in own])
        shares = {target: float(correct.mean()) for target, correct in own.items()}
        return Point(family.name, value, shares, paired_difference(np.concatenate(list(own.values())), start))

    def chosen(self, family: Family, target: str) -> float:
        """The best value on the other targets' dev rows; of equal ones the smallest."""
        others = [one for one in self.crossing.targets if one != target]

        def mean(value: float) -> float:
            return float(np.mean([self.tried(family, other, value).correct.mean() for other in others]))

        return min((0.0, *family.values), key=lambda value: (-mean(value), value))

    def outcomes(self, target: str, split: str) -> dict[str, tuple[float | None, Logits]]:
        """Every method's chosen value and its logits on a target's split; direct transfer first."""
        found: dict[str, tuple[float | None, Logits]] = {
            DIRECT: (None, self.logits(DIRECT, target, 0.0, split))
        }
        for family in self.families:
            value = self.chosen(family, target)
            found[family.name] = (value, self.logits(family if value else DIRECT, target, value, split))
        for name in (STACK, BARE, SELF):
            if (extra := self._extra(name, target, split)) is not None:
                found[name] = (None, extra)
        return found

    def lines(self, target: str, split: str) -> list[Line]:
        """All methods on one target."""
        found = self.outcomes(target, split)
        direct = found[DIRECT][1]
        return [
            _line(target, name, value, split, own, None if name == DIRECT else direct)
            for name, (value, own) in found.items()
        ]

    def _extra(self, name: str, target: str, split: str) -> Logits | None:
        """The references that are no merges, where they are there."""
        if name == BARE:
            if open_parsed(self.one).kind == "prefix":
                return None
            bare = Family(BARE, (), lambda out, _target, _value: emptied(out, task=self.one))
            return self.logits(bare, target, 0.0, split)
        if name == STACK:
            return self._stacked(target, split)
        folder = self.crossing.bench.adapter(self.crossing.task, target)
        return (
            self._predicted(folder, open_parsed(folder).signature(), target, split)
            if folder.is_dir()
            else None
        )

    def _stacked(self, target: str, split: str) -> Logits | None:
        """The task's adapter that was trained above the source's reference, above the target's instead."""
        bench, crossing = self.crossing.bench, self.crossing
        above = bench.adapter(crossing.task, crossing.source, on=crossing.reference)
        if not above.is_dir() or open_parsed(above).kind == "prefix":
            return None
        mode = "geometric" if open_parsed(above).kind == "ia3" else "cat"
        asked = Merging(mode=mode, head=crossing.source)

        def write(out: Path, where: str, _value: float) -> None:
            merge(out, {above: 1.0, self.two[where]: 1.0}, asked=asked)

        own = f"{STACK} {open_parsed(above).signature()}"
        return self.logits(Family(own, (), write), target, 0.0, split)

    def logits(self, family: Family | str, target: str, value: float, split: str) -> Logits:
        """Kept, or predicted with an adapter that is written for it and removed."""
        if isinstance(family, str):
            return self._predicted(self.one, self.signatures[self.one], target, split)
        own = signature(
            [
                MAKING, family.name, value, self.mode if family.name == "AdaMergeX" else None,
                *(self.signatures[one] for one in (self.one, self.two[target], self.three)),
            ]
        )  # fmt: skip
        with TemporaryDirectory(prefix="langmerge-") as place:
            out = Path(place) / "out"
            return self._predicted(out, own, target, split, lambda: family.write(out, target, value))

    def _predicted(
        self, folder: Path, own: str, target: str, split: str, write: Callable[[], Any] = lambda: None
    ) -> Logits:
        limit = (self.crossing.limits or {}).get(split)
        name = f"{split}.{limit}" if limit else split
        kept = self.crossing.bench.root / "logits" / name / target / f"{own}.safetensors"

        def model() -> Any:
            write()
            adapter = open_parsed(folder)
            if adapter.kind == "prefix":
                return load_adapted_classifier(folder)
            return self._model.holding(adapter)

        return self.evaluator.logits(model, own, target, split, kept=kept)


def _line(
    target: str, name: str, value: float | None, split: str, own: Logits, direct: Logits | None
) -> Line:
    return Line(
        target,
        name,
        value,
        split,
        accuracy(own.labels, own.predictions),
        bootstrap_interval(own.labels, own.predictions),
        paired_difference(own.correct, direct.correct) if direct is not None else None,
        len(own.labels),
    )
