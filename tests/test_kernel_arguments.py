"""The compiled kernels refuse arguments that do not fit together; nothing outside a buffer is touched."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from langmerge.kernels import DTYPE_CODES, OPERATIONS

compiled = pytest.importorskip("langmerge.kernels._compiled")

Array = np.ndarray[Any, Any]

F32 = DTYPE_CODES["F32"]
FOUR = np.zeros(4, np.float32)
GOOD: dict[str, list[Any]] = {
    "merge": [
        4, ((FOUR, 0, F32), (FOUR, 0, F32)), (FOUR, 0, F32), OPERATIONS["dare_ties"], True, 0, True,
        np.ones(2, np.float32), np.ones(2, np.float32), np.zeros((2, 2), np.uint64), 0, 1.0,
        (np.zeros(4, np.float32), 0, F32), np.zeros(3), None, None,
    ],
    "gram": [4, ((FOUR, 0, F32), (FOUR, 0, F32)), (FOUR, 0, F32), np.zeros((2, 2))],
    "dots": [
        4, ((FOUR, 0, F32), (FOUR, 0, F32)), (FOUR, 0, F32), np.zeros(4, np.float32), np.ones(2, np.float32),
        np.zeros(2),
    ],
    "count": [
        4, ((FOUR, 0, F32), (FOUR, 0, F32)), (FOUR, 0, F32), np.zeros(2, np.uint32), 8, 1, np.zeros((2, 5), np.int64),
    ],
    "select": [
        4, ((FOUR, 0, F32), (FOUR, 0, F32)), (FOUR, 0, F32), np.array([1, 4]), np.zeros(4, np.uint32),
        np.zeros(2, np.float32),
    ],
}  # fmt: skip
BAD_INPUTS: list[Any] = [
    (FOUR[:3], 0, F32),
    (FOUR, 1, F32),
    (FOUR, 17, F32),
    (FOUR, -1, F32),
    (FOUR, -(2**63), F32),
    (FOUR, 2**63 - 1, F32),
    (FOUR, 2**64, F32),
    (FOUR, 0, DTYPE_CODES["F64"]),
    (FOUR, 0, 6),
    (FOUR, 0, -1),
    (FOUR, 0),
    (FOUR, 0, F32, 0),
    (None, 0, F32),
    ("text", 0, F32),
    [FOUR, 0, F32],
    None,
    7,
]
REFUSED = (ValueError, TypeError, OverflowError, BufferError, SystemError)


def refused(name: str, place: int, value: Any) -> None:
    arguments = list(GOOD[name])
    arguments[place] = value
    with pytest.raises(REFUSED):
        getattr(compiled, name)(*arguments)


@pytest.mark.parametrize("name", GOOD)
def test_good_arguments_are_taken(name: str) -> None:
    assert getattr(compiled, name)(*GOOD[name]) is True


@pytest.mark.parametrize("name", GOOD)
def test_inputs_that_do_not_hold_the_entries_are_refused(name: str) -> None:
    for bad in BAD_INPUTS:
        refused(name, 1, ((FOUR, 0, F32), bad))
        if bad is not None:
            refused(name, 2, bad)
    for sources in ((), [(FOUR, 0, F32)], None, ((FOUR, 0, F32),) * 4097):
        refused(name, 1, sources)
    for entries in (-1, 5, 2**31, 2**64, "4", None):
        refused(name, 0, entries)


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("merge", 2, None),
        ("merge", 3, 4),
        ("merge", 3, -1),
        ("merge", 4, False),
        ("merge", 5, 3),
        ("merge", 5, -1),
        ("dots", 2, None),
        ("dots", 3, np.zeros(3, np.float32)),
        ("dots", 3, None),
        ("dots", 4, np.ones(1, np.float32)),
        ("dots", 5, np.zeros(1)),
        ("dots", 5, bytes(16)),
        ("merge", 7, np.ones(1, np.float32)),
        ("merge", 7, None),
        ("merge", 8, np.ones(1, np.float32)),
        ("merge", 8, None),
        ("merge", 9, np.zeros((2, 1), np.uint64)),
        ("merge", 9, None),
        ("merge", 10, 2**64),
        ("merge", 11, "1"),
        ("merge", 12, (np.zeros(3, np.float32), 0, F32)),
        ("merge", 12, (read_only(FOUR), 0, F32)),
        ("merge", 12, (bytes(16), 0, F32)),
        ("merge", 12, (np.zeros(4, np.float32), 1, F32)),
        ("merge", 13, np.zeros(2)),
        ("merge", 13, bytes(24)),
        ("merge", 13, None),
        ("gram", 3, np.zeros(3)),
        ("gram", 3, bytes(32)),
        ("gram", 3, None),
        ("count", 3, np.zeros(1, np.uint32)),
        ("count", 5, -1),
        ("count", 5, 32),
        ("count", 6, np.zeros((2, 4), np.int64)),
        ("count", 6, bytes(80)),
        ("select", 3, np.array([0, 1])),
        ("select", 3, np.array([1, 5])),
        ("select", 3, np.array([1, -1])),
        ("select", 3, np.array([1])),
        ("select", 4, np.zeros(3, np.uint32)),
        ("select", 4, bytes(16)),
        ("select", 5, np.zeros(1, np.float32)),
    ],
)
def test_what_is_too_short_or_out_of_range_is_refused(name: str, place: int, value: Any) -> None:
    refused(name, place, value)


@pytest.mark.parametrize("name", GOOD)
def test_too_few_arguments_are_refused(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(compiled, name)(*GOOD[name][:-1])


def test_a_span_that_ends_within_a_bucket_writes_nothing_behind_the_counts() -> None:
    """Three numbers in buckets of two need two of them."""
    space = np.zeros(8, np.int64)
    source = np.arange(4, dtype=np.uint32).view(np.float32)
    arguments = (4, ((source, 0, F32),), None, np.zeros(1, np.uint32), 3, 1, space[:2])
    try:
        compiled.count(*arguments)
    except ValueError:
        return
    assert not space[2:].any()


OVERFLOWING = """
import numpy as np
from langmerge.kernels import _compiled as k
four, n = np.zeros(4, np.float64), np.zeros
for entries in (2**60, 2**61, 2**62, 2**63 - 1):
    for code in range(6):
        one = (four, 0, code)
        for name, rest in {
            "merge": (3, True, False, True, n(1), n(1), n((1, 2), np.uint64), 0, 1.0, one, n(2), None, None),
            "gram": (n((1, 1)),),
            "count": (n(1, np.uint32), 8, 1, n((1, 5), np.int64)),
            "select": (np.ones(1, np.int64), n(4, np.uint32), n(1, np.float32)),
        }.items():
            print(name, entries, code, flush=True)
            try:
                getattr(k, name)(entries, (one,), one, *rest)
            except ValueError:
                continue
            raise SystemExit("it was taken")
"""


def test_numbers_of_entries_whose_bytes_overflow_are_refused() -> None:
    """In a process of its own: where they are not refused, it crashes, and the last line says at what."""
    command = [sys.executable, "-c", OVERFLOWING]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, (ran.returncode, ran.stdout.splitlines()[-1:], ran.stderr)


@pytest.mark.parametrize(
    ("entries", "base", "hashed", "digests"),
    [
        (60, True, b"\1\0", np.zeros((2, 16), np.uint8)),
        (60, True, b"\0\1", np.zeros((2, 16), np.uint8)),
        (61, False, b"\0\1", np.zeros((2, 16), np.uint8)),
        (61, True, b"\1", np.zeros((2, 16), np.uint8)),
        (61, True, b"\1\1", np.zeros(31, np.uint8)),
        (61, True, b"\1\1", bytes(32)),
        (61, True, b"\1\1", None),
        (61, True, 1, np.zeros((2, 16), np.uint8)),
    ],
)
def test_hashes_that_cannot_be_taken_are_refused(entries: int, base: bool, hashed: Any, digests: Any) -> None:
    given = (np.zeros(entries, np.float32), 0, F32)
    arguments = (
        entries, (given,), given if base else None, OPERATIONS["combine"], False, False, False,
        np.ones(1, np.float32), None, None, 0, 1.0, None, np.zeros(2),
    )  # fmt: skip
    with pytest.raises(REFUSED):
        compiled.merge(*arguments, hashed, digests)
    assert compiled.merge(*arguments, b"\0\0", np.zeros((2, 16), np.uint8))
