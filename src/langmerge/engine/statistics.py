"""Statistics of sources on text, as files: diagonal Fishers and Grams of layer inputs, which methods read beside weights.

One safetensors file for each source, its tensors named by the model's tensors: a Fisher has the tensor's shape, a Gram
(in, in) of a weight matrix (out, in). Layers that read the same input share one Gram, which is stored once.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from langmerge.checkpoint import DTYPES, TensorInfo, chunk_digest, read_header, tensor_digest
from langmerge.checkpoint.fingerprint import chunk_digests, weights_digest
from langmerge.checkpoint.mapping import WeightFiles
from langmerge.checkpoint.places import opened_plain, reason, stamp_of
from langmerge.checkpoint.reader import SMALL
from langmerge.errors import CheckpointError, OutputError

FORMAT = "langmerge-statistics/1"

COMMANDS = {"fisher": "langmerge learn fisher", "grams": "langmerge learn gram"}
"""What makes each kind."""


@dataclass(frozen=True)
class Statistics:
    """An open artefact.

    Attributes:
        file: where it is.
        kind: `fisher` or `grams`.
        model: `checkpoint_signature` of the model that was measured.
        tensors: by the name of the model's tensor; several names may have one entry.
        metadata: how it was made: rows, seed, text, settings, peak memory.
        files: its numbers in memory.
    """

    file: Path
    kind: str
    model: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any] = field(repr=False)
    files: WeightFiles = field(repr=False, compare=False)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor as stored, mapped where it is large; not to be written to.

        Raises:
            CheckpointError: the file cannot be read, or has changed since it was opened.
        """
        info = self.tensors[name]
        dtype = DTYPES[info.dtype]
        if info.nbytes <= SMALL:
            raw: Any = self.files.read(info.file, info.offset, info.nbytes) if info.nbytes else b""
            return np.frombuffer(raw, dtype).reshape(info.shape)
        mapped = self.files.mapped(info.file)
        return np.frombuffer(mapped, dtype, info.entries, info.offset).reshape(info.shape)

    @cached_property
    def signature(self) -> str:
        """12 hexadecimal digits of all that decides a merge: kind, model and numbers; not of how long it took."""
        digests: dict[tuple[int, int], str] = {}

        def digest(name: str) -> str:
            # What is shared is read once.
            place = (self.tensors[name].offset, self.tensors[name].nbytes)
            if place not in digests:
                digests[place] = tensor_digest(chunk_digests(self.array(name).reshape(-1)))
            return digests[place]

        whole = weights_digest(self.tensors, digest)
        text = f"{FORMAT}\n{self.kind}\n{self.model}\n{whole}"
        return chunk_digest(np.frombuffer(text.encode(), np.uint8)).hex()[:12]


def open_statistics(file: Path) -> Statistics:
    """Open an artefact, reading its header only.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    stamp = stamp_of(file)
    tensors = read_header(file)
    metadata = _metadata(file)
    if metadata.get("format") != FORMAT or metadata.get("kind") not in COMMANDS or "model" not in metadata:
        raise CheckpointError(
            f"{file} holds no statistics of the format {FORMAT}: make them with {' or '.join(COMMANDS.values())}"
        )
    shared = metadata.get("shared", {})
    if not isinstance(shared, dict) or not all(owner in tensors for owner in shared.values()):
        raise CheckpointError(f"{file} shares tensors that it does not hold: make it again")
    named = tensors | {name: tensors[owner] for name, owner in shared.items()}
    if wrong := [name for name, info in tensors.items() if not info.is_float]:
        raise CheckpointError(f"tensor {wrong[0]!r} in {file} is not a floating-point tensor: make it again")
    return Statistics(
        file,
        str(metadata["kind"]),
        str(metadata["model"]),
        dict(sorted(named.items())),
        metadata,
        WeightFiles([(file, stamp)]),
    )


def _metadata(file: Path) -> dict[str, Any]:
    """The metadata of a file whose header was read: every value is JSON, or plain text."""
    with opened_plain(file) as handle:
        text = handle.read(int.from_bytes(handle.read(8), "little"))
    found: dict[str, Any] = {}
    for key, value in json.loads(text).get("__metadata__", {}).items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def write_statistics(
    file: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    *,
    kind: str,
    model: str,
    shared: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write an artefact, whole or not at all, one tensor after the other.

    Args:
        file: where to; replaced where it exists.
        tensors: by name; float32 or float64.
        kind: `fisher` or `grams`.
        model: `checkpoint_signature` of what was measured.
        shared: tensor → the tensor whose entry it has too.
        metadata: anything that JSON can hold.

    Raises:
        OutputError: the place cannot be written.
    """
    told = {"format": FORMAT, "kind": kind, "model": model, **(metadata or {})}
    if shared:
        told["shared"] = dict(sorted(shared.items()))
    stored = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}
    header: dict[str, Any] = {"__metadata__": {key: json.dumps(value) for key, value in told.items()}}
    place = 0
    for name in sorted(tensors):
        one = tensors[name]
        offsets = [place, place + one.nbytes]
        header[name] = {"dtype": stored[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
        place += one.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _replaced(file) as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            # As bytes, but not as a copy: one tensor may be most of the model.
            handle.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)


@contextmanager
def _replaced(file: Path) -> Iterator[BinaryIO]:
    """A temporary sibling that becomes the file by one rename when the block ends well, and vanishes otherwise."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle
        temporary.replace(file)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)
