from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from langmerge.engine.vocabulary import Alignment
from langmerge.engine.vocabulary_rows import count_unheld, renumbered, row_block, runs
from langmerge.errors import CheckpointError

row_maps = st.one_of(
    st.integers(0, 20).flatmap(
        lambda size: arrays(np.int64, size, elements=st.integers(-1, 20), unique=False)
    ),
    st.permutations(range(-1, 12)).map(np.array),
    st.integers(0, 5).map(lambda start: np.concatenate([np.arange(start), [-1], np.arange(6)])),
)


def alignment_of(pieces: int, **rows: Any) -> Alignment:
    return Alignment(pieces, {name: np.array(own, np.int64) for name, own in rows.items()}, {})


@given(row_maps)
def test_runs_give_the_rows_back(rows: np.ndarray) -> None:
    found = np.full_like(rows, -1)
    stretches = runs(rows)
    for out, start, length in stretches:
        found[out : out + length] = np.arange(start, start + length)
    assert np.array_equal(found, rows)
    for (out, start, length), (next_out, next_start, _) in pairwise(stretches):
        # In order, and as long as they can be.
        assert next_out >= out + length
        assert (next_out, next_start) != (out + length, start + length)


def test_runs_of_python_numbers() -> None:
    assert repr(runs(np.array([-1, 0, 1, 5, 6, -1, -1]))) == "[(1, 0, 2), (3, 5, 2)]"
    assert runs(np.arange(1000)) == [(0, 0, 1000)]
    assert runs(np.zeros(0, np.int64)) == []


def test_the_fill_rule_by_hand() -> None:
    # Pieces: one that all have, one that the second lacks, one that only the sources have, one of the first alone.
    found = alignment_of(4, base=[0, 1, -1, -1], two=[0, -1, 1, -1], three=[0, 1, 2, -1])
    block = row_block(found, ["base", "one", "two", "three"], base="base")
    assert {name: places.tolist() for name, places in block.filled().items()} == {
        "base": [2, 3], "two": [1, 3], "three": [3],
    }  # fmt: skip
    values = {
        "base": np.array([[1.0], [2.0], [np.nan], [np.nan]]),
        "one": np.array([[10.0], [20.0], [30.0], [40.0]]),
        "two": np.array([[100.0], [np.nan], [300.0], [np.nan]]),
        "three": np.array([[1000.0], [2000.0], [3000.0], [np.nan]]),
    }
    block.fill(values)
    assert {name: own[:, 0].tolist() for name, own in values.items()} == {
        "base": [1.0, 2.0, 1110.0, 40.0],
        "one": [10.0, 20.0, 30.0, 40.0],
        "two": [100.0, 2.0, 300.0, 40.0],
        "three": [1000.0, 2000.0, 3000.0, 40.0],
    }


def test_without_a_base_the_mean_of_the_holders_stands_in() -> None:
    found = alignment_of(3, one=[0, -1, 1], two=[0, 1, -1])
    values = {
        name: np.array([1.0, 2.0, 3.0], np.float32) * scale
        for name, scale in (("one", 1), ("two", 3), ("three", 5))
    }
    row_block(found, list(values), base=None).fill(values)
    assert values["one"].tolist() == [1.0, 8.0, 3.0]
    assert values["two"].tolist() == [3.0, 6.0, 9.0]
    assert values["three"].tolist() == [5.0, 10.0, 15.0]
    assert values["one"].dtype == np.float32


def test_a_row_that_one_alone_has_keeps_every_bit() -> None:
    own = np.array([-0.0, 1e-45, np.inf, -np.inf, 0.1], np.float32)
    found = alignment_of(5, base=[-1] * 5, two=[-1] * 5)
    values = {"base": np.ones(5, np.float32), "one": own.copy(), "two": np.ones(5, np.float32)}
    row_block(found, list(values), base="base").fill(values)
    assert {one.tobytes() for one in values.values()} == {own.tobytes()}


def test_a_row_that_nobody_has() -> None:
    found = alignment_of(6, one=[0, 1, 2, 3, -1, 4], two=[0, 1, 2, -1, -1, 4])
    assert count_unheld(found, ["one", "two"]) == 1
    assert count_unheld(found, ["one", "two", "three"]) == 0
    values = {name: np.zeros((3, 2)) for name in ("one", "two")}
    with pytest.raises(CheckpointError, match="row 4 of the output's vocabulary is in none of the sources"):
        row_block(found, values, base=None, start=3).fill(values)
    with pytest.raises(CheckpointError, match="row 4 of"):
        row_block(found, ["two"], base="two", start=4).fill({"two": np.zeros((2, 2))})


def filled_by_rule(
    rows: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray], base: str | None, piece: int
) -> dict[str, np.ndarray]:
    """The rule for one piece, as the documentation has it."""
    own = {name: stored[name][rows[name][piece]] for name in rows if rows[name][piece] >= 0}
    if base in own:
        return {name: own.get(name, own[base]) for name in rows}
    holders = [own[name] for name in rows if name in own]
    mean = sum(holders[1:], holders[0]) / np.float32(len(holders))
    return {name: own.get(name, mean) for name in rows}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_blocks_of_any_length_fill_as_the_rule_says(
    data: st.DataObject, pieces: int, step: int, with_base: bool
) -> None:
    stored = {
        name: np.random.default_rng(seed).normal(size=(9, 2)).astype(np.float32)
        for seed, name in enumerate(("one", "base", "two", "three"))
    }
    rows = {name: data.draw(arrays(np.int64, pieces, elements=st.integers(-1, 8))) for name in stored}
    # Where the rows are 0, 1, 2, …, the alignment has none.
    rows["three"] = np.arange(pieces)
    base = "base" if with_base else None
    found = Alignment(pieces, {name: rows[name] for name in ("one", "base", "two")}, {})
    results: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for start in range(0, pieces, step):
        block = row_block(found, rows, base=base, start=start, stop=min(start + step, pieces))
        values = {}
        for name, own in block.rows.items():
            values[name] = np.full((len(own), 2), np.nan, np.float32)
            for out, first, length in runs(own):
                values[name][out : out + length] = stored[name][first : first + length]
            assert (
                np.flatnonzero(np.isnan(values[name][:, 0])).tolist()
                == block.filled().get(name, np.array([])).tolist()
            )
        block.fill(values)
        for name, own in values.items():
            results[name].extend(own)
    for piece in range(pieces):
        for name, row in filled_by_rule(rows, stored, base, piece).items():
            assert results[name][piece].tobytes() == row.tobytes()


CONFIG = {
    "vocab_size": 4,
    "pad_token_id": 1,
    "eos_token_id": [2, 3],
    "bos_token_id": None,
    "image_token_index": 3,
    "forced_token_id": -1,
    "some_token_id": True,
    "hidden_size": 1,
    "text_config": {"vocab_size": 4, "sep_token_id": 0},
    "vision_config": {"vocab_size": 77},
    "suppress_tokens": [1, 9],
}


def test_token_ids_of_the_config_follow_their_pieces() -> None:
    found = alignment_of(6, one=[-1, 3, 0, 1, -1, 2])
    assert renumbered(CONFIG, found, "one", 4) == {
        "vocab_size": 6,
        "pad_token_id": 3,
        "eos_token_id": [5, 1],
        "bos_token_id": None,
        "image_token_index": 1,
        "forced_token_id": -1,
        "some_token_id": True,
        "hidden_size": 1,
        "text_config": {"vocab_size": 6, "sep_token_id": 2},
        "vision_config": {"vocab_size": 77},
        "suppress_tokens": [3, 9],
    }
    assert CONFIG["pad_token_id"] == 1
    assert renumbered(CONFIG, alignment_of(4), "one", 4) == CONFIG


def test_a_token_of_the_config_that_the_output_lacks() -> None:
    with pytest.raises(CheckpointError, match="eos_token_id 3 of one stands for a piece that the output's"):
        renumbered(CONFIG, alignment_of(3), "one", 4)
