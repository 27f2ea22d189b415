import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge.errors import DataError, LocaleError, MethodError
from langmerge.tasks import (
    BIO,
    IGNORED,
    SLOTS,
    Examples,
    SlotExamples,
    Span,
    decoded,
    load_task,
    paired_span_f1,
    parse_annotated,
    slot_task,
    span_f1,
    span_f1_interval,
    token_labels,
)

from .conftest import WriteMassive, massive_record

LABELS = ("O", "B-date", "I-date", "B-time", "I-time")
TEXT = "wake me at nine am on friday"
SPANS = (Span(11, 18, "time"), Span(22, 28, "date"))
# As XLM-R's tokenizer has it: <s> wake me at ni ne am on fri day </s>
OFFSETS = [
    (0, 0),
    (0, 4),
    (5, 7),
    (8, 10),
    (11, 13),
    (13, 15),
    (16, 18),
    (19, 21),
    (22, 25),
    (25, 28),
    (0, 0),
]
WANTED = [-100, 0, 0, 0, 3, 4, 4, 0, 1, 2, -100]


def parsed(annotated: str, text: str) -> tuple[Span, ...]:
    return parse_annotated(annotated, text, where="a file, line 7")


def round_trip(offsets: list[tuple[int, int]], spans: tuple[Span, ...], text: str) -> tuple[Span, ...]:
    return decoded(offsets, token_labels(offsets, spans, BIO), BIO, text)


def rows_of_spans(n: int, *, kept: float, seed: int) -> tuple[list[list[Span]], list[list[Span]]]:
    """Rows of up to 3 gold spans, and a prediction that keeps each with a probability, and else has another slot."""
    rng = np.random.default_rng(seed)
    gold = [[Span(10 * k, 10 * k + 3, "date") for k in range(rng.integers(4))] for _ in range(n)]
    found = [[span if rng.random() < kept else span._replace(slot="time") for span in row] for row in gold]
    return gold, found


def test_the_labels_are_b_and_i_of_each_slot_after_o() -> None:
    assert BIO[:5] == ("O", "B-alarm_type", "I-alarm_type", "B-app_name", "I-app_name")
    assert (len(SLOTS), len(BIO)) == (55, 111)
    assert tuple(sorted(set(SLOTS))) == SLOTS


@pytest.mark.parametrize(
    ("annotated", "text", "spans"),
    [
        ("wake me at [time : nine am] on [date : friday]", TEXT, SPANS),
        ("nothing here", "nothing here", ()),
        ("[time : 7:30]", "7:30", (Span(0, 4, "time"),)),
        # Space around brackets that the text lacks; two spans without anything between them.
        ("[date : 今週] [time : 午前五時] に起こして", "今週午前五時に起こして", (Span(0, 2, "date"), Span(2, 6, "time"))),
        ("play [date:  two  days ]now", " play  two days now", (Span(7, 15, "date"),)),
        # Space that the text has and the notation lacks.
        ("[song_name : a b]c", "ab c", (Span(0, 2, "song_name"),)),
    ],
)  # fmt: skip
def test_spans_by_hand(annotated: str, text: str, spans: tuple[Span, ...]) -> None:
    assert parsed(annotated, text) == spans


@pytest.mark.parametrize(
    ("annotated", "text", "message"),
    [
        ("at [tme : nine]", "at nine", r"unknown slot 'tme' in 'annot_utt': did you mean 'time'"),
        ("at [time : ]", "at", r"'\[time : \]' in 'annot_utt' has no value: expected '\[time : value\]'"),
        ("at [time nine]", "at [time nine]", r"'at \[time nine\]' has a bracket that is in no"),
        ("at [time : nine", "at [time : nine", "has a bracket that is in no"),
        ("at nine]", "at nine]", "has a bracket that is in no"),
        ("at [time : [date : nine]]", "at nine", "has a bracket that is in no"),
        ("at [time : nine]", "at ten", r"'at \[time : nine\]' without .* but for spaces, got 'at ten'"),
        ("at [time : nine]", "at nine am", "must be 'utt' but for spaces"),
        ("at [time : nine] am", "at nine", "must be 'utt' but for spaces"),
    ],
)
def test_a_malformed_annotation_is_an_error_that_names_its_place(
    annotated: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=f"a file, line 7: .*{message}"):
        parsed(annotated, text)


def test_one_split_in_file_order(write_massive: WriteMassive) -> None:
    records = [
        massive_record(id="5"),
        massive_record(id="9", partition="test"),
        massive_record(id="1", utt="leo", annot_utt="[date : leo]"),
    ]
    task = slot_task(write_massive(records))
    train = task.load("sw-KE", "train")
    assert train == SlotExamples(
        "sw-KE",
        "train",
        ids=("5", "1"),
        texts=("niamshe saa moja", "leo"),
        spans=((Span(8, 16, "time"),), (Span(0, 3, "date"),)),
    )
    assert len(train) == 2
    assert task.load("sw-KE", "test").ids == ("9",)
    assert (task.name, task.slots, task.labels) == ("massive:slots", SLOTS, BIO)
    assert task.locales == ("sw-KE",)
    assert re.fullmatch(r"MASSIVE 1\.1 \([0-9a-f]{8}\)", task.revision)


def test_a_gzipped_file_is_read(write_massive: WriteMassive) -> None:
    data = write_massive([massive_record()])
    plain = data / "massive/1.1/data/sw-KE.jsonl"
    plain.with_name("sw-KE.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert slot_task(data).load("sw-KE", "train").spans == ((Span(8, 16, "time"),),)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (massive_record(id="1", annot_utt=None), "the key 'annot_utt' is missing, there are: id, locale"),
        (massive_record(id="1", annot_utt="niamshe"), "'annot_utt' 'niamshe' without its brackets must be 'utt'"),
        (massive_record(id="1", annot_utt="[tme : saa]", partition="dev"), "unknown slot 'tme'"),
        (massive_record(id="1", utt="  "), "'utt' must be text that is not blank"),
        (massive_record(id="1", locale="sw-TZ"), "the locale is 'sw-TZ', the file is for 'sw-KE'"),
        (massive_record(id="1", partition="trian"), "unknown partition 'trian': did you mean 'train'"),
        (massive_record(), r"the id '0' occurs before, in .*sw-KE\.jsonl, line 1"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_an_error_that_names_its_line(
    write_massive: WriteMassive, second: Mapping[str, Any], message: str
) -> None:
    task = slot_task(write_massive([massive_record(), second]))
    with pytest.raises(DataError, match=r"massive.1\.1.data.sw-KE\.jsonl, line 2: " + message):
        task.load("sw-KE", "train")


def test_what_is_not_there_is_an_error(write_massive: WriteMassive, tmp_path: Path) -> None:
    task = slot_task(write_massive([massive_record()]))
    with pytest.raises(LocaleError, match=r"massive:slots has no locale 'cy-GB': .*sw-KE"):
        task.load("cy-GB", "train")
    with pytest.raises(DataError, match="sw-KE has no rows of the split 'dev', only of: train"):
        task.load("sw-KE", "dev")
    with pytest.raises(DataError, match=r"massive:slots looked for the folder .*LANGMERGE_DATA"):
        slot_task(tmp_path / "none")


def test_a_limit_draws_the_rows_that_examples_draw() -> None:
    ids = tuple(f"{row}" for row in range(100))
    texts = tuple(f"text {row}" for row in range(100))
    whole = SlotExamples("sw-KE", "train", ids, texts, tuple((Span(0, row, "date"),) for row in range(100)))
    same = Examples("sw-KE", "train", ids, texts, np.arange(100)).limited(10)
    some = whole.limited(10)
    assert (some.ids, some.texts) == (same.ids, same.texts)
    assert [row[0].stop for row in some.spans] == same.labels.tolist()
    assert whole.limited(None) == whole.limited(100) == whole
    with pytest.raises(DataError, match=r"limit of 0 rows.*sw-KE train.*1 or more"):
        whole.limited(0)


def test_examples_that_do_not_fit_together_are_an_error() -> None:
    with pytest.raises(DataError, match=r"sw-KE train needs as many .*, got \[1, 1, 2\]"):
        SlotExamples("sw-KE", "train", ("0",), ("a",), ((), ()))


def test_labels_of_tokens_by_hand() -> None:
    assert IGNORED == -100
    assert token_labels(OFFSETS, SPANS, LABELS) == WANTED
    assert decoded(OFFSETS, WANTED, LABELS, TEXT) == SPANS
    assert token_labels(OFFSETS, (), LABELS) == [-100, *[0] * 9, -100]


@pytest.mark.parametrize(
    "offsets",
    [
        [(0, 4), (4, 7), (7, 10), (10, 15), (15, 18), (18, 21), (21, 28)],  # the space is the next token's
        [(0, 5), (5, 8), (8, 11), (11, 16), (16, 19), (19, 22), (22, 28)],  # the space is the token's before
        # A token for each space, one of them inside a span and one before each.
        [(0, 7), (7, 10), (10, 11), (11, 15), (15, 16), (16, 18), (18, 19), (19, 21), (21, 22), (22, 28)],
        [(0, 10), (11, 12), (11, 13), (13, 18), (18, 21), (22, 22), (22, 28)],  # overlapping and empty tokens
    ],
)
def test_spans_survive_whatever_tokens_do_with_spaces(offsets: list[tuple[int, int]]) -> None:
    assert round_trip(offsets, SPANS, TEXT) == SPANS


def test_spans_without_spaces_between_them_stay_two() -> None:
    text, spans = "今週五時", (Span(0, 2, "date"), Span(2, 4, "date"))
    offsets = [(0, 1), (1, 2), (2, 4)]
    assert token_labels(offsets, spans, LABELS) == [1, 2, 1]
    assert round_trip(offsets, spans, text) == spans


def test_a_token_in_two_spans_is_the_earlier_ones() -> None:
    spans = (Span(0, 2, "date"), Span(2, 4, "time"))
    assert token_labels([(0, 1), (1, 3), (3, 4)], spans, LABELS) == [1, 2, 3]
    assert token_labels([(0, 4)], spans, LABELS) == [1]  # nothing is left of the later


@pytest.mark.parametrize(
    ("text", "offsets"),
    [
        ("ha\u0300 no", [(0, 2), (4, 6)]),  # à in two characters: tokenizers that compose it say (0, 2)
        ("hac\u200c no", [(0, 3), (5, 7)]),  # a joiner, which they drop
    ],
)
def test_marks_that_are_in_no_token_are_of_the_span_before(text: str, offsets: list[tuple[int, int]]) -> None:
    spans = (Span(0, text.index(" "), "date"),)
    assert round_trip(offsets, spans, text) == spans


@pytest.mark.parametrize(
    ("predicted", "spans"),
    [
        ([0, 4, 4, 0], [(2, 6, "time")]),  # I without B begins a span
        ([2, 4, 4, 0], [(0, 2, "date"), (2, 6, "time")]),  # I after another slot too
        ([1, 0, 2, 0], [(0, 2, "date"), (4, 6, "date")]),  # and after O
        ([1, 1, 2, 0], [(0, 2, "date"), (2, 6, "date")]),  # B begins one always
        ([1, -100, 2, 2], [(0, 8, "date")]),  # what has no label is passed over
        ([0, 0, 0, 0], []),
    ],
)
def test_labels_that_no_gold_has_are_read_as_conlleval_reads_them(
    predicted: list[int], spans: list[tuple[int, int, str]]
) -> None:
    offsets = [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert decoded(offsets, predicted, LABELS, "abcdefgh") == tuple(Span(*span) for span in spans)


def test_labels_of_special_tokens_are_not_read() -> None:
    assert decoded([(0, 0), (0, 2), (0, 0)], [1, 0, 99], LABELS, "ab") == ()


def test_labels_that_cannot_be_are_an_error() -> None:
    with pytest.raises(DataError, match="the labels lack 'I-time': give the task's, like BIO"):
        token_labels(OFFSETS, SPANS, LABELS[:-1])
    with pytest.raises(DataError, match="1 predicted labels for 2 tokens: give one for each"):
        decoded([(0, 1), (1, 2)], [0], LABELS, "ab")
    for wrong in (5, -1):
        with pytest.raises(DataError, match=f"label '{wrong} of 5' is no O, B-slot or I-slot"):
            decoded([(0, 1)], [wrong], LABELS, "a")
    for name in ("date", "B-", "O-date"):
        with pytest.raises(DataError, match=f"label '{name}' is no O, B-slot or I-slot"):
            decoded([(0, 1)], [0], (name,), "a")


def test_f1_by_hand() -> None:
    gold = [[Span(0, 4, "date"), Span(5, 9, "time")], [Span(0, 4, "date")], []]
    # One hit; another stop, another slot, another row.
    found = [[Span(0, 4, "date"), Span(5, 8, "time")], [Span(0, 4, "time")], [Span(5, 9, "time")]]
    assert span_f1(gold, found) == pytest.approx(2 * 1 / (3 + 4))
    assert span_f1(gold, [row * 2 for row in found]) == span_f1(gold, found)
    assert type(span_f1(gold, found)) is float


def test_perfect_hopeless_and_empty() -> None:
    gold, _ = rows_of_spans(50, kept=1, seed=0)
    nothing: list[list[Span]] = [[] for _ in gold]
    assert span_f1(gold, gold) == span_f1(nothing, nothing) == 1.0
    assert span_f1(gold, nothing) == span_f1(nothing, gold) == 0.0
    perfect = span_f1_interval(gold, gold)
    assert (perfect.low, perfect.high) == (1.0, 1.0)


def test_the_bootstrap_is_that_over_rows() -> None:
    gold, found = rows_of_spans(60, kept=0.7, seed=0)
    draws = np.random.default_rng(1).integers(60, size=(4000, 60))
    drawn = [span_f1([gold[row] for row in rows], [found[row] for row in rows]) for rows in draws]
    low, high = np.quantile(drawn, [0.05, 0.95])
    interval = span_f1_interval(gold, found, level=0.9, samples=20_000)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)
    assert interval.low < span_f1(gold, found) < interval.high


def test_a_bootstrap_repeats() -> None:
    gold, found = rows_of_spans(60, kept=0.7, seed=0)
    one, again, other = (span_f1_interval(gold, found, samples=99, seed=seed) for seed in (3, 3, 4))
    assert one == again != other


def test_a_paired_difference_is_that_over_rows() -> None:
    gold, first = rows_of_spans(60, kept=0.9, seed=0)
    # The second is the first with every third row lost: a pair has much in common.
    second = [[] if row % 3 == 0 else spans for row, spans in enumerate(first)]
    drawn = []
    for rows in np.random.default_rng(1).integers(60, size=(3000, 60)):
        some, one, two = ([spans[row] for row in rows] for spans in (gold, first, second))
        drawn.append(100 * (span_f1(some, one) - span_f1(some, two)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = paired_span_f1(gold, first, second)
    assert found.points == pytest.approx(100 * (span_f1(gold, first) - span_f1(gold, second)))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1.0)
    assert found.n == 60
    assert found.p_value < 0.01
    assert paired_span_f1(gold, second, first).points == -found.points


def test_the_p_value_by_hand() -> None:
    # Four rows, each a hit of the first alone: all 4 or none change places in 2 of 16 cases.
    gold = [[Span(0, 4, "date")]] * 4
    found = paired_span_f1(gold, gold, [[Span(0, 4, "time")]] * 4, samples=20_000)
    assert (found.points, found.low, found.high) == (100, 100, 100)
    assert found.p_value == pytest.approx(2 / 16, abs=0.01)


def test_a_model_does_not_differ_from_itself() -> None:
    gold, found = rows_of_spans(60, kept=0.7, seed=0)
    same = paired_span_f1(gold, found, found)
    assert (same.points, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_the_p_value_is_uniform_where_models_are_alike() -> None:
    p_values = []
    for seed in range(100):
        gold, first = rows_of_spans(40, kept=0.7, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        second = [[s if rng.random() < 0.7 else s._replace(slot="time") for s in row] for row in gold]
        p_values.append(paired_span_f1(gold, first, second, samples=500).p_value)
    assert 0.4 < np.mean(p_values) < 0.65  # ties make it a little more than 1/2
    assert np.mean(np.array(p_values) < 0.05) <= 0.11


def test_rows_that_do_not_fit_are_an_error() -> None:
    one, two = [[Span(0, 4, "date")]], [[Span(0, 4, "date")], []]
    for compared in (span_f1, span_f1_interval):
        with pytest.raises(DataError, match="need the same rows: got 1 and 2"):
            compared(one, two)
        with pytest.raises(DataError, match="got 0 and 0"):
            compared([], [])
    with pytest.raises(DataError, match="got 1 and 2"):
        paired_span_f1(one, one, two)
    with pytest.raises(MethodError, match="level 95 is no coverage"):
        span_f1_interval(one, one, level=95)
    with pytest.raises(MethodError, match="0 resamples"):
        paired_span_f1(one, one, one, samples=0)


@pytest.mark.real_data
def test_real_rows_have_every_slot_and_the_ids_of_the_intents(real_data: Path) -> None:
    task = slot_task(real_data)
    assert len(task.locales) == 44
    english, japanese = (task.load(locale, "train") for locale in ("en-US", "ja-JP"))
    intents = load_task("massive:intent", data=real_data).load("ja-JP", "train")
    assert (japanese.ids, japanese.texts) == (intents.ids, intents.texts)
    assert japanese.limited(100).ids == english.limited(100).ids == intents.limited(100).ids
    # Every slot occurs, and an unknown one would have been an error.
    assert tuple(sorted({span.slot for row in english.spans for span in row})) == SLOTS
    assert sum(map(len, task.load("en-US", "test").spans)) == 2815
    assert japanese.texts[0][slice(*japanese.spans[0][1][:2])] == "午前九時"
    for examples in (english, japanese):
        for text, spans in zip(examples.texts, examples.spans, strict=True):
            letters = [(place, place + 1) for place in range(len(text))]
            assert round_trip(letters, spans, text) == spans
