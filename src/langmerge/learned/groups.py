"""Which tensors share a coefficient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from langmerge.coefficients import Coefficients, group_of
from langmerge.errors import InputError

KINDS = ("model", "block", "tensor", "given")

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Grouping:
    """Groups of tensors that move together, and what does not move.

    Attributes:
        sources: in the order of coefficients.
        groups: names as a coefficients file has them.
        tensors: names of each group's tensors.
        frozen: tensors that keep the start's coefficients.
        start: numbers that everything begins with.
    """

    sources: tuple[str, ...]
    groups: tuple[str, ...]
    tensors: tuple[tuple[str, ...], ...]
    frozen: tuple[str, ...]
    start: Coefficients

    def initial(self) -> Numbers:
        """The start, (groups, sources).

        Raises:
            InputError: tensors of one group start from different numbers.
        """
        rows = []
        for group, names in zip(self.groups, self.tensors, strict=True):
            own = {tuple(self.row(name)) for name in names}
            if len(own) > 1:
                raise InputError(
                    f"the start has different coefficients within the group {group!r}: "
                    "learn finer groups, or start from a file without them"
                )
            rows.append(own.pop())
        return np.array(rows, dtype=np.float64)

    def row(self, tensor: str) -> list[float]:
        """The start's coefficients of one tensor."""
        found = self.start.for_tensor(tensor)
        return [found[source] for source in self.sources]

    def weights(self, values: Numbers) -> dict[str, Sequence[float]]:
        """Coefficients of every tensor that moves."""
        return {name: values[at].tolist() for at, names in enumerate(self.tensors) for name in names}

    def coefficients(
        self, values: Numbers, *, target: str | None, provenance: dict[str, Any]
    ) -> Coefficients:
        """As a file that replays the merge: learned groups, and the start for what was frozen."""
        start = self.start.values
        file: dict[str, dict[str, float]] = {"model": dict(start["model"])}
        for group, row in zip(self.groups, values, strict=True):
            file[group] = dict(zip(self.sources, row.tolist(), strict=True))
        for part in sorted({group_of(name) for name in self.frozen}):
            # A part that is frozen as a whole is one line; `learn model` with a frozen head is the common case.
            rows = {tuple(self.row(name)) for name in self.frozen if group_of(name) == part}
            if len(rows) == 1 and part not in file:
                file[part] = dict(zip(self.sources, rows.pop(), strict=True))
        found = Coefficients(target=target, values=file, provenance=provenance)
        for name in self.frozen:
            if [found.for_tensor(name)[source] for source in self.sources] != self.row(name):
                file[f"tensor:{name}"] = dict(zip(self.sources, self.row(name), strict=True))
        return Coefficients(target=target, values=file, provenance=provenance)


def grouping(
    tensors: Sequence[str],
    start: Coefficients,
    *,
    kind: str,
    sources: Sequence[str],
    freeze: frozenset[str] = frozenset(),
    fixed: Sequence[str] = (),
) -> Grouping:
    """Put tensors into groups.

    Args:
        tensors: that change with the coefficients.
        start: coefficients to begin with; with `given`, its groups are learned.
        kind: `model` (task-wise), `block`, `tensor` (what the AdaMerging paper calls layer-wise), or `given`.
        sources: in the order of the task vectors.
        freeze: parts that keep the start: `head`, `embeddings`, `other` or `block:<n>`.
        fixed: tensors that keep the start though coefficients decide on them: a head that the base lacks is a mean.

    Raises:
        InputError: no such kind; the start is for other sources; nothing is left to learn.
    """
    if kind not in KINDS:
        raise InputError(f"groups is {kind!r}: it must be one of {', '.join(KINDS)}")
    if set(start.sources) != set(sources):
        raise InputError(
            f"the start has coefficients of {sorted(start.sources)}, the merge is of {sorted(sources)}"
        )
    of: dict[str, list[str]] = {}
    frozen = list(fixed)
    for name in tensors:
        if group_of(name) in freeze:
            frozen.append(name)
        else:
            of.setdefault(_group(name, kind, start), []).append(name)
    if not of:
        raise InputError(
            f"nothing is left to learn: all {len(frozen)} tensors are frozen ({', '.join(sorted(freeze))})"
        )
    return Grouping(tuple(sources), tuple(of), tuple(map(tuple, of.values())), tuple(frozen), start)


def _group(name: str, kind: str, start: Coefficients) -> str:
    if kind == "given":
        named = (f"tensor:{name}", group_of(name))
        return next((group for group in named if group in start.values), "model")
    return {"model": "model", "block": group_of(name), "tensor": f"tensor:{name}"}[kind]
