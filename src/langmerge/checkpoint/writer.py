"""Streamed, sharded safetensors output into a folder that appears by one rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from langmerge.checkpoint.reader import DTYPES, INDEX, SINGLE
from langmerge.errors import OutputError


@dataclass(frozen=True)
class Slot:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Stored size."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


def shards_of(slots: Sequence[Slot], max_bytes: int) -> list[list[Slot]]:
    """Slots cut into files of at most `max_bytes` (a larger tensor gets a file of its own), order kept."""
    shards: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if shards[-1] and size + slot.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += slot.nbytes
    return shards


def write_weights(
    folder: Path, slots: Sequence[Slot], tensors: Iterator[Tensor], *, max_shard: int = 5_000_000_000
) -> None:
    """Write tensors as they come, in the order of `slots`; no more than one is held.

    Args:
        folder: an existing folder.
        slots: what will come.
        tensors: one for each slot, of its shape; converted to its dtype here.
        max_shard: largest file, in bytes.

    Raises:
        ValueError: a tensor of another shape than planned, or another number of tensors.
    """
    shards = shards_of(slots, max_shard)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_header(file, shard)
            for slot in shard:
                tensor = next(tensors, None)
                if tensor is None or tuple(tensor.shape) != slot.shape:
                    found = "nothing" if tensor is None else tuple(tensor.shape)
                    raise ValueError(f"tensor {slot.name!r}: planned {slot.shape}, got {found}")
                stored = tensor.to(DTYPES[slot.dtype]).contiguous().reshape(-1)
                if stored.numel():
                    file.write(stored.view(torch.uint8).numpy().data)
    # Asking once more also lets a generator finish what follows its last tensor.
    if next(tensors, None) is not None:
        raise ValueError(f"more tensors than the {len(slots)} planned")
    if len(shards) > 1:
        weight_map = {slot.name: name for name, shard in zip(names, shards, strict=True) for slot in shard}
        index = {"metadata": {"total_size": sum(slot.nbytes for slot in slots)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_header(file: IO[bytes], shard: Sequence[Slot]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for slot in shard:
        header[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [offset, offset + slot.nbytes],
        }
        offset += slot.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Raise unless `out` can become a new folder.

    Raises:
        OutputError: it exists and `overwrite` is off, or no folder can be made beside it.
    """
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise OutputError(f"output {out} exists already: choose another place, or say --overwrite")
        if out.is_symlink() or not out.is_dir():
            raise OutputError(f"output {out} is a file or a link, not a folder: choose another place")
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output {out} cannot be written: {parent} is not a folder one may write to")


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` by one rename when the block ends well, and vanishes otherwise.

    Raises:
        OutputError: see `check_output`; also when the disk is full or writing fails.
    """
    check_output(out, overwrite=overwrite)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: process ids come again (in containers always), and so would a killed run's leftover.
        own = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=parent))
    except OSError as error:
        raise OutputError(f"output {out} cannot be written: {error.strerror or error}") from error
    temporary = own / "new"
    try:
        temporary.mkdir()
        yield temporary
        if overwrite and out.exists():
            _replace(out, temporary, aside=own / "old")
        else:
            temporary.rename(out)
    except OSError as error:
        raise OutputError(f"output {out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _replace(out: Path, new: Path, *, aside: Path) -> None:
    # rename(2) cannot replace a folder that is not empty: the old one steps aside first, and back if need be.
    out.rename(aside)
    try:
        new.rename(out)
    except OSError:
        aside.rename(out)
        raise
