"""Sums of rows."""

import pytest
import torch
from torch import Tensor

from langmerge.methods.rows import row_sums


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("columns", [1, 4097, 100_003])
def test_a_rows_sum_does_not_depend_on_its_neighbours(columns: int) -> None:
    rows = torch.randn(5, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together, threads = row_sums(rows), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(torch.cat([row_sums(row[None]) for row in rows]), together)
    finally:
        torch.set_num_threads(threads)
    close(together, rows.sum(1), 1e-11)
