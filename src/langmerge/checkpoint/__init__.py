"""Model folders in and out: safetensors weights, header-only opening, atomic output."""

from langmerge.checkpoint.fingerprint import (
    CHUNK,
    adapter_signature,
    checkpoint_signature,
    chunk_digest,
    fingerprint,
    folder_signature,
    kept_fingerprint,
    tensor_digest,
)
from langmerge.checkpoint.folder import check_output, check_outside, new_folder
from langmerge.checkpoint.header import DTYPES, TensorInfo, read_header
from langmerge.checkpoint.places import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from langmerge.checkpoint.reader import Checkpoint, label_names, not_finite, open_adapter, open_checkpoint
from langmerge.checkpoint.writer import Slot, WeightWriter

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "CHUNK",
    "DTYPES",
    "Checkpoint",
    "Slot",
    "TensorInfo",
    "WeightWriter",
    "adapter_signature",
    "check_output",
    "check_outside",
    "checkpoint_signature",
    "chunk_digest",
    "fingerprint",
    "folder_signature",
    "kept_fingerprint",
    "label_names",
    "new_folder",
    "not_finite",
    "open_adapter",
    "open_checkpoint",
    "read_header",
    "read_json",
    "tensor_digest",
]
