"""Stored arrays as torch tensors: the only place where the checkpoint layer meets torch."""

from typing import Any

import numpy as np
import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
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
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names and torch's dtypes."""


def to_tensor(array: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    """A copy of a stored array as a tensor of the same dtype."""
    # By bytes: numpy has no bfloat16 of its own that torch would know.
    raw = torch.from_numpy(np.array(array, copy=True).reshape(-1).view(np.uint8))
    return raw.view(TORCH_DTYPES[dtype]).reshape(array.shape)
