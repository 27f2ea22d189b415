"""What a task is: its labels, its locales, and one locale's labelled text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from jaxtyping import Int64

from langmerge.errors import DataError, LocaleError
from langmerge.locales import canonical_locale
from langmerge.tasks.choices import what_is_accepted

SPLITS: tuple[str, ...] = ("train", "dev", "test")
"""Every split that a task may have."""


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of one locale, in file order.

    Args:
        locale: BCP 47 tag, like `sw-KE`.
        split: one of `SPLITS`.
        ids: parallel ids: the same id is the same sentence in every locale.
        texts: one per id.
        labels: positions in `Task.labels`, one per id.

    Raises:
        DataError: the three have different lengths, or the labels are not int64 of one dimension.
    """

    locale: str
    split: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: Int64[np.ndarray, " rows"]

    def __post_init__(self) -> None:
        shape, dtype = self.labels.shape, self.labels.dtype
        if not (len(self.ids) == len(self.texts) and shape == (len(self.ids),) and dtype == np.int64):
            raise DataError(
                f"examples of {self.locale} {self.split} need as many ids, texts and int64 labels: "
                f"got {len(self.ids)} ids, {len(self.texts)} texts and {dtype} labels of shape {shape}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def limited(self, n: int | None) -> "Examples":
        """At most `n` rows, drawn by id and kept in file order.

        Conventions: the first n rows would be a trap, because files are sorted (the first 50 test rows of SIB-200
        have one topic, the first 500 of MASSIVE half of the intents). The rows whose ids have the smallest hash
        are as good as random, the same in every locale with parallel ids, and those for a smaller n are among those
        for a larger one.

        Raises:
            DataError: `n` is below 1.
        """
        if n is None:
            return self
        return self._rows(drawn_rows(self.ids, n, of=f"{self.locale} {self.split}"))

    def part(self, place: int, of: int) -> "Examples":
        """One of several parts of the rows, in file order, by id: rows with one id are in the same part in every locale.

        Args:
            place: of the part, from 0.
            of: number of parts.

        Raises:
            DataError: there is no such part, or it has no rows.
        """
        if not 0 <= place < of:
            raise DataError(f"there is no part {place} of {of}")
        rows = [row for row, name in enumerate(self.ids) if int.from_bytes(_hash(name), "big") % of == place]
        if not rows:
            raise DataError(f"{self.locale} {self.split} has {len(self)} rows: too few for {of} parts")
        return self._rows(rows)

    def _rows(self, rows: list[int]) -> "Examples":
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            labels=self.labels[rows],
        )


@dataclass(frozen=True)
class Task:
    """A classification task.

    Args:
        name: what `load_task` was given, like `massive:intent`.
        labels: the label names in their fixed order.
        locales: what is available, sorted.
        revision: identifies the data; results that were computed on different revisions are not comparable.
        load: `(locale, split) -> Examples`; a LocaleError or DataError names what is wrong and what is accepted.
    """

    name: str
    labels: tuple[str, ...]
    locales: tuple[str, ...]
    revision: str
    load: Callable[[str, str], Examples]


def drawn_rows(ids: Sequence[str], n: int, *, of: str) -> list[int]:
    """At most `n` positions in `ids`, ascending: those of the ids with the smallest hash; see `Examples.limited`.

    Args:
        ids: one per row.
        n: how many are wanted.
        of: whose rows they are, for the message.

    Raises:
        DataError: `n` is below 1.
    """
    if n < 1:
        raise DataError(f"a limit of {n} rows leaves nothing of {of}: give 1 or more")
    by_hash = sorted(range(len(ids)), key=lambda row: _hash(ids[row]))
    return sorted(by_hash[:n])


def _hash(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


def available(locale: str, split: str, *, task: str, locales: Sequence[str]) -> tuple[str, str]:
    """The locale in its one spelling, and the split.

    Raises:
        LocaleError: the task does not have the locale.
        DataError: there is no such split.
    """
    if split not in SPLITS:
        raise DataError(f"{task} has no split {split!r}: {what_is_accepted(split, SPLITS)}")
    canonical = canonical_locale(locale)
    if canonical not in locales:
        raise LocaleError(f"{task} has no locale {locale!r}: {what_is_accepted(canonical, locales)}")
    return canonical, split
