"""Hostile weight files: refused in one line, and never read beyond their end."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langmerge.checkpoint import open_checkpoint, read_header
from langmerge.checkpoint.header import MAX_HEADER
from langmerge.errors import CheckpointError
from tests.checkpoint.hostile import TOKENS, WIDTHS, broken_files, entry, model, sparse, valid_files, weights

FINE = {"x": entry([2], 0, 8), "y": entry([], 8, 12)}

# What the safetensors library takes and we do not, each for a reason that read_header's docstring gives.
STRICTER = re.compile(
    r"is described by .*, not by dtype|has a name of|comes twice|has the shape|not supported|stands where only whole"
)


def refusal(tmp_path: Path, content: bytes) -> str:
    """What is said of a weight file, when it is one line that names the file."""
    folder = model(tmp_path / "model", content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    said = str(caught.value)
    assert str(folder / "model.safetensors") in said
    assert said.isprintable()
    assert len(said) < 500
    return said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header would take 0 bytes, the file has 0"),
        (b"\x02\0\0", "its header would take 2 bytes, the file has 3"),
        (weights(FINE, bytes(12), length=1 << 63), "its header would take 9223372036854775808 bytes"),
        (weights(FINE, bytes(12), length=300), "its header would take 300 bytes"),
        (weights(b""), "not the JSON of one"),
        (weights(b"[]"), "its header is no JSON object"),
        (weights(b"null"), "its header is no JSON object"),
        (weights(b"[" * 100_000), "recursion"),
        (weights(b'{"x":' * 100_000), "recursion"),
        (weights("{}".encode("utf-16")), "not the JSON of one"),
        (weights(b'{"\xed\xa0\x80": 1}'), "not the JSON of one"),
        (weights(b'{"x": 1, "x": 1}'), "'x' comes twice"),
        (weights(b"{" + b",".join(b'"%d":0' % i for i in range(99_999)) + b',"7":0}'), "'7' comes twice"),
        (weights({"x": 1}), "tensor 'x' is described by 1"),
        (weights({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "not by dtype, shape and data_offsets"),
        (weights({"x": entry([2], 0, 8, more=1)}, bytes(8)), "not by dtype, shape and data_offsets"),
        (weights({"x": entry([2], 0, 8, [])}, bytes(8)), r"has dtype \[\], not supported"),
        (weights({"x": entry([2], 0, 8, None)}, bytes(8)), "has dtype None, not supported"),
        (weights({"x": entry([2], 0, 8, "C64")}, bytes(8)), "has dtype 'C64', not supported"),
        (weights({"x": entry([-2, -1], 0, 8)}, bytes(8)), "-2 stands where only whole numbers can"),
        (weights({"x": entry([2.0], 0, 8)}, bytes(8)), "2.0 stands where only whole numbers can"),
        (weights({"x": entry([True], 0, 4)}, bytes(4)), r"has the shape \[True\]"),
        (weights({"x": entry(["2"], 0, 8)}, bytes(8)), r"has the shape \['2'\]"),
        (weights({"x": entry([[2]], 0, 8)}, bytes(8)), r"has the shape \[\[2\]\]"),
        (weights({"x": entry([1] * 65, 0, 4)}, bytes(4)), "has the shape"),
        (weights({"x": entry([2], float("nan"), 8)}, bytes(8)), "NaN stands where"),
        (weights({"x": entry([2], True, 9)}, bytes(9)), r"has the data_offsets \[True, 9\]"),
        (weights({"x": entry([2], -8, 0)}, bytes(8)), "-8 stands where"),
        (weights({"x": {**entry([2], 0, 8), "data_offsets": [0, 4, 8]}}, bytes(8)), "has the data_offsets"),
        (weights({"x": {**entry([2], 0, 8), "shape": {}}}, bytes(8)), "has the shape {}"),
        (weights({"x": entry([2], 0, 8)}, bytes(7)), "lies at 0 to 8 of 7 bytes"),
        (weights({"x": entry([2], 8, 0)}, bytes(8)), "lies at 8 to 0"),
        (weights({"x": entry([2], 0, 1 << 62)}, bytes(8)), f"lies at 0 to {1 << 62}"),
        (weights({"x": entry([2], 0, 10**19)}, bytes(8)), "stands where"),
        (weights(b'{"x":' + b"9" * 5000 + b"}"), "stands where"),
        (weights({"x": entry([3], 0, 8)}, bytes(8)), "has 8 bytes"),
        (weights({"x": entry([1 << 32, 1 << 32], 0, 0)}), "has the shape"),
        (weights({"x": entry([1 << 62, 4, 0], 0, 0)}), "has the shape"),
        (weights({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}, bytes(12)), "'y' overlaps another"),
        (weights({"x": entry([2], 0, 8), "y": entry([2], 0, 8)}, bytes(8)), "'y' overlaps another"),
        (weights({"x": entry([2], 0, 8), "y": entry([0], 4, 4)}, bytes(8)), "'y' overlaps another"),
        (weights({"x": entry([2], 4, 12)}, bytes(12)), "'x' leaves a hole before it"),
        (weights({"x": entry([2], 0, 8)}, bytes(9)), "1 bytes at its end belong to no tensor"),
        (weights({"x\0y": entry([2], 0, 8)}, bytes(8)), "a name of 3 characters"),
        (weights({"\x1b[31mred": entry([2], 0, 8)}, bytes(8)), "one that cannot be printed"),
        (weights({"\ud800": entry([2], 0, 8)}, bytes(8)), "one that cannot be printed"),
        (weights({"x" * 1_000_000: entry([2], 0, 8)}, bytes(8)), "a name of 1000000 characters"),
        (weights({"__metadata__": [], **FINE}, bytes(12)), "__metadata__ is no mapping"),
        (weights({"__metadata__": "pt", **FINE}, bytes(12)), "__metadata__ is no mapping"),
        (weights({"__metadata__": {"format": 1}, **FINE}, bytes(12)), "__metadata__ is no mapping"),
        (weights({"__metadata__": {"a": {"b": "c"}}, **FINE}, bytes(12)), "__metadata__ is no mapping"),
        (weights({"__metadata__": {"a": "\udc00"}, **FINE}, bytes(12)), "__metadata__ is no mapping"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    assert re.search(message, refusal(tmp_path, content))


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x"
    with file.open("wb") as handle:
        handle.write((MAX_HEADER + 1).to_bytes(8, "little"))
        handle.truncate(8 + MAX_HEADER + 1)
    with pytest.raises(CheckpointError, match=f"takes {MAX_HEADER + 1} bytes, more than"):
        read_header(file)


@pytest.mark.parametrize("metadata", [{}, {"__metadata__": None}, {"__metadata__": {"format": "pt\n"}}])
def test_what_keeps_the_rules_is_read_by_the_order_of_bytes(tmp_path: Path, metadata: dict[str, Any]) -> None:
    header = {**metadata, "z": entry([2, 0], 5, 5), "y": entry([], 1, 5), "": entry([1], 0, 1, "U8")}
    file = tmp_path / "x"
    file.write_bytes(weights(header, b"abcde"))
    found = read_header(file)
    assert [(one.name, one.shape, one.dtype, one.nbytes) for one in found.values()] == [
        ("", (1,), "U8", 1), ("y", (), "F32", 4), ("z", (2, 0), "F32", 0),
    ]  # fmt: skip
    assert {one.offset for one in found.values()} == {file.stat().st_size - left for left in (5, 4, 0)}


def test_a_place_that_suits_no_dtype_is_read_all_the_same(tmp_path: Path) -> None:
    """Old files have headers of any length."""
    for pad in range(8):
        text = b'{"x":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}' + b" " * pad
        opened = open_checkpoint(model(tmp_path / str(pad), weights(text, bytes(range(16)))))
        assert opened.array("x").tobytes() == bytes(range(16))
        assert opened.read("x").numpy().tobytes() == bytes(range(16))


def test_opening_a_huge_file_reads_its_header_only(tmp_path: Path) -> None:
    file = sparse(tmp_path / "x", {"big": ("F32", (1 << 20, 1 << 18)), "small": ("BF16", (3,))})
    found = read_header(file)
    assert found["big"].nbytes == 1 << 40
    assert found["small"].offset + 6 == file.stat().st_size


def compared(file: Path, content: bytes) -> bool:
    """Whether both libraries read a file alike; else both refuse it, or we do for a known reason."""
    # A file that is made anew: to write over one makes some file systems wait for the disk.
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    try:
        theirs = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        theirs = None
    try:
        ours = read_header(file)
    except CheckpointError as error:
        said = str(error)
        assert str(file) in said
        assert said.isprintable()
        assert theirs is None or STRICTER.search(said), said
        return False
    assert theirs is not None, "we take what the library refuses"
    assert ours.keys() == theirs.keys()
    for name, info in ours.items():
        assert info.offset + info.nbytes <= len(content)
        own = content[info.offset : info.offset + info.nbytes]
        assert (list(info.shape), info.dtype, own) == (
            theirs[name]["shape"],
            theirs[name]["dtype"],
            bytes(theirs[name]["data"]),
        )
    return True


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


FUZZ = settings(
    max_examples=150, deadline=timedelta(seconds=5), suppress_health_check=list(HealthCheck), database=None
)


@FUZZ
@given(content=valid_files())
def test_valid_files_are_read_as_the_library_reads_them(file: Path, content: bytes) -> None:
    compared(file, content)


@FUZZ
@given(content=broken_files() | st.binary(max_size=60))
def test_broken_files_are_refused_or_read_as_the_library_reads_them(file: Path, content: bytes) -> None:
    compared(file, content)


def test_every_token_of_a_header_may_be_wrong(file: Path) -> None:
    """Each in turn is replaced by each of the tokens that are known to be trouble, or has one put before it."""
    text = (
        b'{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"y":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}'
    )
    parts = re.findall(rb'"[^"]*"|\d+|.', text)
    assert compared(file, weights(text, b"123456789"))
    read = 0
    for place in range(len(parts)):
        for token in (*TOKENS, b""):
            for last in (place, place + 1):
                changed = b"".join([*parts[:place], token, *parts[last:]])
                read += compared(file, weights(changed, b"123456789"))
    # White space and other texts do no harm: had nothing been read, nothing would have been compared.
    assert read > 100


def test_the_reader_knows_every_dtype_by_its_size(tmp_path: Path) -> None:
    header, offset = {}, 0
    for dtype, width in WIDTHS.items():
        header[dtype] = entry([3], offset, offset + 3 * width, dtype)
        offset += 3 * width
    content = weights(header, bytes(offset))
    assert compared(tmp_path / "x", content)
