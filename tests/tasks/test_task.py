import dataclasses
from hashlib import blake2b

import numpy as np
import pytest

from langmerge.errors import DataError
from langmerge.tasks import SPLITS, Examples, load_task


def examples(n: int, locale: str = "sw-KE") -> Examples:
    return Examples(
        locale=locale,
        split="train",
        ids=tuple(f"{row}" for row in range(n)),
        texts=tuple(f"text {row}" for row in range(n)),
        labels=np.arange(n, dtype=np.int64),
    )


def test_a_limit_keeps_rows_together_in_file_order() -> None:
    some = examples(100).limited(10)
    rows = [int(name) for name in some.ids]
    assert len(some) == 10
    assert rows == sorted(rows)
    assert some.texts == tuple(f"text {row}" for row in rows)
    assert some.labels.tolist() == rows
    assert some.labels.dtype == np.int64


def test_a_limit_is_not_the_first_rows() -> None:
    assert set(examples(100).limited(10).ids) != {f"{row}" for row in range(10)}


def test_smaller_limits_nest_in_larger_ones() -> None:
    whole = examples(60)
    assert set(whole.limited(7).ids) < set(whole.limited(8).ids) < set(whole.ids)


def test_a_limit_takes_the_same_ids_whatever_the_order_and_locale() -> None:
    forwards = examples(50)
    backwards = dataclasses.replace(examples(50, "cy-GB"), ids=forwards.ids[::-1])
    assert set(forwards.limited(9).ids) == set(backwards.limited(9).ids)


@pytest.mark.parametrize("n", [None, 3, 4])
def test_a_limit_of_at_least_all_rows_keeps_all(n: int | None) -> None:
    assert examples(3).limited(n).ids == ("0", "1", "2")


@pytest.mark.parametrize("n", [0, -1])
def test_a_limit_below_one_is_an_error(n: int) -> None:
    with pytest.raises(DataError, match=rf"limit of {n} rows.*sw-KE train.*1 or more"):
        examples(3).limited(n)


def test_every_row_is_kept_equally_often() -> None:
    # 40 draws of 10 from 100 by unrelated ids: each tenth of the file gets a share near 1/10.
    tenths = np.zeros(10)
    for draw in range(40):
        base = examples(100)
        some = dataclasses.replace(base, ids=tuple(f"{draw}-{row}" for row in range(100))).limited(10)
        for row in some.labels:
            tenths[row // 10] += 1
    assert tenths.sum() == 400
    assert tenths.min() > 20
    assert tenths.max() < 62


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ("0", "1")},
        {"texts": ("only one",)},
        {"labels": np.zeros(2, dtype=np.int64)},
        {"labels": np.zeros((3, 1), dtype=np.int64)},
        {"labels": np.zeros(3, dtype=np.int32)},
    ],
)
def test_examples_that_do_not_fit_together_are_an_error(change: dict[str, object]) -> None:
    fields: dict[str, object] = {
        field.name: getattr(examples(3), field.name) for field in dataclasses.fields(Examples)
    }
    with pytest.raises(DataError, match="as many ids, texts and int64 labels"):
        Examples(**{**fields, **change})  # type: ignore[arg-type]


def test_the_splits() -> None:
    assert SPLITS == ("train", "dev", "test")
    assert len(load_task("demo:intent").load("en-US", SPLITS[0])) == 200


def test_parts_share_the_ids_out_alike_in_every_locale() -> None:
    whole = examples(200)
    parts = [whole.part(place, 3) for place in range(3)]
    assert sorted(name for part in parts for name in part.ids) == sorted(whole.ids)
    assert all(40 < len(part) < 95 for part in parts)
    other = dataclasses.replace(whole, locale="sw-KE", texts=tuple(reversed(whole.texts)))
    assert [other.part(place, 3).ids for place in range(3)] == [part.ids for part in parts]
    place = whole.ids.index(parts[1].ids[5])
    assert parts[1].texts[5] == whole.texts[place]
    assert parts[1].labels[5] == whole.labels[place]
    assert whole.part(0, 1).ids == whole.ids


@pytest.mark.parametrize(("place", "of"), [(3, 3), (-1, 3), (0, 0)])
def test_a_part_that_is_not_there(place: int, of: int) -> None:
    with pytest.raises(DataError, match="there is no part"):
        examples(10).part(place, of)


def test_too_many_parts() -> None:
    filled = {int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") % 500 for name in "012"}
    empty = min(set(range(500)) - filled)
    with pytest.raises(DataError, match="too few for 500 parts"):
        examples(3).part(empty, 500)
