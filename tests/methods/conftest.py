"""Small experts, and what the methods share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langmerge.methods import METHODS

NAMES = sorted(METHODS)
# Parameters with which a method neither trims nor drops.
WHOLE: dict[str, dict[str, Any]] = {"ties": {"density": 1.0}, "dare_ties": {"density": 1.0}}


class Experts(NamedTuple):
    """The three tensors that every method takes."""

    base: Tensor
    tuned: Tensor
    weights: Tensor


def experts(
    shape: Sequence[int] = (3, 4), n: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Experts:
    """A random base, experts around it, and unequal weights that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(tuple(shape), generator=generator, dtype=dtype)
    tuned = base + torch.randn((n, *shape), generator=generator, dtype=dtype)
    weights = torch.rand(n, generator=generator, dtype=dtype) + 0.5
    return Experts(base, tuned, weights / weights.sum())


def float64(*values: Any) -> Tensor:
    """A tensor of what is written out in an example."""
    return torch.tensor(values, dtype=torch.float64)
