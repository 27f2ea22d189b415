"""Model folders in and out: safetensors weights, header-only opening, atomic output."""

from langmerge.checkpoint.reader import (
    DTYPES,
    Checkpoint,
    TensorInfo,
    label_names,
    open_checkpoint,
    read_json,
)
from langmerge.checkpoint.writer import Slot, check_output, new_folder, write_weights

__all__ = [
    "DTYPES",
    "Checkpoint",
    "Slot",
    "TensorInfo",
    "check_output",
    "label_names",
    "new_folder",
    "open_checkpoint",
    "read_json",
    "write_weights",
]
