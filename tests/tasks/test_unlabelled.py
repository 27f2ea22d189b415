import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest

from langmerge.errors import DataError, LocaleError
from langmerge.tasks import Examples, Task, Unlabelled, file_text, task_text

SPLITS = {
    "train": (("0", "1", "2"), ("wake me", "stop", "play music")),
    "dev": (("7",), ("sun",)),
    "test": (("8", "9"), (" stop ", "rain today")),
}


def made_task(
    *, labels: int = 0, splits: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = SPLITS
) -> Task:
    """Three train rows, one of which reads as a test row does."""

    def load(locale: str, split: str) -> Examples:
        if locale != "sw-KE":
            raise LocaleError(f"made has no locale {locale!r}")
        if split not in splits:
            raise DataError(f"made has no split {split!r}")
        ids, texts = splits[split]
        return Examples(locale, split, ids, texts, np.full(len(ids), labels, dtype=np.int64))

    return Task("made", ("a", "b"), ("sw-KE",), "r1", load)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_tasks_text_comes_without_its_labels() -> None:
    found = task_text(made_task(), "sw-KE")
    assert found.texts == ("wake me", "stop", "play music")
    assert found.ids == ("0", "1", "2")
    assert (found.origin, found.locale, found.overlap) == ("made sw-KE train", "sw-KE", 0)
    assert {field.name for field in dataclasses.fields(Unlabelled)} == {
        "texts", "ids", "origin", "locale", "signature", "notes", "overlap",
    }  # fmt: skip


def test_labels_decide_nothing() -> None:
    assert task_text(made_task(labels=0), "sw-KE") == task_text(made_task(labels=1), "sw-KE")


def test_the_signature_is_of_ids_and_texts() -> None:
    found = task_text(made_task(), "sw-KE").signature
    ids, texts = SPLITS["train"]
    for train in ((("0", "1", "3"), texts), (ids, ("wake me", "stop", "play")), (ids[:2], texts[:2])):
        assert task_text(made_task(splits={**SPLITS, "train": train}), "sw-KE").signature != found


def test_a_limit_draws_as_for_examples() -> None:
    task = made_task()
    assert task_text(task, "sw-KE", limit=2).ids == task.load("sw-KE", "train").limited(2).ids
    with pytest.raises(DataError, match="limit of 0 rows"):
        task_text(task, "sw-KE", limit=0)


def test_a_text_that_test_has_too_is_told_from_a_shared_row() -> None:
    found = task_text(made_task(), "sw-KE")
    assert found.notes == ("1 of 3 texts read as one of the test split does, under another id",)


def test_shared_ids_are_counted_and_noted() -> None:
    leaking = made_task(splits={**SPLITS, "train": (("0", "9"), ("sun", "rain today"))})
    found = task_text(leaking, "sw-KE")
    assert found.overlap == 1
    assert found.notes == ("1 of 2 texts are also in the test split: results on it are transductive",)


def test_the_test_split_itself_is_transductive() -> None:
    found = task_text(made_task(), "sw-KE", split="test")
    assert (found.overlap, found.origin) == (2, "made sw-KE test")
    assert found.notes == ("2 of 2 texts are also in the test split: results on it are transductive",)


def test_a_task_without_a_test_split_says_so() -> None:
    found = task_text(made_task(splits={"train": SPLITS["train"]}), "sw-KE")
    assert found.overlap == 0
    assert found.notes == ("overlap with the test split is not known: made has no split 'test'",)


def test_a_locale_the_task_does_not_have() -> None:
    with pytest.raises(LocaleError, match="cy-GB"):
        task_text(made_task(), "cy-GB")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "habari\nya leo\n"),
        ("a.jsonl", '{"text": "habari"}\n{"text": "ya leo"}\n'),
        ("b.jsonl", '{"id": "4", "locale": "sw-KE", "utt": "habari"}\n{"utt": "ya leo"}\n'),
        ("a.csv", "text,id\nhabari,4\nya leo,5\n"),
    ],
)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, name: str, content: str) -> None:
    found = file_text(written(tmp_path / name, content), locale="sw_ke")
    assert (found.texts, found.ids, found.locale) == (("habari", "ya leo"), ("1", "2"), "sw-KE")
    assert found.origin == str(tmp_path / name)
    assert (found.notes, found.overlap) == ((), 0)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert file_text(packed, locale="sw-KE").signature == found.signature


def test_blank_lines_are_left_out_and_noted(tmp_path: Path) -> None:
    found = file_text(written(tmp_path / "a.txt", "habari\n\n  \nleo"), locale="sw-KE")
    assert (found.texts, found.ids) == (("habari", "leo"), ("1", "4"))
    assert found.notes == ("2 blank lines were left out",)


def test_labels_in_a_file_are_noted_and_decide_nothing(tmp_path: Path) -> None:
    def of(labels: str) -> Unlabelled:
        rows = "".join(f"habari {row},{label}\n" for row, label in enumerate(labels))
        return file_text(written(tmp_path / "a.csv", f"text,label\n{rows}"), locale="sw-KE")

    assert of("abc") == of("cab")
    assert of("abc").notes == ("labels in the file were not read: label",)


def test_a_file_is_compared_with_the_tests_texts(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", "stop\nwake me\n rain today\nstop it\n")
    found = file_text(file, locale="sw-KE", task=made_task())
    assert found.overlap == 2
    assert found.notes == ("2 of 4 texts are also in the test split: results on it are transductive",)
    with pytest.raises(LocaleError, match="cy-GB"):
        file_text(file, locale="cy-GB", task=made_task())


def test_a_limit_of_a_file_keeps_file_order(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", "".join(f"line {n}\n" for n in range(1, 51)))
    found = file_text(file, locale="sw-KE", limit=7)
    assert len(found) == 7
    assert found.texts == tuple(f"line {number}" for number in found.ids)
    assert list(map(int, found.ids)) == sorted(map(int, found.ids)) != list(range(1, 8))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "\n \n", "a.txt has no text: all of its 2 lines are blank"),
        ("a.jsonl", "", "a.jsonl has no text"),
        ("a.jsonl", '{"sentence": "x"}\n', "a.jsonl, line 1: no 'text' or 'utt' here, there are: sentence"),
        ("a.jsonl", '{"text": 3}\n', "a.jsonl, line 1: 'text' must be text, got 3"),
        ("a.jsonl", "habari\n", "a.jsonl, line 1: not JSON"),
        ("a.csv", "habari\nleo\n", "line 2: no 'text' or 'utt' here, there are: habari"),
        ("a.tsv", "text\nleo\n", r"a.tsv is no text file known here.*\.txt, \.txt\.gz"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        file_text(written(tmp_path / name, content), locale="sw-KE")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        file_text(tmp_path / "none.txt", locale="sw-KE")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt cannot be read"):
        file_text(tmp_path / "latin.txt", locale="sw-KE")


def test_there_is_no_text_without_an_id() -> None:
    with pytest.raises(DataError, match="2 texts and 1 ids"):
        Unlabelled(("a", "b"), ("1",), "here", "sw-KE", "0")
