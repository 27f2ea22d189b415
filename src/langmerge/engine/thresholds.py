"""Trim thresholds over a whole model, found exactly without sorting or holding it."""

import torch
from torch import Tensor

from langmerge.engine.plan import Plan, TensorPlan

_HIGH, _LOW = 1 << 16, 1 << 15


def model_thresholds(plan: Plan) -> dict[str, float]:
    """For every source, the smallest magnitude among its largest `density` share of all merged entries.

    The bits of a float32 magnitude order like the magnitude: one pass counts the high 16 of its 31 bits, a second the
    low 15 within the bucket that holds the threshold. Exact, in memory of one tensor and one histogram.
    """
    density = float(plan.parameters["density"])
    tensors = [tensor for tensor in plan.written if tensor.treatment == "merged"]
    found = {}
    for source in plan.sources:
        high = torch.zeros(_HIGH, dtype=torch.int64)
        for tensor in tensors:
            high += torch.bincount(_magnitude_bits(plan, tensor, source) >> 15, minlength=_HIGH)
        rank = max(1, round(density * int(high.sum())))
        bucket, above = _bucket(high, rank)
        low = torch.zeros(_LOW, dtype=torch.int64)
        for tensor in tensors:
            bits = _magnitude_bits(plan, tensor, source)
            low += torch.bincount(bits[(bits >> 15) == bucket] & (_LOW - 1), minlength=_LOW)
        last, _ = _bucket(low, rank - above)
        found[source] = float(torch.tensor((bucket << 15) | last, dtype=torch.int32).view(torch.float32))
    return found


def _magnitude_bits(plan: Plan, tensor: TensorPlan, source: str) -> Tensor:
    tuned = plan.source_rows(tensor, source)
    delta = (tuned - plan.base.read_finite(tensor.base_name or tensor.name)).abs().flatten()
    return delta.view(torch.int32)


def _bucket(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bucket that holds the `rank`-th largest entry, and how many entries lie in buckets above it."""
    at_least = counts.flip(0).cumsum(0).flip(0)
    bucket = int((at_least >= rank).nonzero().max())
    return bucket, int(at_least[bucket] - counts[bucket])
