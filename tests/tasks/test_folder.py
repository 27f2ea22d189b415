import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from langmerge.errors import DataError, LocaleError
from langmerge.tasks import load_task

from .conftest import WriteLines

GOOD = ['{"id": "a", "text": "habari", "label": "news"}', '{"id": 2, "text": "muziki", "label": "music"}']


def test_labels_are_the_sorted_union_over_all_files(write_lines: WriteLines) -> None:
    write_lines("sw-KE/train.jsonl", GOOD)
    own = write_lines("cy_gb/test.csv", ["label,text", 'alarm,"deffro fi, plîs"', "news,newyddion"])
    (own / "README.md").write_text("not read")
    (own / ".hidden").mkdir()
    task = load_task(f"folder:{own}")
    assert task.labels == ("alarm", "music", "news")
    assert task.locales == ("cy-GB", "sw-KE")
    assert task.name == f"folder:{own}"
    swahili, welsh = task.load("sw-KE", "train"), task.load("cy-GB", "test")
    assert (swahili.ids, swahili.labels.tolist()) == (("a", "2"), [2, 1])
    assert (welsh.texts, welsh.labels.tolist()) == (("deffro fi, plîs", "newyddion"), [0, 2])


def test_without_ids_the_sentences_of_two_locales_are_unrelated(write_lines: WriteLines) -> None:
    lines = ["text,label", "x,news", "y,news"]
    write_lines("sw-KE/dev.csv", lines)
    write_lines("sw-KE/test.csv", lines)
    task = load_task(f"folder:{write_lines('cy-GB/dev.csv', lines)}")
    ids = [task.load(*where).ids for where in (("sw-KE", "dev"), ("sw-KE", "test"), ("cy-GB", "dev"))]
    assert len({name for found in ids for name in found}) == 6


def test_a_byte_order_mark_is_no_part_of_a_column(write_lines: WriteLines) -> None:
    own = write_lines("sw-KE/dev.csv", ["\ufefftext,label", "x,news"])
    assert load_task(f"folder:{own}").load("sw-KE", "dev").texts == ("x",)


def test_a_text_may_span_lines(write_lines: WriteLines) -> None:
    own = write_lines("sw-KE/dev.csv", ["text,label", '"x', 'y",news'])
    assert load_task(f"folder:{own}").load("sw-KE", "dev").texts == ("x\ny",)


def test_the_name_can_be_loaded_from_anywhere(
    write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(write_lines("sw-KE/train.jsonl", GOOD).parent)
    task = load_task("folder:own")
    monkeypatch.chdir("/")
    assert load_task(task.name) == task or load_task(task.name).revision == task.revision
    assert task.load("sw-KE", "train").ids == ("a", "2")


def test_the_revision_follows_names_and_contents(write_lines: WriteLines) -> None:
    own = write_lines("sw-KE/train.jsonl", GOOD)
    first = load_task(f"folder:{own}").revision
    assert load_task(f"folder:{own}").revision == first
    write_lines("sw-KE/train.jsonl", [GOOD[0].replace("habari", "habori"), GOOD[1]])
    second = load_task(f"folder:{own}").revision
    (own / "sw-KE").rename(own / "sq-AL")
    third = load_task(f"folder:{own}").revision
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("sw-KE/train.jsonl", [GOOD[0], "{"], r"train\.jsonl, line 2: not JSON"),
        ("sw-KE/train.jsonl", ['{"text": "x"}'], r"line 1: the key 'label' is missing, there are: text"),
        ("sw-KE/train.jsonl", ['{"text": "x", "label": 3}'], r"line 1: 'label' must be text .* got 3"),
        ("sw-KE/train.jsonl", ['{"text": "", "label": "a"}'], r"line 1: 'text' must be text"),
        ("sw-KE/train.jsonl", [GOOD[0], GOOD[0]], r"line 2: the id 'a' occurs before, in .*line 1"),
        (
            "sw-KE/train.jsonl",
            [GOOD[0], '{"text": "x", "label": "a"}'],
            r"line 2: give every record .* 'id', or none",
        ),
        ("sw-KE/train.jsonl", [], r"train\.jsonl has no records"),
        ("sw-KE/train.csv", [], r"train\.csv has no records"),
        ("sw-KE/train.csv", ["text,label"], r"train\.csv has no records"),
        ("sw-KE/train.csv", ["text,label", "x"], r"train\.csv, line 2: expected 2 fields"),
        ("sw-KE/train.csv", ["text,label,text", "x,a,y"], r"line 1: a column occurs twice"),
        ("sw-KE/train.csv", ["text;label", "x;a"], r"line 2: the key 'text' is missing"),
        ("sw-KE/validation.jsonl", GOOD, r"validation\.jsonl has a name that is not used: .*train\.jsonl"),
        ("sw-KE/tests.csv", GOOD, r"tests\.csv has a name that is not used: did you mean 'test\.csv'"),
        ("train.jsonl", GOOD, r"own has no locales: expected folders like sw-KE"),
    ],
)
def test_what_is_not_as_the_layout_says_is_an_error(
    write_lines: WriteLines, name: str, lines: Sequence[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_task(f"folder:{write_lines(name, lines)}")


def test_an_id_in_two_splits_of_a_locale_is_an_error(write_lines: WriteLines) -> None:
    write_lines("sw-KE/train.jsonl", GOOD)
    own = write_lines("sw-KE/test.jsonl", GOOD[1:])
    with pytest.raises(DataError, match=r"line 2: the id '2' occurs before, in .*test\.jsonl, line 1"):
        load_task(f"folder:{own}")


def test_a_split_in_two_files_is_an_error(write_lines: WriteLines) -> None:
    write_lines("sw-KE/train.csv", ["text,label", "x,a"])
    with pytest.raises(DataError, match=r"has the split train twice"):
        load_task(f"folder:{write_lines('sw-KE/train.jsonl', GOOD)}")


def test_a_locale_in_two_folders_is_an_error(write_lines: WriteLines) -> None:
    write_lines("sw-KE/train.jsonl", GOOD)
    with pytest.raises(DataError, match="two folders for sw-KE"):
        load_task(f"folder:{write_lines('sw_KE/train.jsonl', GOOD)}")


def test_a_locale_folder_without_files_is_an_error(write_lines: WriteLines) -> None:
    own = write_lines("sw-KE/train.jsonl", GOOD)
    (own / "cy-GB").mkdir()
    with pytest.raises(DataError, match=r"cy-GB has no files: expected some of train\.csv"):
        load_task(f"folder:{own}")


def test_a_folder_that_is_not_named_by_a_locale_is_an_error(write_lines: WriteLines) -> None:
    with pytest.raises(LocaleError, match="'no locale'"):
        load_task(f"folder:{write_lines('no locale/train.jsonl', GOOD)}")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder:.*nowhere is no folder"):
        load_task(f"folder:{tmp_path / 'nowhere'}")


def test_a_split_that_a_locale_lacks_is_an_error(write_lines: WriteLines) -> None:
    task = load_task(f"folder:{write_lines('sw-KE/train.jsonl', GOOD)}")
    with pytest.raises(DataError, match="has no split 'dev' for sw-KE: accepted: train"):
        task.load("sw-KE", "dev")


def test_a_label_that_appears_after_loading_the_task_is_an_error(write_lines: WriteLines) -> None:
    task = load_task(f"folder:{write_lines('sw-KE/train.jsonl', GOOD)}")
    write_lines("sw-KE/train.jsonl", [json.dumps({"text": "x", "label": "newss"})])
    with pytest.raises(DataError, match=r"line 1: unknown label 'newss': did you mean 'news'"):
        task.load("sw-KE", "train")
