"""Rows of embeddings in the output's order, a range at a time, and what stands in for those that are missing.

The fill rule: a checkpoint that lacks a piece takes the base's row for it, so its delta there is zero. Where the base
lacks the piece too, the plain mean of the sources that have it stands in, in the base and in every source without it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from langmerge.engine.vocabulary import Alignment
from langmerge.errors import CheckpointError

_ID_KEYS = ("token_id", "token_ids", "token_index", "suppress_tokens")
"""Ends of the keys in config.json and generation_config.json whose values are token ids."""

Run = tuple[int, int, int]
"""Place in the output, place in the checkpoint, number of rows."""


def runs(rows: np.ndarray) -> list[Run]:
    """The stretches that can be read at once: where the output's next row is the checkpoint's next row.

    Args:
        rows: int64 of shape (n,), the checkpoint's row for each row of the output, -1 where it has none.

    Returns:
        (first row in `rows`, first row in the checkpoint, length), without the missing rows.

    >>> runs(np.array([4, 5, -1, 0, 1, 2]))
    [(0, 4, 2), (3, 0, 3)]
    """
    if not rows.size:
        return []
    # From a missing row to row 0 is a step of one as well.
    joined = (np.diff(rows) == 1) & (rows[:-1] >= 0)
    starts = np.flatnonzero(np.concatenate(([True], ~joined)))
    lengths = np.diff(np.append(starts, rows.size))
    held = rows[starts] >= 0
    return list(zip(starts[held].tolist(), rows[starts[held]].tolist(), lengths[held].tolist(), strict=True))


@dataclass(frozen=True)
class RowBlock:
    """A range of output rows: what to read, and what to fill in.

    Attributes:
        start: first row of the output.
        rows: per checkpoint, int64 of shape (n,): its row for each row of the range, -1 where it has none.
        base: which of them is the base, None where the tensor is not in the base.
    """

    start: int
    rows: Mapping[str, np.ndarray]
    base: str | None

    def filled(self) -> dict[str, np.ndarray]:
        """Per checkpoint, the places in the range that `fill` gives a value; only where there are any."""
        return {name: np.flatnonzero(rows < 0) for name, rows in self.rows.items() if (rows < 0).any()}

    def fill(self, values: Mapping[str, np.ndarray]) -> None:
        """Give the missing rows their values, in place, by the fill rule.

        Args:
            values: per checkpoint, floating-point of shape (n, *S), the rows that it has in their places. What stands
                in the others is never read. The means are of this dtype, summed in the order of `rows`.

        Raises:
            CheckpointError: a row that no checkpoint has.
        """
        missing = {name: rows < 0 for name, rows in self.rows.items()}
        if self.base is None:
            unheld = np.any(list(missing.values()), axis=0)
        else:
            unheld = missing[self.base]
            for name, own in missing.items():
                values[name][own & ~unheld] = values[self.base][own & ~unheld]
        places = np.flatnonzero(unheld)
        if not places.size:
            return
        mean = _mean_of_holders(values, {name: ~own for name, own in missing.items()}, places, self.start)
        for name, own in missing.items():
            values[name][places[own[places]]] = mean[own[places]]


def _mean_of_holders(
    values: Mapping[str, np.ndarray], held: Mapping[str, np.ndarray], places: np.ndarray, start: int
) -> np.ndarray:
    """Mean of the checkpoints that have a row, shape (places, *S); the row itself where one alone has it."""
    counts = sum((has[places].astype(np.int64) for has in held.values()), np.zeros(len(places), np.int64))
    if not counts.all():
        row = start + int(places[counts == 0][0])
        raise CheckpointError(
            f"row {row} of the output's vocabulary is in none of the sources that are merged"
        )
    example = next(iter(values.values()))
    total = np.zeros((len(places), *example.shape[1:]), example.dtype)
    begun = np.zeros(len(places), bool)
    for name, has in held.items():
        own, first, later = values[name], has[places] & ~begun, has[places] & begun
        # Not added to a zero: -0.0 would lose its sign.
        total[first] = own[places[first]]
        total[later] += own[places[later]]
        begun |= first
    total /= counts.reshape(-1, *[1] * (total.ndim - 1)).astype(total.dtype)
    return total


def row_block(
    alignment: Alignment, names: Iterable[str], *, base: str | None, start: int = 0, stop: int | None = None
) -> RowBlock:
    """A range of the output's rows in the checkpoints that have the tensor.

    Args:
        alignment: of all checkpoints.
        names: of the checkpoints that have the tensor, the base included, in the order of arithmetic.
        base: which of them is the base, if it has the tensor.
        start: first row of the output, from 0.
        stop: the row after the last, at most `alignment.pieces`, which is the default.
    """
    stop = alignment.pieces if stop is None else stop
    identity = np.arange(start, stop)
    rows = {name: alignment.rows[name][start:stop] if name in alignment.rows else identity for name in names}
    return RowBlock(start, rows, base)


def count_unheld(alignment: Alignment, names: Iterable[str]) -> int:
    """Rows of the output that none of these checkpoints has: they could not be filled."""
    held = [alignment.rows[name] >= 0 if name in alignment.rows else None for name in names]
    known = [one for one in held if one is not None]
    return int((~np.any(known, axis=0)).sum()) if known and len(known) == len(held) else 0


def renumbered(config: Mapping[str, Any], alignment: Alignment, name: str, size: int) -> dict[str, Any]:
    """A checkpoint's config.json (or generation_config.json) with its token ids in the output's order.

    Those are the keys that end in one of `_ID_KEYS`, also in nested parts; `vocab_size` becomes the output's.

    Args:
        config: of the checkpoint.
        alignment: of all checkpoints.
        name: of the checkpoint.
        size: rows of its embeddings.

    Raises:
        CheckpointError: a token that the output's vocabulary lacks.
    """
    to_output = np.full(size, -1, np.int64)
    rows = alignment.rows.get(name, np.arange(min(size, alignment.pieces)))
    held = np.flatnonzero(rows >= 0)
    to_output[rows[held]] = held

    def changed(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: changed(inner, one) for inner, one in value.items()}
        if isinstance(value, list):
            return [changed(key, one) for one in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if key == "vocab_size" and value == size:
            return alignment.pieces
        # Ids outside of the embeddings (-1, -100) mean something else.
        if not key.endswith(_ID_KEYS) or not 0 <= value < size:
            return value
        if to_output[value] < 0:
            raise CheckpointError(
                f"{key} {value} of {name} stands for a piece that the output's vocabulary lacks: "
                f"take the vocabulary of {name}, or the union"
            )
        return int(to_output[value])

    return {key: changed(key, value) for key, value in config.items()}
