"""What a method must know of a whole tensor before it can merge a part of it: sums and order statistics.

A tensor is merged in chunks that fit a cache. Whatever a method needs from all of it (a Gram matrix, a trim threshold)
is a *measure*: a pass over the chunks whose parts add up, settled into a few numbers. The methods take these numbers as
`known`; called without, they measure the tensor they are given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

Known = Mapping[str, Tensor]
"""What has been measured, by name."""

_HIGH = _LOW = 1 << 16


@dataclass(frozen=True)
class Sum:
    """A measure that adds up over chunks.

    Attributes:
        part: `(base, tuned, weights, known, **parameters)` → a tensor of one chunk, float64 or int64.
        settle: `(total, known, size, **parameters)` → what is known from the sum over all chunks of `size` entries.
    """

    part: Callable[..., Tensor]
    settle: Callable[..., Known]

    def whole(self, base: Tensor, tuned: Tensor, weights: Tensor, known: Known, **parameters: Any) -> Known:
        """Measure a tensor at once."""
        total = self.part(base, tuned, weights, known, **parameters)
        return self.settle(total, known, base.numel(), **parameters)

    @property
    def passes(self) -> "tuple[Sum, ...]":
        """The passes over the chunks, in order."""
        return (self,)


@dataclass(frozen=True)
class Ranked:
    """Order statistics: the r-th largest of each of K rows of values, exactly.

    Attributes:
        name: under which the (K, R) tensor is known.
        values: `(base, tuned, weights, known, **parameters)` → (K, *S), computed entry by entry.
        ranks: `(size, known, K, **parameters)` → (K, R) int64, 1 for the largest; 0 stands for +∞ (nothing is so
            large), and what lies beyond `size` for −∞ (everything is).
    """

    name: str
    values: Callable[..., Tensor]
    ranks: Callable[..., Tensor]

    def whole(self, base: Tensor, tuned: Tensor, weights: Tensor, known: Known, **parameters: Any) -> Known:
        """Measure a tensor at once, in its own dtype."""
        found = self.values(base, tuned, weights, known, **parameters)
        rows = found.detach().reshape(len(found), -1)
        ranks = self.ranks(base.numel(), known, len(rows), **parameters)
        return {self.name: torch.stack([_largest(row, own) for row, own in zip(rows, ranks, strict=True)])}

    @property
    def passes(self) -> tuple[Sum, ...]:
        """Two histograms over the bits of float32 values: the high half, then the low half where the rank falls."""
        return (Sum(self._high, self._settle_high), Sum(self._low, self._settle_low))

    def _bits(self, base: Tensor, tuned: Tensor, weights: Tensor, known: Known, parameters: Any) -> Tensor:
        found = self.values(base, tuned, weights, known, **parameters)
        return ordered_bits(found.reshape(len(found), -1))

    def _high(self, base: Tensor, tuned: Tensor, weights: Tensor, known: Known, **parameters: Any) -> Tensor:
        bits = self._bits(base, tuned, weights, known, parameters)
        return torch.stack([torch.bincount(row >> 16, minlength=_HIGH) for row in bits])

    def _settle_high(self, total: Tensor, known: Known, size: int, **parameters: Any) -> Known:
        ranks = self.ranks(size, known, len(total), **parameters).to(total.device)
        found = [[_bucket(row, int(r)) for r in own] for row, own in zip(total, ranks, strict=True)]
        return {f"{self.name} bucket": torch.tensor([[b for b, _ in row] for row in found]),
                f"{self.name} above": torch.tensor([[a for _, a in row] for row in found])}  # fmt: skip

    def _low(self, base: Tensor, tuned: Tensor, weights: Tensor, known: Known, **parameters: Any) -> Tensor:
        bits = self._bits(base, tuned, weights, known, parameters)
        buckets = known[f"{self.name} bucket"]
        return torch.stack(
            [
                torch.stack(
                    [torch.bincount(row[(row >> 16) == b] & (_LOW - 1), minlength=_LOW) for b in own.tolist()]
                )
                for row, own in zip(bits, buckets, strict=True)
            ]
        )

    def _settle_low(self, total: Tensor, known: Known, size: int, **parameters: Any) -> Known:
        ranks = self.ranks(size, known, len(total), **parameters)
        values = torch.empty(ranks.shape, dtype=torch.float32)
        for row in range(ranks.shape[0]):
            for column in range(ranks.shape[1]):
                rank = int(ranks[row, column])
                if not 1 <= rank <= size:
                    values[row, column] = torch.inf if rank < 1 else -torch.inf
                    continue
                bucket = int(known[f"{self.name} bucket"][row, column])
                last, _ = _bucket(total[row, column], rank - int(known[f"{self.name} above"][row, column]))
                values[row, column] = float_of_bits((bucket << 16) | last)
        return {self.name: values}


Measure = Sum | Ranked


def measured(
    measures: Sequence[Measure], base: Tensor, tuned: Tensor, weights: Tensor, **parameters: Any
) -> dict[str, Tensor]:
    """Everything that the measures tell of a tensor that is there as a whole."""
    known: dict[str, Tensor] = {}
    for measure in measures:
        known |= measure.whole(base, tuned, weights, known, **parameters)
    return known


def ordered_bits(values: Float[Tensor, "*S"]) -> Int[Tensor, "*S"]:
    """The bits of float32 values as whole numbers below 2³² that order like the values; NaN comes last.

    >>> bits = ordered_bits(torch.tensor([-1.0, -0.5, 0.0, 2.0]))
    >>> bool((bits.diff() > 0).all())
    True
    """
    raw = values.detach().to(torch.float32).contiguous().view(torch.int32).to(torch.int64)
    # A negative number's bits order backwards; −0 equals 0.
    raw = torch.where(raw == -(1 << 31), torch.zeros_like(raw), raw)
    ordered = torch.where(raw < 0, (1 << 31) - 1 - (raw & 0x7FFFFFFF), raw + (1 << 31))
    # A NaN may have the sign bit set (on x86 ∞ − ∞ has), and would then order below −∞.
    return torch.where(values.isnan(), 0xFFC00000, ordered)


def float_of_bits(bits: int) -> float:
    """The float32 value that `ordered_bits` gives as `bits`."""
    raw = bits - (1 << 31) if bits >= 1 << 31 else ((1 << 31) - 1 - bits) - (1 << 31)
    return float(torch.tensor(raw, dtype=torch.int32).view(torch.float32))


def _bucket(counts: Num[Tensor, "B"], rank: int) -> tuple[int, int]:
    """The bucket that holds the `rank`-th largest entry, and how many entries lie in buckets above it."""
    at_least = counts.flip(0).cumsum(0).flip(0)
    holding = (at_least >= max(1, rank)).nonzero()
    if len(holding) == 0:
        return 0, 0
    bucket = int(holding.max())
    return bucket, int(at_least[bucket] - counts[bucket])


def _largest(values: Float[Tensor, "n"], ranks: Int[Tensor, "R"]) -> Float[Tensor, "R"]:
    size = len(values)
    found = [
        torch.kthvalue(values, size - rank + 1).values
        if 1 <= rank <= size
        else values.new_tensor(torch.inf if rank < 1 else -torch.inf)
        for rank in ranks.tolist()
    ]
    return torch.stack(found)


def gram(
    base: Float[Tensor, "*S"],
    tuned: Float[Tensor, "N *S"],
    weights: Float[Tensor, "N"],  # noqa: ARG001
    known: Known,  # noqa: ARG001
    *,
    about: str = "base",
    **_: Any,
) -> Float[Tensor, "N N"]:
    """Dot products of all sources in float64: of θ_i (`about` the origin) or of τ_i (about the base)."""
    rows = (tuned - base if about == "base" else tuned).reshape(len(tuned), -1).double()
    return torch.stack([torch.stack([(one * other).sum() for other in rows]) for one in rows])


GRAM = Sum(gram, lambda total, *_, **__: {"gram": total})
"""Dot products of the sources, (N, N) float64, known as `gram`."""
