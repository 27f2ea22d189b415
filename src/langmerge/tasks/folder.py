"""A task from a folder of your own files.

Layout:

    PATH/<locale>/<split>.jsonl     or     PATH/<locale>/<split>.csv

- `<locale>` is a BCP 47 tag (`sw-KE`), `<split>` is train, dev or test; a locale may lack splits.
- Each record has `text` and `label`, both text that is not blank. CSV files are UTF-8 and name their columns in line 1.
- `id` is optional, for all records of a file or for none. The same id must be the same sentence in every locale, and may
  occur once in a locale. Without ids the sentences of two locales count as unrelated.
- Files directly in PATH, hidden entries and keys beyond these three are not read. Anything else is an error.
- The labels are the sorted union over all files.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path

from langmerge.errors import DataError
from langmerge.locales import canonical_locale
from langmerge.tasks.choices import what_is_accepted
from langmerge.tasks.records import (
    Record,
    Row,
    examples_of,
    identity_of,
    json_records,
    table_records,
    text_of,
)
from langmerge.tasks.task import SPLITS, Examples, Task, available

PREFIX = "folder:"

Files = Mapping[str, Mapping[str, Path]]
"""Locale and split to file."""

_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".csv": partial(table_records, delimiter=","),
    ".jsonl": json_records,
}
_ACCEPTED = tuple(f"{split}{suffix}" for split in SPLITS for suffix in _READERS)


def folder_task(path: Path) -> Task:
    """A task from files in the layout above; all of them are read once, for the labels and for faults.

    Args:
        path: the folder; the task's name holds it in absolute form, so that it can be loaded from anywhere.

    Raises:
        DataError: the folder, a file or a record is not as the layout says, or an id is in two splits of a locale.
        LocaleError: a folder in it is not named by a locale.
    """
    path = path.expanduser().resolve()
    files = _files(path)
    rows = {
        locale: [row for split in found for row in _rows(locale, split, found)]
        for locale, found in files.items()
    }
    labels = tuple(sorted({row.label for found in rows.values() for row in found}))
    for locale, found in rows.items():
        # Raises when two splits share an id.
        examples_of(found, locale=locale, split=found[0].split, labels=labels)
    name = f"{PREFIX}{path}"
    return Task(
        name,
        labels,
        tuple(files),
        _digest(path, files),
        partial(_load, task=name, files=files, labels=labels),
    )


def _load(locale: str, split: str, *, task: str, files: Files, labels: tuple[str, ...]) -> Examples:
    locale, split = available(locale, split, task=task, locales=tuple(files))
    if split not in files[locale]:
        raise DataError(
            f"{task} has no split {split!r} for {locale}: {what_is_accepted(split, tuple(files[locale]))}"
        )
    return examples_of(_rows(locale, split, files[locale]), locale=locale, split=split, labels=labels)


def _files(path: Path) -> dict[str, dict[str, Path]]:
    if not path.is_dir():
        raise DataError(
            f"{PREFIX}{path} is no folder: give one that holds <locale>/<split>.jsonl or .csv files"
        )
    files: dict[str, dict[str, Path]] = {}
    for folder in sorted(
        entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    ):
        locale = canonical_locale(folder.name)
        if locale in files:
            raise DataError(f"{path} has two folders for {locale}: put their files into one")
        files[locale] = _splits(folder)
    if not files:
        raise DataError(
            f"{path} has no locales: expected folders like sw-KE with files like train.jsonl or test.csv"
        )
    return dict(sorted(files.items()))


def _splits(folder: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for path in sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
        if path.name not in _ACCEPTED:
            raise DataError(f"{path} has a name that is not used: {what_is_accepted(path.name, _ACCEPTED)}")
        if path.stem in splits:
            raise DataError(f"{folder} has the split {path.stem} twice, as .csv and as .jsonl: remove one")
        splits[path.stem] = path
    if not splits:
        raise DataError(f"{folder} has no files: expected some of {', '.join(_ACCEPTED)}")
    return splits


def _rows(locale: str, split: str, files: Mapping[str, Path]) -> Iterator[Row]:
    path = files[split]
    has_ids: bool | None = None
    for number, (where, record) in enumerate(_READERS[path.suffix](path)):
        if has_ids is not None and has_ids != ("id" in record):
            raise DataError(f"{where}: give every record of the file an 'id', or none")
        has_ids = "id" in record
        yield Row(
            where=where,
            # The locale is part of a made-up id, because nothing says that the files are parallel.
            id=identity_of(record, "id", where=where) if has_ids else f"{locale}:{split}:{number}",
            text=text_of(record, "text", where=where),
            label=text_of(record, "label", where=where),
            split=split,
        )
    if has_ids is None:
        raise DataError(f"{path} has no records: fill it or remove it")


def _digest(path: Path, files: Files) -> str:
    digest = sha256()
    for splits in files.values():
        for _, file in sorted(splits.items()):
            content = file.read_bytes()
            # The size between name and content keeps two files from hashing as one.
            digest.update(f"{file.relative_to(path).as_posix()}\n{len(content)}\n".encode())
            digest.update(content)
    return f"sha256:{digest.hexdigest()}"
