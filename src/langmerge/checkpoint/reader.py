"""A checkpoint folder, opened by its headers; weights are mapped into memory and read where they are needed."""

import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langmerge.checkpoint.header import DTYPES, TensorInfo, read_header
from langmerge.checkpoint.mapping import WeightFiles, changed
from langmerge.checkpoint.pickled import pickled_files, unpickled
from langmerge.checkpoint.places import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    Stamp,
    check_place,
    check_places,
    listed_files,
    read_json,
    shown,
    stamp_of,
)
from langmerge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1 << 20
"""Bytes of a tensor that is copied when it is asked for."""


@dataclass(frozen=True)
class Checkpoint:
    """An open model folder.

    Attributes:
        folder: where it is.
        tensors: by name.
        config: as it stands in config.json.
        stamps: its weight files as they were when they were opened.
        files: its weights in memory.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    stamps: tuple[Stamp, ...] = field(repr=False)
    files: WeightFiles = field(repr=False, compare=False)

    def mapped(self, file: Path) -> mmap.mmap:
        """A weight file as read-only memory; see `WeightFiles.mapped`.

        Raises:
            CheckpointError: it cannot be mapped, or has changed since it was opened.
        """
        return self.files.mapped(file)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor in its stored dtype, not to be written to.

        One of more than `SMALL` bytes is mapped: nothing is read before it is looked at.

        Raises:
            CheckpointError: its file cannot be read, or has changed since it was opened.
        """
        info = self.tensors[name]
        dtype = DTYPES[info.dtype]
        if info.entries == 0:
            return np.empty(info.shape, dtype)
        if info.nbytes <= SMALL:
            return np.frombuffer(self.files.read(info.file, info.offset, info.nbytes), dtype).reshape(
                info.shape
            )
        flat = np.frombuffer(self.mapped(info.file), dtype, info.entries, info.offset)
        return flat.reshape(info.shape)

    def read(self, name: str) -> "Tensor":
        """One tensor in its stored dtype, as a copy on the CPU."""
        from langmerge.checkpoint.tensors import to_tensor

        return to_tensor(self.array(name), self.tensors[name].dtype)

    def read_finite(self, name: str) -> "Tensor":
        """One tensor as float32.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        import torch

        tensor = self.read(name).to(torch.float32)
        # A sum over finite numbers is finite unless it overflows; only then look at every entry.
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise not_finite(self.tensors[name])
        return tensor

    def check_unchanged(self) -> None:
        """Raise where what has been read may be a mixture: somebody wrote to a weight file meanwhile.

        Raises:
            CheckpointError: a weight file has another size or time of change than when it was opened.
        """
        for stamp in self.stamps:
            if stamp_of(self.folder / stamp.name) != stamp:
                raise changed(self.folder / stamp.name)


def not_finite(info: TensorInfo) -> CheckpointError:
    """The error for a tensor that no merge can use."""
    return CheckpointError(
        f"tensor {info.name!r} in {info.file} holds NaN or infinity: that training run diverged; leave it out"
    )


def open_checkpoint(folder: Path | str, *, pickle: bool = False) -> Checkpoint:
    """Open a Hugging Face folder with safetensors weights (one file or shards), reading headers only.

    Args:
        folder: of the model.
        pickle: take `pytorch_model.bin` (one file or shards) where there is nothing else. It is read without running
            code and copied once into a temporary folder, which lives as long as the checkpoint.

    Raises:
        CheckpointError: no such folder, no config.json, no weights, or files that cannot or must not be read.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise CheckpointError(f"model folder {folder} does not exist")
    check_places(folder)
    config = read_json(folder / "config.json")
    found = _weight_files(folder)
    if found is not None:
        return _opened(folder, config, *found)
    files = pickled_files(folder)
    if not pickle or not files:
        raise _no_weights(folder)
    stamps = tuple(stamp_of(file) for file in files)
    work = unpickled(folder)
    opened = _opened(folder, config, [work.new / SINGLE], [], stamps)
    weakref.finalize(opened, work.remove)
    return opened


def open_adapter(folder: Path | str) -> Checkpoint:
    """Open a PEFT adapter's folder by its header; `config` is its adapter_config.json.

    Raises:
        CheckpointError: no such folder, no adapter in it, or files that cannot or must not be read.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise CheckpointError(f"adapter folder {folder} does not exist")
    check_places(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: it has no {ADAPTER_CONFIG}")
    config = read_json(folder / ADAPTER_CONFIG)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"the adapter {folder} has no {ADAPTER_WEIGHTS}: save it with PEFT's save_pretrained"
        )
    return _opened(folder, config, [folder / ADAPTER_WEIGHTS], [])


def _opened(
    folder: Path,
    config: Mapping[str, Any],
    files: Sequence[Path],
    listed: Sequence[str],
    origin: tuple[Stamp, ...] = (),
) -> Checkpoint:
    # Before the headers are read: what changes in between is found out.
    stamps = [(file, stamp_of(file)) for file in files]
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} is in {tensors[name].file} and in {file}: keep one")
            tensors[name] = info
    if absent := sorted(set(listed) - set(tensors)):
        raise CheckpointError(f"{folder / INDEX} lists tensor {shown(absent[0])}, which is in no shard")
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors")
    return Checkpoint(folder, tensors, config, origin or tuple(s for _, s in stamps), WeightFiles(stamps))


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The label map of a config in order of the rows, or None where it has none or only the default LABEL_0, LABEL_1, …

    >>> label_names({"id2label": {"1": "b", "0": "a"}})
    ('a', 'b')
    """
    id2label = config.get("id2label")
    if not isinstance(id2label, Mapping):
        return None
    try:
        names = tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    except ValueError:
        return None
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _weight_files(folder: Path) -> tuple[list[Path], list[str]] | None:
    """The safetensors files, and the tensors that an index lists for them; None where there are none."""
    single, index = os.path.lexists(folder / SINGLE), os.path.lexists(folder / INDEX)
    if index:
        files, listed = listed_files(folder, INDEX)
        # Libraries differ in which of the two they load.
        if single and folder / SINGLE not in files:
            raise CheckpointError(
                f"{folder} has its weights twice, in {SINGLE} and as {INDEX} says: remove one"
            )
        return files, listed
    if single:
        check_place(folder, folder / SINGLE)
        return [folder / SINGLE], []
    return None


def _no_weights(folder: Path) -> CheckpointError:
    if pickled_files(folder):
        return CheckpointError(
            f"{folder} has only pickled weights, which can run code when loaded: convert them with transformers' "
            "save_pretrained, or say pickle: true in the recipe (they are then read without running code)"
        )
    if others := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")):
        return CheckpointError(
            f"{folder} has only pickled weights ({shown(others[0].name)[1:-1]}), which can run code when loaded: "
            "convert them with transformers' save_pretrained first"
        )
    return CheckpointError(f"{folder} has no {SINGLE} and no {INDEX}")
