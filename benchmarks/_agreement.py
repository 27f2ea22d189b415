"""Whether two outputs of one merge agree: read without langmerge, because its reading is under test too."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COMPARED = 1 << 20
"""Entries that are compared at once."""

STEPS = {"F32": 2.0**-23, "BF16": 2.0**-7}
"""Distance of two neighbours of a stored dtype, over the larger one."""

ASTRAY = {"F32": 1e-5, "BF16": 1e-3}
"""Share of the entries that may differ by more than two steps: what ties with a trim threshold in float32."""

ASTRAY_TRIMMED = {"F32": 1e-5, "BF16": 0.05}
"""The same for ties: mergekit rounds deltas to bfloat16, so that many tie with the threshold and it keeps some of them."""

NORMS = 0.02
"""How far the norm ratio may be from 1."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Agreement:
    """How close two outputs are.

    Attributes:
        dtype: stored dtype, of both where it is the same.
        tensors: number of tensors; every one is in both, in one shape.
        largest: largest difference of two entries.
        steps: the largest difference in steps of the stored dtype at the largest entry of its tensor.
        astray: share of the entries that differ by more than two steps.
        norm_ratio: ‖output − base‖, the first output's over the second's.
    """

    dtype: str
    tensors: int
    largest: float
    steps: float
    astray: float
    norm_ratio: float

    def holds(self, method: str) -> bool:
        """Whether the two did the same; of a random method only the norm can say so."""
        limits = ASTRAY_TRIMMED if method == "ties" else ASTRAY
        close = method == "dare_ties" or self.astray <= limits.get(self.dtype, 0.0)
        return self.dtype in STEPS and close and abs(self.norm_ratio - 1) <= NORMS


class Weights:
    """The tensors of a model folder, as float32.

    Args:
        folder: holds safetensors files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            self._found |= {name: (file, 8 + length, entry) for name, entry in header.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name."""
        return {name: tuple(entry["shape"]) for name, (_, _, entry) in self._found.items()}

    @property
    def dtypes(self) -> set[str]:
        """Stored dtypes of all tensors."""
        return {entry["dtype"] for _, _, entry in self._found.values()}

    def blocks(self, name: str) -> Iterator[Floats]:
        """The entries of a tensor, flat, some at a time."""
        file, start, entry = self._found[name]
        wide = entry["dtype"] == "F32"
        place, entries = start + entry["data_offsets"][0], math.prod(entry["shape"])
        flat = np.memmap(file, "<f4" if wide else "<u2", "r", place, (entries,))
        for first in range(0, entries, COMPARED):
            block = flat[first : first + COMPARED]
            yield np.asarray(block) if wide else (block.astype(np.uint32) << 16).view(np.float32)


def compared(ours: Path, theirs: Path, base: Path) -> Agreement:
    """Compare two outputs entry by entry.

    Raises:
        ValueError: they do not hold the same tensors.
    """
    first, second, origin = Weights(ours), Weights(theirs), Weights(base)
    _check_layout(first, second)
    dtype = "/".join(sorted(first.dtypes | second.dtypes))
    step = STEPS.get(dtype, 0.0)
    largest = steps = 0.0
    squares, astray, entries = np.zeros(2), 0, 0
    for name, shape in first.shapes.items():
        scale = max(float(np.abs(block).max()) for block in second.blocks(name))
        for one, two, zero in zip(*(found.blocks(name) for found in (first, second, origin)), strict=True):
            difference = np.abs(one - two)
            largest = max(largest, float(difference.max()))
            steps = max(steps, float(difference.max()) / (step * scale or 1.0))
            # Not `>`: NaN is astray too.
            astray += int((~(difference <= 2 * step * scale)).sum())
            squares += [_squared(one - zero), _squared(two - zero)]
        entries += math.prod(shape)
    ratio = float(np.sqrt(squares[0] / squares[1]))
    return Agreement(dtype, len(first.shapes), largest, steps, astray / entries, ratio)


def _squared(block: Floats) -> float:
    return float(np.square(block, dtype=np.float64).sum())


def _check_layout(first: Weights, second: Weights) -> None:
    one, two = first.shapes, second.shapes
    if wrong := sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)):
        raise ValueError(
            f"{first.folder} and {second.folder} differ in {len(wrong)} tensors: {wrong[0]!r} is "
            f"{one.get(wrong[0], 'absent')} and {two.get(wrong[0], 'absent')}"
        )
