"""MASSIVE 1.1 (FitzGerald et al. 2022): 60 intents in 18 scenarios, parallel in 52 locales. CC BY 4.0, Amazon."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from langmerge.errors import DataError, MissingExtraError
from langmerge.locales import MASSIVE_LOCALES, canonical_locale
from langmerge.tasks.data import data_set_folder, revision_of
from langmerge.tasks.records import Record, Row, examples_of, identity_of, json_records, split_of, text_of
from langmerge.tasks.task import Examples, Task, available

FOLDER = "massive/1.1/data"
KNOWN = "01677266"
HUB_ID = "AmazonScience/massive"
# The repository itself is a loading script, which `datasets` 4 no longer runs; the hub keeps its tables here.
HUB_REVISION = "refs/convert/parquet"
_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}

INTENTS: tuple[str, ...] = (
    "alarm_query", "alarm_remove", "alarm_set", "audio_volume_down", "audio_volume_mute", "audio_volume_other",
    "audio_volume_up", "calendar_query", "calendar_remove", "calendar_set", "cooking_query", "cooking_recipe",
    "datetime_convert", "datetime_query", "email_addcontact", "email_query", "email_querycontact", "email_sendemail",
    "general_greet", "general_joke", "general_quirky", "iot_cleaning", "iot_coffee", "iot_hue_lightchange",
    "iot_hue_lightdim", "iot_hue_lightoff", "iot_hue_lighton", "iot_hue_lightup", "iot_wemo_off", "iot_wemo_on",
    "lists_createoradd", "lists_query", "lists_remove", "music_dislikeness", "music_likeness", "music_query",
    "music_settings", "news_query", "play_audiobook", "play_game", "play_music", "play_podcasts", "play_radio",
    "qa_currency", "qa_definition", "qa_factoid", "qa_maths", "qa_stock", "recommendation_events",
    "recommendation_locations", "recommendation_movies", "social_post", "social_query", "takeaway_order",
    "takeaway_query", "transport_query", "transport_taxi", "transport_ticket", "transport_traffic", "weather_query",
)  # fmt: skip

SCENARIOS: tuple[str, ...] = (
    "alarm", "audio", "calendar", "cooking", "datetime", "email", "general", "iot", "lists", "music", "news", "play",
    "qa", "recommendation", "social", "takeaway", "transport", "weather",
)  # fmt: skip

LABELS: dict[str, tuple[str, ...]] = {"intent": INTENTS, "scenario": SCENARIOS}
"""Both label maps by the key that the records have them under."""


def folder_task(key: str, data: Path | None) -> Task:
    """MASSIVE from `<data>/massive/1.1/data/<locale>.jsonl.gz` (or `.jsonl`, as Amazon's archive has it).

    Args:
        key: "intent" or "scenario".
        data: see `data_folder`.

    Raises:
        DataError: there is no such folder, or it has no such files, or one locale twice.
    """
    name = f"massive:{key}"
    folder = data_set_folder(
        data, FOLDER, task=name, otherwise=f", or ask for '{name}@hub' (pip install 'langmerge[hub]')"
    )
    files = locale_files(folder)
    load = partial(load_file, task=name, files=files, labels=LABELS[key], key=key)
    return Task(name, LABELS[key], tuple(files), revision(files), load)


def revision(files: Mapping[str, Path]) -> str:
    """Of these files; `KNOWN` are those that docs/results.md was measured on."""
    return revision_of("MASSIVE 1.1", list(files.values()), KNOWN)


def hub_task(key: str) -> Task:
    """MASSIVE from the hub, one locale and split at a time, cached by `datasets`."""
    name = f"massive:{key}@hub"
    load = partial(_load_from_hub, task=name, key=key)
    return Task(name, LABELS[key], MASSIVE_LOCALES, f"{HUB_ID}@{HUB_REVISION}", load)


def locale_files(folder: Path) -> dict[str, Path]:
    """The files `<locale>.jsonl` and `<locale>.jsonl.gz` of a folder by locale, sorted.

    Raises:
        DataError: there are none, or a locale has two.
        LocaleError: a file is not named by a locale.
    """
    files: dict[str, Path] = {}
    for path in sorted((*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz"))):
        locale = canonical_locale(path.name.partition(".")[0])
        if locale in files:
            raise DataError(f"{folder} has {locale} twice, {files[locale].name} and {path.name}: remove one")
        files[locale] = path
    if not files:
        raise DataError(
            f"{folder} has no files: expected <locale>.jsonl.gz or <locale>.jsonl, like sw-KE.jsonl.gz"
        )
    return dict(sorted(files.items()))


def load_file(
    locale: str, split: str, *, task: str, files: Mapping[str, Path], labels: tuple[str, ...], key: str
) -> Examples:
    """One split of a file in MASSIVE's format; all of its rows are checked.

    Args:
        locale: the one that is wanted.
        split: the one that is wanted.
        task: for messages.
        files: one per locale.
        labels: the task's.
        key: where a record has its label.

    Raises:
        LocaleError, DataError: see `Task.load`.
    """
    locale, split = available(locale, split, task=task, locales=tuple(files))
    rows = (_row(record, locale=locale, key=key) for record in json_records(files[locale]))
    return examples_of(rows, locale=locale, split=split, labels=labels)


def _row(found: Record, *, locale: str, key: str) -> Row:
    where, record = found
    written = text_of(record, "locale", where=where)
    if written != locale:
        raise DataError(f"{where}: the locale is {written!r}, the file is for {locale!r}")
    return Row(
        where=where,
        id=identity_of(record, "id", where=where),
        text=text_of(record, "utt", where=where),
        label=text_of(record, key, where=where),
        split=split_of(record, "partition", where=where),
    )


def _load_from_hub(locale: str, split: str, *, task: str, key: str) -> Examples:
    locale, split = available(locale, split, task=task, locales=MASSIVE_LOCALES)
    rows = (
        _row(record, locale=locale, key=key) for record in _hub_records(locale, split, task=task, key=key)
    )
    return examples_of(rows, locale=locale, split=split, labels=LABELS[key])


def _hub_records(locale: str, split: str, *, task: str, key: str) -> Iterator[Record]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("datasets", extra="hub", needed_for=task) from error
    source = f"{HUB_ID} {locale} {_HUB_SPLITS[split]} ({HUB_REVISION})"
    try:
        table: Any = load_dataset(HUB_ID, locale, revision=HUB_REVISION, split=_HUB_SPLITS[split])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{task} could not get {source} from the hub: {error}; "
            f"or keep the data in a folder (LANGMERGE_DATA) and ask for {task.removesuffix('@hub')!r}"
        ) from error
    # The hub stores a label as a number into its own list, whose order is not ours.
    names = getattr(table.features[key], "names", None)
    for number, record in enumerate(table, start=1):
        label = record[key] if names is None else names[record[key]]
        yield f"{source}, row {number}", {**record, key: label, "partition": split}
