"""The header of a safetensors file, read with suspicion: nothing in it may point outside the file."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from langmerge.checkpoint.places import MAX_NAME, opened_plain, reason, shown
from langmerge.errors import CheckpointError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""safetensors' names of the dtypes that are read and written."""

MAX_HEADER = 100_000_000
"""Largest header in bytes, as in the safetensors library."""

MAX_RANK = 64
"""Most axes of a tensor, as in numpy."""

_KEYS = {"dtype", "shape", "data_offsets"}

Refuse = Callable[[str], CheckpointError]


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor.

    Attributes:
        name: in the file.
        shape: of the tensor.
        dtype: safetensors' name.
        file: that holds it.
        offset: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int = 0

    @property
    def is_float(self) -> bool:
        """Whether arithmetic makes sense on it."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored size."""
        return self.entries * DTYPES[self.dtype].itemsize


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Every entry is checked against the file before anything is made of it: sizes agree with shapes and dtypes, no tensor
    reaches beyond the file or into another, no byte is left over, no name comes twice.

    Conventions: stricter than the safetensors library, which lets the last of two equal names win, ignores unknown keys
    of a tensor and takes any text as a name. Here a key that is not known, a name with control characters (they would
    reach the terminal) and a name of more than `MAX_NAME` characters are errors.

    Raises:
        CheckpointError: the file cannot be read, or breaks a rule.
    """

    def refuse(why: str) -> CheckpointError:
        return CheckpointError(f"{file} cannot be read as safetensors: {why}")

    size, text = _header_text(file, refuse)
    begin = 8 + len(text)
    found = {
        name: _info(file, name, entry, begin, size - begin, refuse)
        for name, entry in _entries(text, refuse).items()
    }
    in_order = dict(sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = begin
    for info in in_order.values():
        if info.offset != end:
            kind = "overlaps another" if info.offset < end else "leaves a hole before it"
            raise refuse(f"tensor {shown(info.name)} {kind}")
        end = info.offset + info.nbytes
    if end != size:
        raise refuse(f"{size - end} bytes at its end belong to no tensor")
    return in_order


def _header_text(file: Path, refuse: Refuse) -> tuple[int, bytes]:
    """Size of the file, and the JSON in front."""
    try:
        with opened_plain(file) as handle:
            size = handle.seek(0, 2)
            handle.seek(0)
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise refuse(f"its header would take {length} bytes, the file has {size}")
            if length > MAX_HEADER:
                raise refuse(f"its header takes {length} bytes, more than {MAX_HEADER}")
            text = handle.read(length)
    except (OSError, ValueError) as error:
        raise refuse(reason(error)) from None
    if len(text) != length:
        raise refuse("it became shorter while it was read")
    return size, text


def _entries(text: bytes, refuse: Refuse) -> dict[str, Any]:
    """The descriptions of the tensors, not yet checked."""
    try:
        # As text: json guesses other encodings of bytes, and takes halves of characters.
        entries = json.loads(
            text.decode(),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        raise refuse(f"its header is not the JSON of one: {error}") from None
    if not isinstance(entries, dict):
        raise refuse("its header is no JSON object")
    if not _is_metadata(entries.pop("__metadata__", None)):
        raise refuse("its __metadata__ is no mapping from text to text")
    return entries


def _is_metadata(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not all(type(one) is str for one in value.values()):
        return False
    try:
        "".join([*value, *value.values()]).encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} comes twice")
    return found


def _whole(digits: str) -> int:
    # -0 is no whole number to the format, and what has 20 digits is more than any file holds.
    if digits.startswith("-") or len(digits) > 19:
        _no_number(digits)
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{shown(text)[1:-1]} stands where only whole numbers can")


def _info(file: Path, name: str, entry: Any, begin: int, data: int, refuse: Refuse) -> TensorInfo:
    """One tensor, its place checked against the file."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise refuse(
            f"tensor {shown(name)} has a name of {len(name)} characters or one that cannot be printed"
        )
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise refuse(
            f"tensor {shown(name)} is described by {shown(entry)}, not by dtype, shape and data_offsets"
        )
    shape, dtype, offsets = entry["shape"], entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"tensor {shown(name)} in {file} has dtype {shown(dtype)}, not supported")
    width = DTYPES[dtype].itemsize
    # Zeros are left out of the product: what cannot be counted in 64 bits has no place in an array either.
    if not _is_numbers(shape) or len(shape) > MAX_RANK or width * math.prod(filter(None, shape)) >= 1 << 63:
        raise refuse(f"tensor {shown(name)} has the shape {shown(shape)}")
    if not _is_numbers(offsets) or len(offsets) != 2:
        raise refuse(f"tensor {shown(name)} has the data_offsets {shown(offsets)}")
    start, stop = offsets
    if not start <= stop <= data:
        raise refuse(f"tensor {shown(name)} lies at {start} to {stop} of {data} bytes")
    info = TensorInfo(name, tuple(shape), dtype, file, begin + start)
    if info.nbytes != stop - start:
        raise refuse(
            f"tensor {shown(name)} of shape {shown(shape)} and dtype {dtype} has {stop - start} bytes"
        )
    return info


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value)
