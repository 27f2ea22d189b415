from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from langmerge.errors import DataError, LocaleError
from langmerge.tasks import SPLITS, load_task

HEADER = "index_id\tcategory\ttext"


def write(data: Path, lines: Sequence[str], *, folder: str = "swh_Latn", split: str = "dev") -> Path:
    path = data / "sib200" / folder / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return data


def test_one_split(tmp_path: Path) -> None:
    data = write(tmp_path, [HEADER, "31\ttravel\tSafari njema", '7\thealth\t"Alisema ""ndiyo""."'])
    task = load_task("sib200:topic", data=data)
    dev = task.load("sw-KE", "dev")
    assert (dev.ids, dev.texts) == (("31", "7"), ("Safari njema", 'Alisema "ndiyo".'))
    assert [task.labels[label] for label in dev.labels] == ["travel", "health"]
    assert task.locales == ("sw-KE",)
    assert task.labels == tuple(sorted(task.labels))
    assert len(task.labels) == 7


def test_albanian_is_found_under_its_individual_language(tmp_path: Path) -> None:
    data = write(tmp_path, [HEADER, "1\tsports\tFutboll"], folder="als_Latn")
    assert load_task("sib200:topic", data=data).load("sq-AL", "dev").texts == ("Futboll",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2\ttravel", r"line 3: expected 3 fields"),
        ("2\ttravel\ta\tb", r"line 3: expected 3 fields"),
        ("2\ttravel\t ", r"line 3: 'text' must be text that is not blank"),
        ("\ttravel\tx", r"line 3: 'index_id' must be text that is not blank"),
        ("1\ttravel\tx", r"line 3: the id '1' occurs before, in .*line 2"),
        ("2\ttravels\tx", r"line 3: unknown label 'travels': did you mean 'travel'"),
        ('2\ttravel\t"never closed', r"line 3: not a table \(unexpected end of data\)"),
    ],
)
def test_a_malformed_row_is_an_error_that_names_its_line(tmp_path: Path, row: str, message: str) -> None:
    task = load_task("sib200:topic", data=write(tmp_path, [HEADER, "1\ttravel\tx", row]))
    with pytest.raises(DataError, match=r"swh_Latn.dev\.tsv, " + message):
        task.load("sw-KE", "dev")


def test_a_missing_column_is_an_error(tmp_path: Path) -> None:
    task = load_task("sib200:topic", data=write(tmp_path, ["index_id\ttopic\ttext", "1\ttravel\tx"]))
    with pytest.raises(
        DataError, match=r"line 2: the key 'category' is missing, there are: index_id, topic, text"
    ):
        task.load("sw-KE", "dev")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    task = load_task("sib200:topic", data=write(tmp_path, [HEADER, "1\ttravel\tx"]))
    with pytest.raises(DataError, match=r"test\.tsv cannot be read"):
        task.load("sw-KE", "test")
    with pytest.raises(LocaleError, match="sib200:topic has no locale 'cy-GB'"):
        task.load("cy-GB", "dev")


def test_a_folder_without_languages_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sib200" / "unheard_Of").mkdir(parents=True)
    with pytest.raises(DataError, match="has no folder named by a FLORES-200 code, like swh_Latn"):
        load_task("sib200:topic", data=tmp_path)


@pytest.mark.real_data
def test_real_rows_are_parallel_and_splits_disjoint(real_data: Path) -> None:
    task = load_task("sib200:topic", data=real_data)
    assert len(task.locales) == 44
    english = {split: task.load("en-US", split) for split in SPLITS}
    assert [len(english[split]) for split in SPLITS] == [701, 99, 204]
    assert len({name for split in SPLITS for name in english[split].ids}) == 701 + 99 + 204
    assert np.unique(english["train"].labels).tolist() == list(range(7))
    for locale in task.locales:
        test = task.load(locale, "test")
        assert test.ids == english["test"].ids
        assert test.labels.tolist() == english["test"].labels.tolist()


@pytest.mark.real_data
def test_a_limit_on_the_sorted_test_split_has_all_topics(real_data: Path) -> None:
    test = load_task("sib200:topic", data=real_data).load("sw-KE", "test")
    assert len(set(test.labels[:50].tolist())) == 1
    assert len(set(test.limited(50).labels.tolist())) == 7
