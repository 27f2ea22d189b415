"""Files of labelled text to rows, with every fault named by file and line."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from langmerge.errors import DataError
from langmerge.tasks.choices import what_is_accepted
from langmerge.tasks.task import SPLITS, Examples

Record = tuple[str, Mapping[str, Any]]
"""Where it stands ("FILE, line N"), and what it says."""


@dataclass(frozen=True)
class Row:
    """One checked record; `where` names its file and line."""

    where: str
    id: str
    text: str
    label: str
    split: str


def json_records(path: Path) -> Iterator[Record]:
    """The objects of a file with one JSON object a line, gzipped or not.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a JSON object, got {type(record).__name__}")
        yield where, record


def table_records(path: Path, *, delimiter: str) -> Iterator[Record]:
    """The rows of a table whose first line names its columns; quoting is CSV's, whatever the delimiter.

    Raises:
        DataError: the file cannot be read, a column occurs twice, or a row has more or fewer fields than columns.
    """
    reader = csv.reader(_lines(path, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{where}: not a table ({error})") from error
        if fields is None:
            return
        if not columns:
            columns = fields
            if len(set(columns)) != len(columns):
                raise DataError(f"{where}: a column occurs twice: {', '.join(columns)}")
        elif fields:  # a line without anything in it is no row
            if len(fields) != len(columns):
                raise DataError(f"{where}: expected {len(columns)} fields, one per column, got {len(fields)}")
            yield where, dict(zip(columns, fields, strict=True))


def text_of(record: Mapping[str, Any], key: str, *, where: str) -> str:
    """The text under `key`, unchanged.

    Raises:
        DataError: there is no such key, or its value is not text, or blank.
    """
    if key not in record:
        raise DataError(f"{where}: the key {key!r} is missing, there are: {', '.join(map(str, record))}")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key!r} must be text that is not blank, got {value!r}")
    return value


def identity_of(record: Mapping[str, Any], key: str, *, where: str) -> str:
    """The id under `key`: text, or a whole number, which becomes text.

    Raises:
        DataError: there is no such key, or its value is something else, or blank.
    """
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(record, key, where=where)


def split_of(record: Mapping[str, Any], key: str, *, where: str) -> str:
    """The split named under `key`.

    Raises:
        DataError: there is no such key, or no such split.
    """
    split = text_of(record, key, where=where)
    if split not in SPLITS:
        raise DataError(f"{where}: unknown {key} {split!r}: {what_is_accepted(split, SPLITS)}")
    return split


def examples_of(rows: Iterable[Row], *, locale: str, split: str, labels: Sequence[str]) -> Examples:
    """One split's rows as examples; the rows of other splits are checked and left out.

    Args:
        rows: all rows that share the ids.
        locale: theirs.
        split: the one that is wanted.
        labels: the task's, in order.

    Raises:
        DataError: an id that occurs twice, an unknown label, or no row of the split.
    """
    position = {label: index for index, label in enumerate(labels)}
    wanted: list[Row] = []
    seen: dict[str, str] = {}
    found: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(
                f"{row.where}: the id {row.id!r} occurs before, in {seen[row.id]}; ids must be unique"
            )
        seen[row.id] = row.where
        if row.label not in position:
            raise DataError(
                f"{row.where}: unknown label {row.label!r}: {what_is_accepted(row.label, labels)}"
            )
        found.add(row.split)
        if row.split == split:
            wanted.append(row)
    if not wanted:
        raise DataError(
            f"{locale} has no rows of the split {split!r}, only of: {', '.join(sorted(found)) or 'none'}"
        )
    return Examples(
        locale=locale,
        split=split,
        ids=tuple(row.id for row in wanted),
        texts=tuple(row.text for row in wanted),
        labels=np.array([position[row.label] for row in wanted], dtype=np.int64),
    )


def _lines(path: Path, *, newline: str | None = None) -> Iterator[str]:
    open_text: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with open_text(path, "rt", encoding="utf-8-sig", newline=newline) as lines:
            yield from lines
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
