"""A checkpoint folder, opened by its headers; tensors are read one at a time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from langmerge.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the dtypes that are read and written."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def is_float(self) -> bool:
        """Whether arithmetic makes sense on it."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def nbytes(self) -> int:
        """Stored size."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Checkpoint:
    """An open model folder: `tensors` by name, `config` as it stands in config.json."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    _handles: dict[Path, Any] = field(repr=False, compare=False)

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype, on the CPU."""
        tensor: Tensor = self._handles[self.tensors[name].file].get_tensor(name)
        return tensor

    def read_finite(self, name: str) -> Tensor:
        """One tensor as float32.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        tensor = self.read(name).to(torch.float32)
        # A sum over finite numbers is finite unless it overflows; only then look at every entry.
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"tensor {name!r} in {self.tensors[name].file} holds NaN or infinity: that training run diverged; leave it out"
            )
        return tensor


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Open a Hugging Face folder with safetensors weights (one file or shards), reading headers only.

    Raises:
        CheckpointError: no such folder, no config.json, no safetensors weights, or files that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist")
    config = read_json(folder / "config.json")
    handles: dict[Path, Any] = {}
    tensors: dict[str, TensorInfo] = {}
    files, listed = _weight_files(folder)
    for file in files:
        try:
            handle: Any = safe_open(file, framework="pt")
            for name in handle.keys():  # noqa: SIM118 (a handle is no mapping)
                part = handle.get_slice(name)
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {name!r} is in {tensors[name].file} and in {file}: keep one"
                    )
                tensors[name] = TensorInfo(name, tuple(part.get_shape()), part.get_dtype(), file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read as safetensors: {error}") from None
        handles[file] = handle
    if absent := sorted(set(listed) - set(tensors)):
        raise CheckpointError(f"{folder / INDEX} lists tensor {absent[0]!r}, which is in no shard")
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors")
    if strange := [info for info in tensors.values() if info.dtype not in DTYPES]:
        raise CheckpointError(
            f"tensor {strange[0].name!r} in {strange[0].file} has dtype {strange[0].dtype}, not supported"
        )
    return Checkpoint(folder, tensors, config, handles)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, or no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        raise CheckpointError(f"{path} does not exist: {path.parent} is no model folder") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found


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


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files, and the tensors that an index lists for them."""
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{folder / INDEX} has no weight_map from tensor names to file names")
        names = sorted(set(weight_map.values()))
        if unsafe := [name for name in names if Path(name).name != name or name in ("", "..")]:
            raise CheckpointError(f"{folder / INDEX} names a shard outside its folder: {unsafe[0]!r}")
        if absent := [name for name in names if not (folder / name).exists()]:
            raise CheckpointError(f"{folder / INDEX} lists {absent[0]!r}, which does not exist")
        return [folder / name for name in names], list(weight_map)
    if (folder / SINGLE).exists():
        return [folder / SINGLE], []
    if pickled := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")):
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickled[0].name}), which can run code when loaded: "
            "convert them with transformers' save_pretrained first"
        )
    raise CheckpointError(f"{folder} has no {SINGLE} and no {INDEX}")
