"""Pickled weights, for those who ask for them: read without running code, and turned into safetensors once."""

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langmerge.checkpoint.folder import Workplace, leftovers
from langmerge.checkpoint.places import (
    MAX_NAME,
    PICKLED_INDEX,
    PICKLED_SINGLE,
    check_place,
    listed_files,
    opened_plain,
    reason,
    shown,
)
from langmerge.checkpoint.writer import Slot, WeightWriter
from langmerge.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

_ZIP = b"PK\x03\x04"
_PIECE = 1 << 24


def pickled_files(folder: Path) -> list[Path]:
    """The pickled weight files of a folder, none if it has none.

    Raises:
        CheckpointError: an index that lists what is not there.
    """
    if (folder / PICKLED_INDEX).exists():
        return listed_files(folder, PICKLED_INDEX)[0]
    return [folder / PICKLED_SINGLE] if (folder / PICKLED_SINGLE).exists() else []


def unpickled(folder: Path) -> Workplace:
    """Write a folder's pickled weights as safetensors into a temporary folder, which is the caller's to remove.

    torch's restricted unpickler knows tensors and plain containers and refuses all else before it is called. The
    temporary folder needs the space of the weights, where `TMPDIR` says.

    Raises:
        CheckpointError: files that are not there, hold anything but tensors, or would run code; no space for the copy.
    """
    files = pickled_files(folder)
    for file in files:
        check_place(folder, file)
    states = {file: _state(file) for file in files}
    slots = _slots(states)
    parent = Path(tempfile.gettempdir())
    name = f"langmerge-{folder.resolve().name[:40]}"
    try:
        for leftover in leftovers(parent, name):
            leftover.remove()
        work = Workplace.make(parent, name)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be converted in {parent}: {reason(error)}") from None
    try:
        with WeightWriter(work.new, slots) as writer:
            for tensor_name, tensor in itertools.chain(*(state.items() for state in states.values())):
                for start, data in _pieces(tensor):
                    writer.write(tensor_name, start, data)
    except (OSError, OutputError) as error:
        work.remove()
        raise CheckpointError(
            f"{folder} cannot be converted in {parent} (TMPDIR names another place): {error}"
        ) from None
    except BaseException:
        work.remove()
        raise
    return work


def _state(file: Path) -> Mapping[str, "Tensor"]:
    """The tensors of one file."""
    import torch

    try:
        with opened_plain(file) as handle:
            # Files of torch before 1.6 are no archives, and cannot be mapped.
            mapped = handle.read(4) == _ZIP
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # Whatever a file makes the unpickler raise, it is the file's fault.
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{file} cannot be loaded as plain tensors (weights_only): {shown(first)[1:-1]}"
        ) from None
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{file} holds no mapping from names to tensors")
    return {name: _checked(file, name, entry) for name, entry in found.items()}


def _checked(file: Path, name: Any, entry: Any) -> "Tensor":
    import torch

    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
        raise CheckpointError(f"{file} has an entry named {shown(name)}, which is no tensor's name")
    if not isinstance(entry, torch.Tensor):
        raise CheckpointError(f"{file} holds {shown(name)}, which is no tensor: save the state dict alone")
    dense = entry.layout == torch.strided and not entry.is_quantized and entry.device.type == "cpu"
    # A view that repeats its entries could be of any size.
    if not dense or entry.untyped_storage().nbytes() < entry.numel() * entry.element_size():
        raise CheckpointError(f"tensor {shown(name)} in {file} is no dense tensor")
    return entry.detach()


def _slots(states: Mapping[Path, Mapping[str, "Tensor"]]) -> list[Slot]:
    from langmerge.checkpoint.tensors import TORCH_DTYPES

    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    slots: dict[str, Slot] = {}
    for file, state in states.items():
        for name, tensor in state.items():
            if tensor.dtype not in names:
                raise CheckpointError(
                    f"tensor {shown(name)} in {file} has dtype {str(tensor.dtype).removeprefix('torch.')}, not supported"
                )
            if name in slots:
                raise CheckpointError(f"tensor {shown(name)} is in {file} and in another shard: keep one")
            slots[name] = Slot(name, tuple(tensor.shape), names[tensor.dtype])
    return list(slots.values())


def _pieces(tensor: "Tensor") -> Iterator[tuple[int, Any]]:
    """A tensor's bytes in order, and where they begin."""
    import torch

    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE].contiguous()
        yield start * tensor.element_size(), piece.view(torch.uint8).numpy()
