import json
import re
import unicodedata
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

from langmerge.tasks import SPLITS, load_task

LOCALES = ("cy-GB", "de-DE", "en-US", "es-ES", "fr-FR", "hi-IN", "id-ID", "sq-AL", "sw-KE", "tr-TR", "vi-VN")
SCENARIOS = {
    "alarm_set": "alarm",
    "calendar_add": "calendar",
    "cooking_recipe": "cooking",
    "light_control": "iot",
    "list_add": "lists",
    "message_send": "message",
    "music_play": "play",
    "news_query": "news",
    "transport_query": "transport",
    "weather_query": "weather",
}
SLOT = re.compile(r"\[([a-z_]+) : ([^\[\]]+)\]")
# Letters or words that the language cannot do without, and others in the corpus do not have together.
TELLTALES = {
    "cy-GB": ("ŵ", "ŷ", "yn"),
    "de-DE": ("ä", "ö", "ü", "ß"),
    "en-US": ("the", "what"),
    "es-ES": ("ñ", "á", "í", "ó"),
    "fr-FR": ("é", "è", "ç", "œ"),
    "hi-IN": ("ा", "क", "है"),
    "id-ID": ("yang", "apa"),
    "sq-AL": ("ë", "ç", "një"),
    "sw-KE": ("kwa", "ya", "wa"),
    "tr-TR": ("ı", "ş", "ğ"),
    "vi-VN": ("đ", "ư", "ế", "ộ"),
}


def records(locale: str) -> list[dict[str, Any]]:
    text = files("langmerge.tasks").joinpath("corpus", f"{locale}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_task() -> None:
    task = load_task("demo:intent")
    assert task.locales == LOCALES
    assert task.labels == tuple(sorted(SCENARIOS))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", task.revision)
    assert task.revision == load_task("demo:intent").revision


@pytest.mark.parametrize("locale", LOCALES)
def test_splits_are_the_same_ids_and_labels_in_every_locale(locale: str) -> None:
    task = load_task("demo:intent")
    for split, per_intent in zip(SPLITS, (20, 6, 14), strict=True):
        here, english = task.load(locale, split), task.load("en-US", split)
        assert here.ids == english.ids
        assert here.labels.tolist() == english.labels.tolist()
        assert Counter(here.labels.tolist()) == dict.fromkeys(range(10), per_intent)


def test_no_split_is_a_run_of_lines() -> None:
    rows = records("en-US")
    for intent in SCENARIOS:
        of_intent = [row["partition"] for row in rows if row["intent"] == intent]
        assert of_intent != sorted(of_intent)
        assert set(of_intent[:20]) == set(SPLITS)


@pytest.mark.parametrize("locale", LOCALES)
def test_records(locale: str) -> None:
    rows = records(locale)
    assert [row["id"] for row in rows] == [str(number) for number in range(400)]
    for row, english in zip(rows, records("en-US"), strict=True):
        assert list(row) == ["id", "locale", "partition", "scenario", "intent", "utt", "annot_utt"]
        assert row["locale"] == locale
        assert row["scenario"] == SCENARIOS[row["intent"]]
        assert row["utt"] == SLOT.sub(lambda slot: slot[2], row["annot_utt"])
        assert not set("[]:") & set(row["utt"])
        assert row["utt"] == " ".join(row["utt"].split())
        assert unicodedata.is_normalized("NFC", row["utt"])
        slots, expected = (Counter(slot[1] for slot in SLOT.finditer(r["annot_utt"])) for r in (row, english))
        assert slots == expected, row["id"]


def test_no_sentence_twice_in_a_locale() -> None:
    for locale in LOCALES:
        counts = Counter(row["utt"].casefold() for row in records(locale))
        assert not [text for text, count in counts.items() if count > 1], locale


def test_no_evaluation_sentence_is_a_train_sentence_of_any_locale() -> None:
    rows = [row for locale in LOCALES for row in records(locale)]
    train = {row["utt"].casefold() for row in rows if row["partition"] == "train"}
    assert len(train) == 200 * len(LOCALES)
    assert not train & {row["utt"].casefold() for row in rows if row["partition"] != "train"}


@pytest.mark.parametrize("locale", LOCALES)
def test_the_script(locale: str) -> None:
    script = "DEVANAGARI" if locale == "hi-IN" else "LATIN"
    text = "".join(row["utt"] for row in records(locale))
    letters = {letter for letter in text if letter.isalpha()}
    assert {unicodedata.name(letter).split()[0] for letter in letters} == {script}
    assert text == text.lower()


@pytest.mark.parametrize("locale", LOCALES)
def test_the_language_shows(locale: str) -> None:
    def shown(text_of: str) -> int:
        text = " ".join(row["utt"] for row in records(text_of))
        words = set(text.split())
        return sum(mark in (text if len(mark) == 1 else words) for mark in TELLTALES[locale])

    assert shown(locale) == len(TELLTALES[locale])
    assert all(shown(other) < len(TELLTALES[locale]) for other in LOCALES if other != locale)


def test_the_licence_and_the_description_are_shipped() -> None:
    corpus = files("langmerge.tasks").joinpath("corpus")
    assert "CC0-1.0" in corpus.joinpath("LICENSE").read_text(encoding="utf-8")
    assert "20 train, 6 dev, 14 test" in corpus.joinpath("README.md").read_text(encoding="utf-8")
