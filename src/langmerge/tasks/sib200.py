"""SIB-200 (Adelani et al. 2024): topics of FLORES-200 sentences, parallel. Treat the text as CC BY-SA 4.0."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from langmerge.errors import DataError
from langmerge.locales import MASSIVE_LOCALES, flores_code
from langmerge.tasks.data import data_set_folder, revision_of
from langmerge.tasks.records import Record, Row, examples_of, identity_of, table_records, text_of
from langmerge.tasks.task import Examples, Task, available

NAME = "sib200:topic"

KNOWN = "c0d1eca7"
"""Digest of the files that docs/results.md was measured on."""

TOPICS: tuple[str, ...] = (
    "entertainment",
    "geography",
    "health",
    "politics",
    "science/technology",
    "sports",
    "travel",
)


def folder_task(data: Path | None) -> Task:
    """SIB-200 from `<data>/sib200/<flores code>/{train,dev,test}.tsv`, in MASSIVE's locales.

    Raises:
        DataError: there is no such folder, or none of the locales in it.
    """
    folder = data_set_folder(data, "sib200", task=NAME)
    folders = {locale: folder / flores_code(locale) for locale in MASSIVE_LOCALES}
    found = {locale: path for locale, path in sorted(folders.items()) if path.is_dir()}
    if not found:
        raise DataError(f"{folder} has no folder named by a FLORES-200 code, like {folders['sw-KE'].name}")
    files = [file for path in found.values() for file in sorted(path.glob("*.tsv"))]
    return Task(
        NAME, TOPICS, tuple(found), revision_of("SIB-200", files, KNOWN), partial(_load, folders=found)
    )


def _load(locale: str, split: str, *, folders: Mapping[str, Path]) -> Examples:
    locale, split = available(locale, split, task=NAME, locales=tuple(folders))
    records = table_records(folders[locale] / f"{split}.tsv", delimiter="\t")
    return examples_of((_row(record, split) for record in records), locale=locale, split=split, labels=TOPICS)


def _row(found: Record, split: str) -> Row:
    where, record = found
    return Row(
        where=where,
        id=identity_of(record, "index_id", where=where),
        text=text_of(record, "text", where=where),
        label=text_of(record, "category", where=where),
        split=split,
    )
