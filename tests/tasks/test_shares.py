"""Label shares: counted elsewhere, or read."""

from pathlib import Path

import numpy as np
import pytest

from langmerge.errors import DataError, InputError
from langmerge.tasks import Examples, Task, label_shares, read_shares


def counted(locale: str, split: str) -> Examples:
    labels = {"aa": [0, 0, 0, 1], "bb": [2, 2]}[locale]
    ids = tuple(map(str, range(len(labels))))
    return Examples(locale=locale, split=split, ids=ids, texts=ids, labels=np.array(labels))


TASK = Task(name="x", labels=("a", "b", "c"), locales=("aa", "bb"), revision="0", load=counted)


def test_one_is_added_to_each_count() -> None:
    assert label_shares(TASK, ["aa"], target="sw-KE") == pytest.approx({"a": 4 / 7, "b": 2 / 7, "c": 1 / 7})
    assert label_shares(TASK, ["aa", "bb"], target="sw-KE") == pytest.approx(
        {"a": 4 / 9, "b": 2 / 9, "c": 3 / 9}
    )


def test_the_targets_own_labels_are_refused() -> None:
    with pytest.raises(InputError, match="for bb may not be counted in bb's own labels"):
        label_shares(TASK, ["aa", "bb"], target="bb")
    with pytest.raises(InputError, match="need a locale"):
        label_shares(TASK, [], target="bb")


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "1"}', '{"a": true}'])
def test_files_that_are_no_shares(tmp_path: Path, text: str) -> None:
    file = tmp_path / "shares.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"label shares .*shares.json"):
        read_shares(file)
    file.write_text('{"a": 1, "b": 2.5}')
    assert read_shares(file) == {"a": 1.0, "b": 2.5}
