"""MASSIVE 1.1 as slot filling: spans in characters of the text, labels of tokens, F1 of spans and its interval."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from langmerge.errors import DataError
from langmerge.tasks.choices import what_is_accepted
from langmerge.tasks.data import data_set_folder
from langmerge.tasks.massive import FOLDER, locale_files, revision
from langmerge.tasks.metrics import Interval, PairedDifference, check_bootstrap, percentiles, resampled
from langmerge.tasks.records import Row, examples_of, identity_of, json_records, split_of, text_of
from langmerge.tasks.task import available, drawn_rows

NAME = "massive:slots"

SLOTS: tuple[str, ...] = (
    "alarm_type", "app_name", "artist_name", "audiobook_author", "audiobook_name", "business_name", "business_type",
    "change_amount", "coffee_type", "color_type", "cooking_type", "currency_name", "date", "definition_word",
    "device_type", "drink_type", "email_address", "email_folder", "event_name", "food_type", "game_name", "game_type",
    "general_frequency", "house_place", "ingredient", "joke_type", "list_name", "meal_type", "media_type",
    "movie_name", "movie_type", "music_album", "music_descriptor", "music_genre", "news_topic", "order_type", "person",
    "personal_info", "place_name", "player_setting", "playlist_name", "podcast_descriptor", "podcast_name",
    "radio_name", "relation", "song_name", "sport_type", "time", "time_zone", "timeofday", "transport_agency",
    "transport_descriptor", "transport_name", "transport_type", "weather_descriptor",
)  # fmt: skip
"""Every slot that occurs in MASSIVE 1.1; each of its locales has all of them."""

BIO: tuple[str, ...] = ("O", *(f"{prefix}-{slot}" for slot in SLOTS for prefix in "BI"))
"""A token classifier's labels, slot by slot: O, B-alarm_type, I-alarm_type, B-app_name, and so on; 111 of them."""

IGNORED = -100
"""The label of a token that has none; torch's cross entropy leaves it out."""

_BRACKETS = re.compile(r"\[([^\[\]:]*):([^\[\]]*)\]")


class Span(NamedTuple):
    """The characters `start` to `stop` (exclusive) of a text, and the slot that they fill."""

    start: int
    stop: int
    slot: str


Spans = Sequence[Sequence[Span]]
"""Each row's spans, left to right; those of one row do not overlap."""

Offsets = Sequence[tuple[int, int]]
"""Each token's characters, as a fast tokenizer's `offset_mapping` has them; special tokens are (0, 0)."""


@dataclass(frozen=True)
class SlotExamples:
    """As `Examples`, but with each row's spans for a label; a DataError if ids, texts and spans are not as many."""

    locale: str
    split: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...]

    def __post_init__(self) -> None:
        sizes = [len(self.ids), len(self.texts), len(self.spans)]
        if len(set(sizes)) > 1:
            raise DataError(
                f"{self.locale} {self.split} needs as many ids, texts and rows of spans, got {sizes}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def limited(self, n: int | None) -> "SlotExamples":
        """At most `n` rows, those that `Examples.limited` draws of the same ids; a DataError if `n` is below 1."""
        if n is None:
            return self
        rows = drawn_rows(self.ids, n, of=f"{self.locale} {self.split}")
        ids, texts = tuple(self.ids[row] for row in rows), tuple(self.texts[row] for row in rows)
        return replace(self, ids=ids, texts=texts, spans=tuple(self.spans[row] for row in rows))


@dataclass(frozen=True)
class SlotTask:
    """As `Task`, but `labels` (`BIO`) are those of tokens, and `slots` are what they mark."""

    name: str
    slots: tuple[str, ...]
    labels: tuple[str, ...]
    locales: tuple[str, ...]
    revision: str
    load: Callable[[str, str], SlotExamples]


def slot_task(data: Path | None) -> SlotTask:
    """MASSIVE's slots from the files that `massive:intent` reads, errors as there; for `data` see `data_folder`."""
    files = locale_files(data_set_folder(data, FOLDER, task=NAME))
    return SlotTask(NAME, SLOTS, BIO, tuple(files), revision(files), partial(_load, files=files))


def parse_annotated(annotated: str, text: str, *, where: str) -> tuple[Span, ...]:
    """The spans of a text from MASSIVE's notation, left to right; none begins or ends with a space.

    >>> parse_annotated("wake me at [time : nine am]", "wake me at nine am", where="row 1")
    (Span(start=11, stop=18, slot='time'),)

    Args:
        annotated: the text with `[slot : value]` for each span.
        text: without annotation.
        where: file and row, for messages.

    Raises:
        DataError: an unknown slot, a blank value, a bracket that is in no `[slot : value]`, or another text.

    Conventions: only spacing may differ, as in Japanese and Chinese, where brackets have spaces around them that the
    text lacks. So places are counted without whitespace in both, and the text says where they are.
    """
    plain, found, end = "", [], 0
    for match in _BRACKETS.finditer(annotated):
        plain += _tight(annotated[end : match.start()])
        slot, value, end = match[1].strip(), _tight(match[2]), match.end()
        if slot not in SLOTS:
            raise DataError(f"{where}: unknown slot {slot!r} in 'annot_utt': {what_is_accepted(slot, SLOTS)}")
        if not value:
            raise DataError(f"{where}: {match[0]!r} in 'annot_utt' has no value: expected '[{slot} : value]'")
        found.append((len(plain), len(plain) + len(value), slot))
        plain += value
    plain += _tight(annotated[end:])
    said = f"'annot_utt' {annotated!r}"
    if "[" in plain or "]" in plain:
        raise DataError(f"{where}: {said} has a bracket that is in no '[slot : value]'")
    if plain != _tight(text):
        raise DataError(f"{where}: {said} without its brackets must be 'utt' but for spaces, got {text!r}")
    places = [place for place, character in enumerate(text) if not character.isspace()]
    return tuple(Span(places[start], places[stop - 1] + 1, slot) for start, stop, slot in found)


def token_labels(offsets: Offsets, spans: Sequence[Span], labels: Sequence[str]) -> list[int]:
    """Each token's position in `labels`: B for the first in a span, I for the others, O outside; IGNORED if empty.

    >>> token_labels([(0, 0), (0, 4), (4, 7), (7, 9), (0, 0)], [Span(5, 9, "time")], ["O", "B-time", "I-time"])
    [-100, 0, 1, 2, -100]

    Args:
        offsets: one per token.
        spans: of the same text, left to right; no two overlap.
        labels: names, like `BIO`.

    Raises:
        DataError: `labels` lacks one that is needed.

    Conventions: a token is in a span if they share a character. So the space that some tokenizers count to the next
    token (the 4 above) changes nothing: no span begins or ends with one. A token in two spans is the earlier's; the B
    of the later goes to its next token, and without one the later is lost.
    """
    position = {label: index for index, label in enumerate(labels)}
    found: list[int] = []
    last: Span | None = None
    for start, stop in offsets:
        if start >= stop:
            found.append(IGNORED)
            continue
        span = next((span for span in spans if span.start < stop and start < span.stop), None)
        name = "O" if span is None else f"{'I' if span == last else 'B'}-{span.slot}"
        if name not in position:
            raise DataError(f"the labels lack {name!r}: give the task's, like BIO")
        found.append(position[name])
        last = span
    return found


def decoded(offsets: Offsets, predicted: Sequence[int], labels: Sequence[str], text: str) -> tuple[Span, ...]:
    """The spans that tokens' labels mean: the inverse of `token_labels`, wherever tokens end where spans do.

    Args:
        offsets: one per token.
        predicted: one position in `labels`, or IGNORED, per token.
        labels: names, like `BIO`.
        text: what the offsets are of.

    Raises:
        DataError: not one prediction per token, or one that is no position of a BIO label.

    Conventions: conlleval's: an I that does not continue its slot begins a span, as a B does. Empty tokens and those
    with IGNORED are passed over; a span goes on behind them. Space at a token's ends is not of the span; combining
    marks and joiners behind it are, which normalising tokenizers leave in no token (no gold span ends before one).
    """
    if len(offsets) != len(predicted):
        raise DataError(f"{len(predicted)} predicted labels for {len(offsets)} tokens: give one for each")
    found: list[Span] = []
    inside = False
    for (start, stop), label in zip(offsets, predicted, strict=True):
        stop = len(text[:stop].rstrip())
        start = stop - len(text[start:stop].lstrip())
        if label == IGNORED or start >= stop:
            continue
        while unicodedata.category(text[stop : stop + 1] or " ") in ("Mn", "Mc", "Me", "Cf"):
            stop += 1
        name = labels[label] if 0 <= label < len(labels) else f"{label} of {len(labels)}"
        prefix, _, slot = name.partition("-")
        if prefix not in ("O", "B", "I") or (prefix == "O") != (slot == ""):
            raise DataError(f"the predicted label {name!r} is no O, B-slot or I-slot: give the task's labels")
        if prefix == "I" and inside and found[-1].slot == slot:
            found[-1] = found[-1]._replace(stop=stop)
        elif prefix != "O":
            found.append(Span(start, stop, slot))
        inside = prefix != "O"
    return tuple(found)


def span_f1(gold: Spans, predicted: Spans) -> float:
    """Micro F1 of spans, in [0, 1]; a hit has a gold span's row, start, stop and slot.

    F1 = 2 · hits / (gold spans + predicted spans)

    >>> span_f1([[Span(0, 4, "date")], []], [[Span(0, 4, "date")], [Span(5, 9, "time")]])
    0.6666666666666666

    Conventions: 1 if neither has a span: nothing was to be found and nothing was. A row's spans are a set. No rows, or
    not as many of both, are a DataError.
    """
    return float(_f1(_outcomes(gold, predicted).sum(axis=0)))


def span_f1_interval(
    gold: Spans, predicted: Spans, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of `span_f1` over rows; options and errors as for `bootstrap_interval`."""
    check_bootstrap(level=level, samples=samples)
    outcomes, counts = np.unique(_outcomes(gold, predicted), axis=0, return_counts=True)
    return percentiles(_f1(resampled(counts, samples=samples, seed=seed) @ outcomes), level=level)


def paired_span_f1(
    gold: Spans, first: Spans, second: Spans, *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """F1 of the first model minus F1 of the second, in points; options and errors as for `paired_difference`.

    Conventions: the interval resamples rows, keeping each row's pair together. F1 is no mean over rows, so McNemar's
    test does not apply; `p_value` is of the randomisation test (which for accuracy is McNemar's): each row's predictions
    change places with probability 1/2, p = (1 + times the difference is as far from 0 or farther) / (1 + samples).
    """
    check_bootstrap(level=level, samples=samples)
    pairs = np.hstack([_outcomes(gold, first), _outcomes(gold, second)])
    outcomes, counts = np.unique(pairs, axis=0, return_counts=True)
    points = float(_points(pairs.sum(axis=0)))
    interval = percentiles(_points(resampled(counts, samples=samples, seed=seed) @ outcomes), level=level)
    swaps = np.random.default_rng(seed).binomial(counts, 0.5, size=(samples, len(counts)))
    by_chance = _points(pairs.sum(axis=0) + swaps @ (np.roll(outcomes, 2, axis=1) - outcomes))
    # The same difference may be rounded otherwise.
    as_far = int((np.abs(by_chance) >= abs(points) - 1e-9).sum())
    return PairedDifference(points, interval.low, interval.high, (1 + as_far) / (1 + samples), n=len(pairs))


def _load(locale: str, split: str, *, files: Mapping[str, Path]) -> SlotExamples:
    locale, split = available(locale, split, task=NAME, locales=tuple(files))
    spans: dict[str, tuple[Span, ...]] = {}
    # The rows have no label of their own: `examples_of` checks their ids and picks the split.
    found = examples_of(_rows(files[locale], locale, spans), locale=locale, split=split, labels=("",))
    return SlotExamples(locale, split, found.ids, found.texts, tuple(spans[row] for row in found.ids))


def _rows(path: Path, locale: str, spans: dict[str, tuple[Span, ...]]) -> Iterator[Row]:
    """A file's checked rows; their spans go into `spans`, by id."""
    for where, record in json_records(path):
        written = text_of(record, "locale", where=where)
        if written != locale:
            raise DataError(f"{where}: the locale is {written!r}, the file is for {locale!r}")
        own, text = identity_of(record, "id", where=where), text_of(record, "utt", where=where)
        spans[own] = parse_annotated(text_of(record, "annot_utt", where=where), text, where=where)
        yield Row(where=where, id=own, text=text, label="", split=split_of(record, "partition", where=where))


def _tight(text: str) -> str:
    return "".join(text.split())


def _outcomes(gold: Spans, predicted: Spans) -> Int64[np.ndarray, "rows 2"]:
    """Per row: the hits, and the spans of both together."""
    if len(gold) != len(predicted) or not gold:
        raise DataError(f"gold and predicted spans need the same rows: got {len(gold)} and {len(predicted)}")
    pairs = ((set(true), set(found)) for true, found in zip(gold, predicted, strict=True))
    return np.array([(len(true & found), len(true) + len(found)) for true, found in pairs], dtype=np.int64)


def _f1(outcomes: Int64[np.ndarray, "*samples 2"]) -> Float64[np.ndarray, " *samples"]:
    hits, spans = outcomes[..., 0], outcomes[..., 1]
    return np.asarray(np.where(spans == 0, 1.0, 2 * hits / np.maximum(spans, 1)))


def _points(outcomes: Int64[np.ndarray, "*samples 4"]) -> Float64[np.ndarray, " *samples"]:
    return np.asarray(100 * (_f1(outcomes[..., :2]) - _f1(outcomes[..., 2:])))
