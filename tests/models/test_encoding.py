"""Ids and batches."""

import numpy as np
import pytest
import torch

from langmerge.models import length_bucketed, padded, shuffled_batches

LENGTHS = [3, 9, 4, 4, 20, 3, 7]


def test_buckets_hold_each_row_once_within_the_budget() -> None:
    batches = length_bucketed(LENGTHS, batch_tokens=16)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
    assert [batch.tolist() for batch in batches] == [[4], [1], [6, 2], [3, 0, 5]]


def test_no_rows_no_batches() -> None:
    assert length_bucketed([], batch_tokens=16) == []


@pytest.mark.parametrize("rows", [1, 5, 64, 200])
def test_an_epoch_holds_each_row_once(rows: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 30, rows).tolist()
    batches = list(shuffled_batches(lengths, batch_size=4, generator=torch.Generator().manual_seed(0)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert max(len(batch) for batch in batches) <= 4


def test_epochs_differ_and_seeds_repeat() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, 64).tolist()

    def epoch(generator: torch.Generator) -> list[list[int]]:
        return [batch.tolist() for batch in shuffled_batches(lengths, batch_size=4, generator=generator)]

    generator = torch.Generator().manual_seed(0)
    first, second = epoch(generator), epoch(generator)
    assert first != second
    assert first == epoch(torch.Generator().manual_seed(0))


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 30, 128).tolist()
    batches = shuffled_batches(lengths, batch_size=4, generator=torch.Generator().manual_seed(0))
    widths = [np.ptp(np.array(lengths)[batch]) for batch in batches]
    assert np.mean(widths) < 2


def test_padding_stands_at_the_end_and_is_masked() -> None:
    ids, mask = padded([[5, 6, 7], [8]], pad_id=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
