"""Sums and order statistics: in chunks as at once."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.methods.measures import (
    GRAM,
    Known,
    Ranked,
    Sum,
    float_of_bits,
    gram,
    measured,
    ordered_bits,
)

from .conftest import Experts, experts, float64, streamed

INF, NAN = math.inf, math.nan


def as_they_are(base: Tensor, tuned: Tensor, weights: Tensor, known: Known, **_: Any) -> Tensor:
    """The sources themselves, so that a test says what is ranked."""
    return tuned


def ranked(*ranks: Sequence[int]) -> Ranked:
    """Order statistics of the sources at ranks written out, one list for each source."""
    return Ranked("found", as_they_are, lambda *_, **__: torch.tensor(ranks))


def of_values(*rows: Sequence[float]) -> Experts:
    tuned = torch.tensor(rows, dtype=torch.float32)
    return Experts(torch.zeros(tuned.shape[1]), tuned, torch.ones(len(tuned)))


def both_ways(measure: Ranked, given: Experts, rows: int = 2) -> list[list[float]]:
    """What is measured at once, having checked that chunks tell the same."""
    (whole,) = measured([measure], *given).values()
    found = streamed([measure], given, rows)["found"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole, rtol=0, atol=0, equal_nan=True)
    return [[float(one) for one in row] for row in whole]


def test_the_rank_of_the_largest_is_one() -> None:
    given = of_values([3, -1, 7, 0, 2], [-5, -6, -7, -8, -9])
    assert both_ways(ranked([1, 2, 5], [1, 3, 5]), given) == [[7, 3, -1], [-5, -7, -9]]


def test_ranks_outside_the_tensor() -> None:
    # Nothing is larger than +∞, and everything is larger than −∞.
    given = of_values([3, -1, 7], [0, 0, 0])
    assert both_ways(ranked([0, 3, 4], [-2, 1, 100]), given) == [[INF, -1, -INF], [INF, 0, -INF]]


def test_equal_values_take_a_rank_each() -> None:
    given = of_values([2, 5, 2, 2, 1, 5, 0])
    ranks = list(range(1, 8))
    assert both_ways(ranked(ranks), given) == [[5, 5, 2, 2, 2, 1, 0]]


def test_zeros_of_both_signs_are_equal() -> None:
    given = of_values([-0.0, 1, 0.0, -1, -0.0])
    assert both_ways(ranked([1, 2, 3, 4, 5]), given) == [[1, 0, 0, 0, -1]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_counts_as_the_largest(sign: float) -> None:
    # Processors make NaNs with the sign bit set: ∞ − ∞ is one on x86.
    given = of_values([1, INF, math.copysign(NAN, sign), -INF, -2])
    found = both_ways(ranked([1, 2, 3, 4, 5]), given)[0]
    assert math.isnan(found[0])
    assert found[1:] == [INF, 1, -2, -INF]


@pytest.mark.parametrize("rows", [17, 64, 1000])
@pytest.mark.parametrize("kind", ["normal", "few", "tiny", "wide"])
def test_every_rank_is_where_sorting_puts_it(kind: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(2, 300, generator=generator)
    values = {
        "normal": values,
        "few": values.round(),
        # Subnormal, and so close together that they share the upper half of their bits.
        "tiny": values * 1e-42,
        "wide": values.sign() * 10 ** (30 * values),
    }[kind]
    ranks = [1, 2, 150, 151, 300]
    found = both_ways(ranked(ranks, ranks), Experts(values[0] * 0, values, torch.ones(2)), rows)
    for row, own in zip(values.tolist(), found, strict=True):
        descending = sorted(row, reverse=True)
        assert own == [descending[rank - 1] for rank in ranks]


def test_at_once_values_keep_their_dtype() -> None:
    # 1 + 2⁻⁴⁰ is 1 in float32.
    tuned = float64([1 + 2**-40, 1, 0])
    (found,) = measured([ranked([1, 2])], tuned[0] * 0, tuned, float64(1)).values()
    assert found.tolist() == [[1 + 2**-40, 1]]


def test_ranks_may_depend_on_what_is_known() -> None:
    # A count first, then as many of the largest as were counted.
    positive = Sum(
        lambda _, tuned, *__, **___: (tuned > 0).sum(1),
        lambda total, *_, **__: {"count": total},
    )
    last = Ranked("found", as_they_are, lambda _, known, n, **__: known["count"].reshape(n, 1))
    given = of_values([3, -1, 7, 2, -2], [-1, -1, -1, 4, -3])
    for known in (measured([positive, last], *given), streamed([positive, last], given, 2)):
        assert known["found"].tolist() == [[2], [4]]


def test_no_gradient_reaches_a_rank() -> None:
    tuned = torch.randn(1, 5, requires_grad=True)
    (found,) = measured([ranked([1])], tuned[0], tuned, torch.ones(1)).values()
    assert not found.requires_grad


def test_bits_order_like_their_values() -> None:
    values = [-INF, -3e38, -1.0, -1e-45, 0.0, 1e-45, 1.0, 1 + 2**-23, 3e38, INF]
    bits = ordered_bits(torch.tensor(values))
    assert bool((bits.diff() > 0).all())
    assert bits.dtype == torch.int64
    assert bool(((bits >= 0) & (bits < 1 << 32)).all())
    assert [float_of_bits(one) for one in bits.tolist()] == torch.tensor(values).tolist()


def test_bits_of_both_zeros_are_equal_and_of_nan_are_last() -> None:
    zero, minus_zero, infinity, nan, minus_nan = ordered_bits(
        torch.tensor([0.0, -0.0, INF, NAN, -NAN])
    ).tolist()
    assert zero == minus_zero
    assert infinity < nan
    assert infinity < minus_nan
    assert math.isnan(float_of_bits(nan))


def test_bits_of_strided_and_doubled_values() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(ordered_bits(values.T), ordered_bits(values.float()).T)


def test_gram_by_hand() -> None:
    base, tuned = float64(1, 1), float64([2, 1], [1, 4])
    # τ_1 = [1, 0], τ_2 = [0, 3].
    assert gram(base, tuned, float64(1, 1), {}).tolist() == [[1, 0], [0, 9]]
    assert gram(base, tuned, float64(1, 1), {}, about="origin").tolist() == [[5, 6], [6, 17]]


def test_a_gram_adds_up_over_chunks() -> None:
    given = experts((11, 5), 3, dtype=torch.float32)
    known = measured([GRAM], *given)["gram"]
    assert known.dtype == torch.float64
    torch.testing.assert_close(streamed([GRAM], given, 3)["gram"], known, rtol=1e-14, atol=1e-14)
    tau = (given.tuned - given.base).flatten(1).double()
    torch.testing.assert_close(known, tau @ tau.T, rtol=1e-14, atol=1e-14)
