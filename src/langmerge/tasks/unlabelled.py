"""Text without labels: all that learning on a target may see of it."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from langmerge.errors import DataError
from langmerge.locales import canonical_locale
from langmerge.results import signature
from langmerge.tasks.choices import what_is_accepted
from langmerge.tasks.records import Record, json_records, table_records
from langmerge.tasks.task import Examples, Task

_KEYS = ("text", "utt")
"""Where a record may have its text: langmerge's own name, then MASSIVE's."""

_LABEL_KEYS = frozenset({"label", "labels", "intent", "scenario", "category", "class", "target"})

Lines = Iterator[tuple[str, str]]
"""Where a text stands in its file (the line's or the record's number), and the text."""


@dataclass(frozen=True)
class Unlabelled:
    """Texts of one locale; there is no field through which a label could get in.

    Attributes:
        texts: in file order, none blank.
        ids: one per text; of a file, the numbers of its lines or records.
        origin: `massive:intent sw-KE train`, or the file's absolute path.
        locale: BCP 47 tag.
        signature: hash of ids and texts.
        notes: one line each, to be recorded and shown: overlap with test, what was left out.
        overlap: rows shared with the task's test split (by id in a task, by exact text for a file); 0 where there is
            no task to compare with.
    """

    texts: tuple[str, ...]
    ids: tuple[str, ...]
    origin: str
    locale: str
    signature: str
    notes: tuple[str, ...] = ()
    overlap: int = 0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.texts) or not self.texts:
            raise DataError(
                f"{self.origin}: unlabelled text needs rows and one id for each, "
                f"got {len(self.texts)} texts and {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.texts)


def task_text(task: Task, locale: str, *, split: str = "train", limit: int | None = None) -> Unlabelled:
    """The text of a task's split; its labels are left behind here.

    Args:
        task: whose text.
        locale: of the text.
        split: `test` is allowed and noted: what is learned on it is then transductive.
        limit: at most so many rows, drawn as by `Examples.limited`.

    Raises:
        LocaleError, DataError: see `Task.load` and `Examples.limited`.
    """
    found = task.load(locale, split).limited(limit)
    test, unknown = _test_split(task, found.locale)
    notes, shared = list(unknown), 0
    if test is not None:
        ids, said = set(test.ids), {text.strip() for text in test.texts}
        shared = sum(row in ids for row in found.ids)
        again = sum(
            row not in ids and text.strip() in said for row, text in zip(found.ids, found.texts, strict=True)
        )
        notes += _overlap_note(shared, len(found))
        if again:
            notes.append(
                f"{again} of {len(found)} texts read as one of the test split does, under another id"
            )
    return _unlabelled(found, origin=f"{task.name} {found.locale} {found.split}", notes=notes, overlap=shared)


def file_text(path: Path, *, locale: str, task: Task | None = None, limit: int | None = None) -> Unlabelled:
    """The texts of a file: `.txt` (one a line), `.jsonl` with `text` or MASSIVE's `utt`, `.csv` with `text`; `.gz` too.

    Blank texts are left out and noted; a column of labels is never read, and noted.

    Args:
        path: the file.
        locale: of the texts; the file is believed.
        task: texts that its test split has too (exactly, but for space around them) are counted and noted.
        limit: at most so many rows, drawn as by `Examples.limited`.

    Raises:
        DataError: the file cannot be read or is of no such kind, a record has no text, or nothing is left.
        LocaleError: no such locale, or the task does not have it.
    """
    path, locale = path.expanduser().absolute(), canonical_locale(locale)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in _READERS:
        raise DataError(f"{path} is no text file known here: {what_is_accepted(f'.{kind}', _ACCEPTED)}")
    notes: list[str] = []
    kept: list[tuple[str, str]] = []
    blank = 0
    for number, text in _READERS[kind](path, notes):
        if text.strip():
            kept.append((number, text))
        else:
            blank += 1
    if not kept:
        raise DataError(f"{path} has no text: all of its {blank} lines are blank or there are none")
    if blank:
        notes.append(f"{blank} blank lines were left out")
    found = Examples(
        locale=locale,
        split="file",
        ids=tuple(number for number, _ in kept),
        texts=tuple(text for _, text in kept),
        labels=np.zeros(len(kept), dtype=np.int64),  # only the way rows are drawn is wanted of Examples
    ).limited(limit)
    test, unknown = _test_split(task, locale) if task else (None, [])
    said = {text.strip() for text in test.texts} if test else set()
    shared = sum(text.strip() in said for text in found.texts)
    notes += [*unknown, *_overlap_note(shared, len(found))]
    return _unlabelled(found, origin=str(path), notes=notes, overlap=shared)


def _unlabelled(found: Examples, *, origin: str, notes: list[str], overlap: int) -> Unlabelled:
    own = signature([found.ids, found.texts])
    return Unlabelled(found.texts, found.ids, origin, found.locale, own, tuple(notes), overlap)


def _test_split(task: Task, locale: str) -> tuple[Examples | None, list[str]]:
    """The test split, or the note that says why overlap with it is not known."""
    try:
        return task.load(locale, "test"), []
    except DataError as error:
        return None, [f"overlap with the test split is not known: {error}"]


def _overlap_note(shared: int, rows: int) -> list[str]:
    if not shared:
        return []
    return [f"{shared} of {rows} texts are also in the test split: results on it are transductive"]


def _line_texts(path: Path, notes: list[str]) -> Lines:  # noqa: ARG001
    open_text: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    try:
        # utf-8-sig: editors on Windows put a byte order mark first.
        with open_text(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                yield str(number), line.rstrip("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _record_texts(
    path: Path, notes: list[str], *, records: Callable[[Path], Iterator[Record]], keys: tuple[str, ...]
) -> Lines:
    unread: set[str] = set()
    for number, (where, record) in enumerate(records(path), start=1):
        key = next((key for key in keys if key in record), None)
        if key is None:
            raise DataError(
                f"{where}: no {' or '.join(map(repr, keys))} here, there are: {', '.join(record) or 'no keys'}"
            )
        if not isinstance(record[key], str):
            raise DataError(f"{where}: {key!r} must be text, got {record[key]!r}")
        unread |= _LABEL_KEYS & record.keys()
        yield str(number), record[key]
    if unread:
        notes.append(f"labels in the file were not read: {', '.join(sorted(unread))}")


_READERS: dict[str, Callable[[Path, list[str]], Lines]] = {
    "txt": _line_texts,
    "jsonl": partial(_record_texts, records=json_records, keys=_KEYS),
    "csv": partial(_record_texts, records=partial(table_records, delimiter=","), keys=_KEYS),
}
_ACCEPTED = tuple(f".{kind}{packed}" for kind in _READERS for packed in ("", ".gz"))
