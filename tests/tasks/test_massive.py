import gzip
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langmerge.errors import DataError, LocaleError
from langmerge.tasks import load_task

from .conftest import WriteMassive, massive_record


def test_one_split_in_file_order(write_massive: WriteMassive) -> None:
    records = [
        massive_record(id="5", utt="b"),
        massive_record(id="9", utt="c", partition="test", intent="qa_maths", scenario="qa"),
        massive_record(id="1", utt=" a ", intent="weather_query", scenario="weather"),
    ]
    task = load_task("massive:intent", data=write_massive(records))
    train = task.load("sw-KE", "train")
    assert (train.locale, train.split, train.ids, train.texts) == ("sw-KE", "train", ("5", "1"), ("b", " a "))
    assert [task.labels[label] for label in train.labels] == ["alarm_set", "weather_query"]
    assert train.labels.dtype == np.int64
    assert task.locales == ("sw-KE",)
    assert re.fullmatch(r"MASSIVE 1\.1 \([0-9a-f]{8}\)", task.revision)
    assert task.load("sw-KE", "test").ids == ("9",)


def test_the_scenario_is_another_label_of_the_same_text(write_massive: WriteMassive) -> None:
    task = load_task("massive:scenario", data=write_massive([massive_record(intent=None)]))
    assert [task.labels[label] for label in task.load("sw-KE", "train").labels] == ["alarm"]


def test_gzipped_and_plain_files_are_read(write_massive: WriteMassive) -> None:
    data = write_massive([massive_record()])
    write_massive([massive_record(locale="cy-GB", utt="deffro fi am saith o’r gloch")], name="cy-GB.jsonl")
    plain = data / "massive/1.1/data/cy-GB.jsonl"
    plain.with_name("cy-GB.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    task = load_task("massive:intent", data=data)
    assert task.locales == ("cy-GB", "sw-KE")
    assert task.load("cy-GB", "train").texts == ("deffro fi am saith o’r gloch",)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{not json", r"line 2: not JSON \(.* at column 2\)"),
        ("", r"line 2: not JSON"),
        ("[1]", r"line 2: expected a JSON object, got list"),
        (massive_record(id="1", utt=None), r"line 2: the key 'utt' is missing, there are: id, locale"),
        (massive_record(id="1", intent=None), r"line 2: the key 'intent' is missing"),
        (massive_record(id="1", partition=None), r"line 2: the key 'partition' is missing"),
        (massive_record(id="1", utt="  "), r"line 2: 'utt' must be text that is not blank, got '  '"),
        (massive_record(id="1", utt=3), r"line 2: 'utt' must be text that is not blank, got 3"),
        (massive_record(id=True), r"line 2: 'id' must be text"),
        (
            massive_record(id="1", partition="trian"),
            r"line 2: unknown partition 'trian': did you mean 'train'",
        ),
        (massive_record(id="1", locale="sw-TZ"), r"line 2: the locale is 'sw-TZ', the file is for 'sw-KE'"),
        (massive_record(), r"line 2: the id '0' occurs before, in .*sw-KE\.jsonl, line 1"),
        (massive_record(partition="test"), r"line 2: the id '0' occurs before"),
        (massive_record(id=0), r"line 2: the id '0' occurs before"),
        (
            massive_record(id="1", intent="alarm_sett"),
            r"line 2: unknown label 'alarm_sett': did you mean 'alarm_set'",
        ),
        (
            massive_record(id="1", intent="zzz"),
            r"line 2: unknown label 'zzz': accepted: alarm_query, .*weather_query",
        ),
    ],
)
def test_a_malformed_row_is_an_error_that_names_its_line(
    write_massive: WriteMassive, second: Mapping[str, Any] | str, message: str
) -> None:
    task = load_task("massive:intent", data=write_massive([massive_record(), second]))
    with pytest.raises(DataError, match=r"massive.1\.1.data.sw-KE\.jsonl, " + message):
        task.load("sw-KE", "train")


def test_a_split_without_rows_is_an_error(write_massive: WriteMassive) -> None:
    task = load_task("massive:intent", data=write_massive([massive_record()]))
    with pytest.raises(DataError, match="sw-KE has no rows of the split 'dev', only of: train"):
        task.load("sw-KE", "dev")


def test_a_file_in_another_encoding_is_an_error(write_massive: WriteMassive) -> None:
    data = write_massive([massive_record()])
    (data / "massive/1.1/data/sw-KE.jsonl").write_bytes('{"utt": "größer"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"sw-KE\.jsonl cannot be read: .*utf-8"):
        load_task("massive:intent", data=data).load("sw-KE", "train")


def test_other_files_are_another_revision(write_massive: WriteMassive) -> None:
    """Whatever is kept of one copy says nothing of another: a row more, or the same rows in another archive."""
    data = write_massive([massive_record()])
    plain = data / "massive/1.1/data/sw-KE.jsonl"
    seen = {load_task("massive:intent", data=data).revision}
    text = plain.read_bytes()
    for content in (text, text + text.replace(b'"0"', b'"1"')):
        plain.unlink(missing_ok=True)
        with gzip.open(plain.with_suffix(".jsonl.gz"), "wb") as file:
            file.write(content)
        seen.add(load_task("massive:intent", data=data).revision)
    assert len(seen) == 3
    before = load_task("massive:intent", data=data).revision
    with gzip.GzipFile(plain.with_suffix(".jsonl.gz"), "wb", compresslevel=1, mtime=7) as file:
        file.write(content)
    assert load_task("massive:intent", data=data).revision == before


@pytest.mark.parametrize("keep", [4, 40])
def test_a_truncated_archive_is_an_error(write_massive: WriteMassive, keep: int) -> None:
    data = write_massive([massive_record()])
    plain = data / "massive/1.1/data/sw-KE.jsonl"
    plain.with_name("sw-KE.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes())[:keep])
    plain.unlink()
    with pytest.raises(DataError, match=r"sw-KE\.jsonl\.gz cannot be read"):
        load_task("massive:intent", data=data).load("sw-KE", "train")


def test_a_locale_in_two_files_is_an_error(write_massive: WriteMassive) -> None:
    write_massive([massive_record()], name="sw-KE.jsonl.gz")
    with pytest.raises(DataError, match=r"has sw-KE twice, sw-KE\.jsonl and sw-KE\.jsonl\.gz"):
        load_task("massive:intent", data=write_massive([massive_record()]))


def test_a_file_that_is_not_named_by_a_locale_is_an_error(write_massive: WriteMassive) -> None:
    with pytest.raises(LocaleError, match="'no locale at all'"):
        load_task("massive:intent", data=write_massive([massive_record()], name="no locale at all.jsonl"))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "massive/1.1/data").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no files: expected <locale>\.jsonl\.gz"):
        load_task("massive:intent", data=tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize(("key", "count"), [("intent", 60), ("scenario", 18)])
def test_the_label_map_is_that_of_the_data(real_data: Path, key: str, count: int) -> None:
    task = load_task(f"massive:{key}", data=real_data)
    splits = [task.load("en-US", split) for split in ("train", "dev", "test")]
    assert [len(split) for split in splits] == [11_514, 2_033, 2_974]
    assert len(task.locales) == 44
    assert task.labels == tuple(sorted(set(task.labels)))
    # Every label occurs, and an unknown one would have been an error.
    assert np.unique(np.concatenate([split.labels for split in splits])).tolist() == list(range(count))


@pytest.mark.real_data
def test_real_rows_are_parallel(real_data: Path) -> None:
    task = load_task("massive:intent", data=real_data)
    english, swahili = (task.load(locale, "test") for locale in ("en-US", "sw-KE"))
    assert english.ids == swahili.ids
    assert english.labels.tolist() == swahili.labels.tolist()
    assert english.limited(100).ids == swahili.limited(100).ids
    assert len(set(english.limited(500).labels.tolist())) > 50  # the first 500 rows have 31 intents
