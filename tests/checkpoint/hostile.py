"""Files that are no checkpoint, or only nearly: built by bytes, mutated at random."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of an entry, written down once more: the reader's own table is under test."""


def entry(shape: Sequence[Any], start: Any, stop: Any, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    """The description of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop], **more}


def weights(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file: its header as JSON (or as the given bytes), and what stands behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def model(folder: Path, content: bytes) -> Path:
    """A folder with this as its weight file."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


def sparse(file: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> Path:
    """A weight file of zeros that takes no place on the disk; tensors are (dtype, shape)."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTHS[dtype]
        for axis in shape:
            size *= axis
        header[name] = entry(shape, offset, offset + size, dtype)
        offset += size
    content = weights(header)
    with file.open("wb") as handle:
        handle.write(content)
        handle.truncate(len(content) + offset)
    return file


@st.composite
def valid_files(draw: st.DrawFn) -> bytes:
    """Files that keep every rule."""
    names = st.text(st.characters(categories=("L", "N", "P")), max_size=6) | st.sampled_from(
        ["a.weight", "b.bias"]
    )
    shapes = st.lists(st.integers(0, 4), max_size=3)
    header: dict[str, Any] = {}
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    offset = 0
    for name in draw(st.lists(names.filter(lambda one: one != "__metadata__"), max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(WIDTHS))), draw(shapes)
        size = WIDTHS[dtype]
        for axis in shape:
            size *= axis
        header[name] = entry(shape, offset, offset + size, dtype)
        offset += size
    if draw(st.booleans()):
        header = dict(reversed(header.items()))
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    text += b" " * draw(st.integers(0, 9))
    return weights(text, bytes(index % 251 for index in range(offset)))


TOKENS = (
    b"-1", b"-0", b"0", b"1", b"1.0", b"1e1", b"01", b"NaN", b"Infinity", b"true", b"null", b'""', b'"F32"', b'"F4"',
    b'"\\ud800"', b'"\\u0000"', b'"\\uD83D\\uDE00"', b"[]", b"{}", b"[[", b"{", b"}", b"]", b",", b":", b'"', b" ", b"\n",
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"a.weight":', b'"__metadata__":', b'"__metadata__":null,',
    b'"__metadata__":[],', b'"dtype":"F32",', b'"shape":[],', b'"x":0,', b"18446744073709551615", b"18446744073709551616",
    b"9223372036854775808", b"9" * 5000, b"[" * 3000,
)  # fmt: skip
"""What is put into a header, or in the place of something else."""


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """Valid files with a few changes: most break a rule, some keep them all."""
    content = bytearray(draw(valid_files()))
    for _ in range(draw(st.integers(1, 3))):
        end = min(len(content), 8 + int.from_bytes(content[:8], "little"))
        kind = draw(st.sampled_from(["bit", "splice", "number", "length", "cut", "grow", "noise"]))
        place = draw(st.integers(0, max(0, end - 1)))
        if kind == "bit" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind in ("splice", "number"):
            _spliced(draw, content, place, end, in_number=kind == "number")
        elif kind == "length":
            length = draw(st.integers(0, len(content) + 2) | st.integers(0, 2**64 - 1))
            content[:8] = struct.pack("<Q", length)
        elif kind == "cut":
            del content[draw(st.integers(0, len(content))) :]
        elif kind == "grow":
            content += draw(st.binary(max_size=9))
        elif kind == "noise":
            content[place : place + 8] = draw(st.binary(max_size=16))
    return bytes(content)


def _spliced(draw: st.DrawFn, content: bytearray, place: int, end: int, *, in_number: bool) -> None:
    """Put a token into the header in the place of a few bytes, and let the length agree (mostly)."""
    digits = [i for i in range(8, end) if 48 <= content[i] < 58]
    first = draw(st.sampled_from(digits)) if in_number and digits else max(8, place)
    token = draw(st.sampled_from(TOKENS))
    last = first + (1 if in_number else draw(st.integers(0, 4)))
    before = len(content)
    content[first:last] = token
    if len(content) >= 8 and draw(st.integers(0, 9)):
        length = int.from_bytes(content[:8], "little") + len(content) - before
        content[:8] = struct.pack("<Q", max(0, length) % 2**64)
