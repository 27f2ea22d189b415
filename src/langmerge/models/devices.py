"""Where models run and in which precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def best_device() -> torch.device:
    """Return the first CUDA device when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices faster than float32.

    On a CPU that takes AMX tiles or AVX-512's bfloat16 products: with plain AVX-512 the casts cost what the products gain.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def autocast(device: torch.device, bf16: bool | None) -> AbstractContextManager[object]:
    """Return the context for forward passes: bfloat16 products, or float32 throughout.

    Args:
        device: where the model is.
        bf16: None decides by `has_fast_bf16`.
    """
    if has_fast_bf16(device) if bf16 is None else bf16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def autocast_for_gradients(device: torch.device, bf16: bool | None) -> Iterator[None]:
    """As `autocast`, for a forward pass whose gradients will be taken.

    On a CPU in bfloat16 attention is then computed by plain products: the backward pass of the fused kernel takes half of
    a step on utterances of a dozen tokens.
    """
    taken = has_fast_bf16(device) if bf16 is None else bf16
    plain = sdpa_kernel(SDPBackend.MATH) if taken and device.type == "cpu" else nullcontext()
    with autocast(device, taken), plain:
        yield
