"""Random numbers by counter: each is a function of (seed, key, position), whatever is drawn before or beside it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langmerge.methods.streams import keep_below, source_keys, stream_key

__all__ = ["drop_mask", "keep_below", "random_words", "source_keys", "stream_key"]

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def random_words(stream: int, start: int, count: int) -> Int[Tensor, "count"]:
    """Whole numbers in [0, 2³²) for the positions from `start` on.

    Position i takes one half of SplitMix64's output number i // 2, the low half where i is even.

    Args:
        stream: from `stream_key`.
        start: first position.
        count: how many.
    """
    position = torch.arange(start, start + count, dtype=torch.int64)
    z = _signed(stream) + ((position >> 1) + 1) * _signed(_GAMMA)
    z = (z ^ _shifted(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX_2)
    z = z ^ _shifted(z, 31)
    return torch.where((position & 1) == 1, _shifted(z, 32), z & 0xFFFFFFFF)


def drop_mask(
    shape: Sequence[int], density: float, *, seed: int, key: str, offset: int = 0
) -> Float[Tensor, "*S"]:
    """Ones with probability `density`, else zeros, float32; decided by (seed, key, position) alone.

    Args:
        shape: of the tensor, or of the part of it that begins at `offset`.
        density: probability of keeping an entry, in (0, 1]; used as the nearest multiple of 2⁻³².
        seed: the run's seed.
        key: what the mask is for (tensor and source).
        offset: position of the first entry in the flattened tensor.
    """
    words = random_words(stream_key(seed, key), offset, torch.Size(shape).numel())
    return (words < keep_below(density)).to(torch.float32).reshape(tuple(shape))


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's is arithmetic."""
    return (z >> by) & ((1 << (64 - by)) - 1)
