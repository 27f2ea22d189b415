"""The compiled kernels by themselves: numbers in, numbers out; wrong arguments are refused."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import InputError
from langmerge.kernels import CHOICE, DTYPE_CODES, ELECTIONS, OPERATIONS, compiled_kernels

compiled = pytest.importorskip("langmerge.kernels._compiled")

Array = np.ndarray[Any, Any]

NUMPY = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
BITS = {"F32": np.uint32, "BF16": np.uint16, "F16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8}
SETS = ("plain", "avx2", "avx512")


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The kernels in each instruction set that this machine has."""
    before = compiled.instructions()
    try:
        compiled.instructions(request.param)
    except ValueError:
        pytest.skip(f"this machine has no {request.param}")
    yield compiled
    compiled.instructions(before)


def triple(array: Array) -> tuple[Array, int, int]:
    code = next(DTYPE_CODES[name] for name, dtype in NUMPY.items() if array.dtype == dtype)
    return array.view(np.uint8), 0, code


def merged(
    sources: list[Array],
    base: Array | None = None,
    *,
    op: str = "combine",
    weights: tuple[float, ...] = (1.0,),
    bounds: Array | None = None,
    streams: Array | None = None,
    election: str = "sum",
    normalize: bool = True,
    start: int = 0,
    scale: float = 1.0,
    out: str = "F32",
    about_base: bool | None = None,
) -> tuple[bool, Array, Array]:
    """Whether all is finite, the result and the squared norms."""
    entries, n = len(sources[0]), len(sources)
    result, squares = np.zeros(entries, NUMPY[out]), np.zeros(n + 1)
    finite = compiled.merge(
        entries,
        tuple(map(triple, sources)),
        None if base is None else triple(base),
        OPERATIONS[op],
        base is not None if about_base is None else about_base,
        ELECTIONS[election],
        normalize,
        np.array(weights, np.float32),
        bounds,
        streams,
        start,
        scale,
        triple(result),
        squares,
        None,
        None,
    )
    return finite, result, squares


def same_bits(found: Array, expected: Array) -> None:
    """Equal bit for bit; any NaN is as good as another."""
    assert found.dtype == expected.dtype
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), nan)
    raw = BITS[next(name for name, dtype in NUMPY.items() if dtype == found.dtype)]
    np.testing.assert_array_equal(found[~nan].view(raw), expected[~nan].view(raw))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_every_pattern_is_read_as_torch_reads_it(kernels: ModuleType, dtype: str) -> None:
    patterns = np.arange(1 << (8 * np.dtype(BITS[dtype]).itemsize), dtype=BITS[dtype])
    _, found, _ = merged([patterns.view(NUMPY[dtype])])
    # 0 + 1 · x: the sum begins at +0.
    expected = torch.from_numpy(patterns).view(TORCH[dtype]).float() + 0.0
    same_bits(found, expected.numpy())


def around(values: Array) -> Array:
    """Numbers, the middles between neighbours, and what lies just beside both, with either sign, as float32."""
    with np.errstate(all="ignore"):
        wide = np.unique(np.abs(values.astype(np.float64)))
        wide = wide[np.isfinite(wide)]
        steps = np.append(wide, 2 * wide[-1] - wide[-2])
        points = np.concatenate([wide, (steps[:-1] + steps[1:]) / 2]).astype(np.float32)
        beside = [np.nextafter(points, np.float32(end)) for end in (0, np.inf)]
    points = np.concatenate([points, *beside])
    return np.concatenate([points, -points])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_rounding_is_torchs(kernels: ModuleType, dtype: str) -> None:
    """To nearest, ties to even: normal and subnormal numbers, zeros of both signs, what is too large."""
    patterns = np.arange(1 << (8 * np.dtype(BITS[dtype]).itemsize), dtype=BITS[dtype])
    anything = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)
    values = np.concatenate([around(patterns.view(NUMPY[dtype])), anything[np.isfinite(anything)]])
    values = np.concatenate([values, np.float32([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -0.0])])
    _, found, _ = merged([values], out=dtype)
    expected = (torch.from_numpy(values) + 0.0).to(TORCH[dtype]).view(torch.uint8).numpy().view(NUMPY[dtype])
    if dtype == "F8_E4M3":
        # There is no infinity: what torch cuts off at 448 becomes NaN here, so that the merge notices.
        expected = np.where(np.abs(values) > 464, NUMPY[dtype](np.nan), expected)
    same_bits(found, expected)


def test_doubles_are_rounded_to_nearest(kernels: ModuleType) -> None:
    draw = np.random.default_rng(1)
    floats = draw.integers(0, 0x7F800000, 20_000, np.uint32).view(np.float32).astype(np.float64)
    middles = (floats + np.nextafter(floats.astype(np.float32), np.float32(np.inf)).astype(np.float64)) / 2
    values = np.concatenate([floats, middles, np.nextafter(middles, 0), [1e300, -1e300, 1e-300, 5e-324]])
    _, found, _ = merged([values])
    with np.errstate(over="ignore"):
        same_bits(found, values.astype(np.float32) + np.float32(0))
    _, wide, _ = merged([floats], out="F64")
    np.testing.assert_array_equal(wide, floats)


def test_whatever_is_not_finite_is_noticed(kernels: ModuleType) -> None:
    """At any place of a block or its end, with any weight, with a base and without."""
    base = np.zeros(1029, np.float32)
    for place in (0, 1, 511, 1023, 1024, 1028):
        for bad in (np.nan, np.inf, -np.inf):
            source = np.ones(1029, np.float32)
            source[place] = bad
            for weight in (1.0, 0.0):
                assert not merged([source], weights=(weight,))[0]
                assert not merged([source], base, weights=(weight,))[0]
                assert not merged([source], base, weights=(weight,), about_base=False)[0]
                assert not merged([np.ones_like(source)], source, weights=(weight,))[0]
    assert merged([np.ones(1029, np.float32)])[0]
    assert merged([np.ones(1029, np.float32)], base)[0]
    assert not merged([np.full(3, 3e38, np.float32)], base[:3], weights=(2.0,))[0]


def operations(entries: int) -> dict[str, tuple[Array, ...]]:
    """What every kernel gives for random numbers of mixed dtypes."""
    draw = np.random.default_rng(entries)
    base = draw.standard_normal(entries).astype(np.float32)
    dtypes = ("F32", "BF16", "F16", "F64", "F8_E4M3", "F8_E5M2")
    sources = [(base + 0.1 * draw.standard_normal(entries)).astype(NUMPY[dtype]) for dtype in dtypes]
    weights = (0.3, 0.2, 0.1, 0.25, 0.05, 0.1)
    bounds = np.full(6, 0.08, np.float32)
    shares = np.full(6, 0.4, np.float32)
    streams = draw.integers(0, 1 << 63, (6, 2), np.uint64)
    streams[:, 1] = round(0.4 * 2**32)
    given: dict[str, dict[str, Any]] = {
        "linear": {"about_base": False},
        "task": {"scale": 0.7},
        "ties": {"op": "ties", "bounds": bounds, "scale": 1.3},
        "count": {"op": "ties", "bounds": bounds, "election": "count"},
        "unweighted": {"op": "ties", "bounds": bounds, "election": "unweighted"},
        "sum": {"op": "ties", "bounds": bounds, "normalize": False},
        "dare": {"op": "dare_linear", "bounds": shares, "streams": streams, "start": 7},
        "dare_ties": {"op": "dare_ties", "bounds": shares, "streams": streams, "start": 8},
    }
    found = {
        f"{name} {out}": merged(sources, base, weights=weights, out=out, **one)[1:]
        for name, one in given.items()
        for out in (NUMPY if name == "linear" else ["F32"])
    }
    found["no base"] = merged(sources, weights=weights)[1:2]
    inputs = tuple(map(triple, sources))
    dots, around_base = np.empty((6, 6)), np.empty((6, 6))
    compiled.gram(entries, inputs, None, dots)
    compiled.gram(entries, inputs, triple(base), around_base)
    gradient = draw.standard_normal(entries).astype(np.float32)
    products, agreeing = np.empty(6), np.empty(6)
    compiled.dots(entries, inputs, triple(base), gradient, None, products)
    compiled.dots(entries, inputs, triple(base), gradient, bounds, agreeing)
    counts = np.zeros((6, 1 + 2048), np.int64)
    compiled.count(entries, inputs, triple(base), np.full(6, 0x3C000000, np.uint32), 1 << 26, 15, counts)
    ranks = np.arange(1, 7, dtype=np.int64) * max(1, entries // 7)
    limits = np.empty(6, np.float32)
    if entries:
        compiled.select(entries, inputs, triple(base), ranks, np.empty(entries, np.uint32), limits)
    return {
        **found,
        "gram": (dots, around_base),
        "dots": (products, agreeing),
        "count": (counts,),
        "select": (limits if entries else dots,),
    }


@pytest.mark.parametrize("entries", [7, 15, 1024, 5003])
def test_every_instruction_set_gives_the_same_bytes(kernels: ModuleType, entries: int) -> None:
    found, used = operations(entries), compiled.instructions()
    compiled.instructions("plain")
    expected = operations(entries)
    compiled.instructions(used)
    for name, arrays in expected.items():
        for one, other in zip(found[name], arrays, strict=True):
            assert one.tobytes() == other.tobytes(), name


def test_an_instruction_set_that_does_not_exist() -> None:
    before = compiled.instructions()
    with pytest.raises(ValueError, match="no instruction set sse9"):
        compiled.instructions("sse9")
    assert compiled.instructions() == before


def test_dot_products_and_norms(kernels: ModuleType) -> None:
    draw = np.random.default_rng(3)
    base, one, other = draw.standard_normal((3, 3001)).astype(np.float32)
    found = np.empty((2, 2))
    compiled.gram(3001, (triple(one), triple(other)), triple(base), found)
    deltas = np.stack([one - base, other - base]).astype(np.float64)
    np.testing.assert_allclose(found, deltas @ deltas.T, rtol=1e-12)
    compiled.gram(3001, (triple(one), triple(other)), None, found)
    whole = np.stack([one, other]).astype(np.float64)
    np.testing.assert_allclose(found, whole @ whole.T, rtol=1e-12)
    _, result, squares = merged([one, other], base, weights=(0.5, 0.5))
    expected = [*(deltas**2).sum(1), ((result - base).astype(np.float64) ** 2).sum()]
    np.testing.assert_allclose(squares, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_of_tiny_and_huge_numbers(kernels: ModuleType, size: float) -> None:
    """Their squares leave the range of float32."""
    delta = np.full(1500, size, np.float32)
    finite, _, squares = merged([delta], np.zeros_like(delta))
    assert finite
    np.testing.assert_allclose(squares, 1500 * np.float64(np.float32(size)) ** 2, rtol=1e-6)


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -3e-39, 3e38, 1.5, -2.0]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)


@settings(deadline=None, max_examples=150)
@given(st.lists(NUMBERS, min_size=1, max_size=60), st.data())
def test_a_selected_magnitude_is_that_of_the_sorted_list(values: list[float], data: st.DataObject) -> None:
    source = np.array(values, np.float32)
    rank = data.draw(st.integers(1, len(values)))
    found, space = np.empty(1, np.float32), np.empty(len(values), np.uint32)
    compiled.select(len(values), (triple(source),), None, np.array([rank]), space, found)
    expected = np.sort(np.abs(source))[::-1][rank - 1]
    assert found.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=100)
@given(st.lists(NUMBERS, max_size=60), st.integers(0, 2**31 - 1), st.integers(0, 12), st.integers(1, 40))
def test_counts_are_those_of_a_histogram(values: list[float], low: int, shift: int, buckets: int) -> None:
    source = np.array(values, np.float32)
    span = buckets << shift
    found = np.zeros((1, 1 + buckets), np.int64)
    for _ in range(2):
        compiled.count(len(values), (triple(source),), None, np.array([low], np.uint32), span, shift, found)
    places = np.abs(source).view(np.uint32).astype(np.int64) - low
    inside = places[(places >= 0) & (places < span)] >> shift
    expected = [int((places >= span).sum()), *np.bincount(inside, minlength=buckets)]
    assert found.tolist() == [[2 * number for number in expected]], "added to what is there"


def test_which_kernels_are_used_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    assert compiled_kernels() is compiled
    monkeypatch.setenv(CHOICE, "compiled")
    assert compiled_kernels() is compiled
    monkeypatch.setenv(CHOICE, "torch")
    assert compiled_kernels() is None
    monkeypatch.setenv(CHOICE, "fast")
    with pytest.raises(InputError, match="LANGMERGE_KERNELS is 'fast': it must be 'compiled' or 'torch'"):
        compiled_kernels()


def test_missing_kernels_are_an_error_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import langmerge.kernels as package

    monkeypatch.delattr(package, "_compiled")
    monkeypatch.setitem(sys.modules, "langmerge.kernels._compiled", None)
    monkeypatch.delenv(CHOICE, raising=False)
    assert compiled_kernels() is None
    monkeypatch.setenv(CHOICE, "compiled")
    with pytest.raises(InputError, match="no compiled kernels: install a C compiler"):
        compiled_kernels()


@pytest.mark.parametrize("bounded", [False, True])
def test_dots_are_those_of_the_task_vectors_that_agree(kernels: ModuleType, bounded: bool) -> None:
    """By hand: 0.5 is trimmed, and where the sum of what is left is positive the negative entry goes."""
    base = np.ones(4, np.float32)
    first, second = base + np.float32([2, -1, 0.5, 3]), base + np.float32([-1, -2, 4, -3])
    g, out = np.float32([1, 10, 100, 1000]), np.empty(2)
    bounds = np.float32([1, 1]) if bounded else None
    assert compiled.dots(4, (triple(first), triple(second)), triple(base), g, bounds, out)
    # Entry 3: a cancelled vote, nothing agrees.
    assert out.tolist() == ([2 - 10, -20 + 400] if bounded else [2 - 10 + 50 + 3000, -1 - 20 + 400 - 3000])


@pytest.mark.parametrize("entries", [61, 121, 255, 256, 257, 1000, 1024, 1025, 4096, 65537])
def test_inputs_are_hashed_as_xxhash_hashes_them(kernels: ModuleType, entries: int) -> None:
    draw = np.random.default_rng(entries)
    base = draw.standard_normal(entries).astype(np.float32)
    halves, doubles = base.astype(np.float16), base.astype(np.float64)
    asked = b"\0\1\1" if entries < 121 else b"\1\1\1"
    digests, squares = np.zeros((3, 16), np.uint8), np.zeros(3)
    finite = compiled.merge(
        entries, (triple(halves), triple(doubles)), triple(base), 0, True, False, False,
        np.ones(2, np.float32), None, None, 0, 1.0, None, squares, asked, digests,
    )  # fmt: skip
    assert finite
    expected = [xxhash.xxh3_128_digest(one.tobytes()) for one in (halves, doubles, base)]
    assert [one.tobytes() for one in digests] == [
        digest if wanted else bytes(16) for digest, wanted in zip(expected, asked, strict=True)
    ]
