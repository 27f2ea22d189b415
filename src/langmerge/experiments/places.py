"""The places of a grid: what is to stand in each, before anything is computed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from langmerge import __version__
from langmerge.experiments.grid import Grid, MethodChoice
from langmerge.methods import spec_of
from langmerge.results import signature
from langmerge.results.records import Cell
from langmerge.results.study import KINDS, Kind
from langmerge.selection import FROM_MATRIX

CELLS = 1
"""Number of the way in which cells are filled: a change that changes none of their numbers leaves done ones valid."""


STRENGTH = 2
"""The same for the choice of sources by strength and composite."""


@dataclass(frozen=True)
class Place:
    """What is to stand somewhere.

    Attributes:
        kind: a merge, or which reference.
        target: the locale.
        mode: ExcTar or IncTar.
        selector: by which sources are chosen; None for single experts.
        k: number of sources; 0 for single experts.
        choice: of a merge.
    """

    kind: Kind
    target: str
    mode: str
    selector: str | None = None
    k: int = 0
    choice: MethodChoice | None = None

    @property
    def what(self) -> str:
        """The method with its parameters, or the reference."""
        return self.choice.name if self.choice is not None else KINDS[self.kind]

    @property
    def name(self) -> str:
        """How tables call it; dev accuracy is the usual selector and goes without saying."""
        return self.what if self.selector in (None, "measured") else f"{self.what}, by {self.selector}"

    def payload(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = {key: value for key, value in asdict(self).items() if key != "choice"}
        return {**plain, "choice": self.choice and _payload(self.choice)}


def _payload(choice: MethodChoice) -> dict[str, Any]:
    """What was added later is there only where it is used: cells that are done stay what they are."""
    said = choice.model_dump(exclude={"vary", "modes", "selectors"})
    later = {"own": None, "head": "merge"}
    return {key: value for key, value in said.items() if key not in later or value != later[key]}


def places(grid: Grid) -> list[Place]:
    """Every place of a grid for one seed, target by target, references first; none twice."""
    found = [place for target in grid.targets for place in _of(grid, target)]
    return list({signature(place.payload()): place for place in found}.values())


def _of(grid: Grid, target: str) -> Iterator[Place]:
    for kind in grid.references:
        yield Place(kind, target, "IncTar" if kind == "self" else "ExcTar")
    for by in grid.selectors:
        if by != "measured":
            # What one would take who merges nothing and has no other scores.
            yield Place("first_source", target, "ExcTar", by)
    for mode in grid.modes:
        merges = list(_merges(grid, target, mode))
        for selector, k in dict.fromkeys((one.selector, one.k) for one in merges):
            yield Place("source_mean", target, mode, selector, k)
            for kind in (*grid.ensembles, *(["joint"] if grid.joint is not None else ())):
                yield Place(kind, target, mode, selector, k)
        yield from merges


def _merges(grid: Grid, target: str, mode: str) -> Iterator[Place]:
    """A k of `all`, or beyond what there is, takes every source; methods for exactly two take the best two, once."""
    most = len({*grid.sources, target}) - (mode != "IncTar")
    for choice in grid.choices:
        if choice.modes and mode not in choice.modes:
            continue
        for selector in choice.selectors or grid.selectors:
            for k in grid.k:
                fixed = spec_of(choice.method).sources[1]
                size = fixed or (most if k == "all" else min(int(k), most))
                # An own share is nothing in ExcTar: two choices that differ in it alone are one there.
                own = choice if mode == "IncTar" else choice.model_copy(update={"own": None})
                yield Place("merge", target, mode, selector, size, own)


def cell_of(
    place: Place,
    ground: Mapping[str, Any],
    *,
    seed: int,
    columns: Sequence[str],
    joint: Mapping[str, Any] | None = None,
) -> Cell:
    """A place with the signature of all that decides what will stand there.

    Args:
        place: what.
        ground: models and data of the target.
        seed: of the experts' training.
        columns: of the transfer matrix.
        joint: how joint models are trained.
    """
    own = {"cells": CELLS, "langmerge": __version__, "place": place.payload(), "ground": dict(ground)}
    if place.selector in FROM_MATRIX:
        own["columns"] = sorted(columns)
        own["strength"] = STRENGTH
    if place.kind == "joint":
        own["joint"] = dict(joint or {})
    return Cell(
        signature(own), place.kind, place.target, place.mode, place.selector, place.k, place.name, seed
    )
