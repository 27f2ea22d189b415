"""A tensor as vectors of its own: its rows, or the vectors along its last axis."""

from jaxtyping import Float
from torch import Tensor

_BLOCK = 4096


def as_rows(tensor: Float[Tensor, "*S"]) -> Float[Tensor, "rows columns"]:
    """(out, …) as (out, columns): a row is everything behind the first axis; a vector or a scalar is one row."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return tensor.reshape(len(tensor), tensor.shape[1:].numel())


def along_last_axis(tensor: Float[Tensor, "*S"]) -> Float[Tensor, "vectors columns"]:
    """(…, columns) as (vectors, columns): the rows of a matrix, and shorter pieces of what has more axes."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def row_sums(rows: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows"]:
    """Sum of each row, to the bit the same whatever rows lie beside it and however many threads there are.

    torch splits a sum over threads where it has one result: blocks are too short for that, and add up in order.
    """
    total: Tensor = rows.new_zeros(len(rows))
    for start in range(0, rows.shape[1], _BLOCK):
        total = total + rows[:, start : start + _BLOCK].sum(1)
    return total
