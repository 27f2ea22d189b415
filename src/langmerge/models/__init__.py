"""Models on disk and in memory; the one owner of transformers and tokenizers.

Names load on first use, so that importing the package loads neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "PROVENANCE_FILE": "e5_small",
    "autocast": "devices",
    "best_device": "devices",
    "build_e5_small": "e5_small",
    "encode": "encoding",
    "has_fast_bf16": "devices",
    "length_bucketed": "encoding",
    "load_classifier": "classifier",
    "load_tokenizer": "classifier",
    "new_classifier": "classifier",
    "padded": "encoding",
    "predict_logits": "prediction",
    "save_classifier": "classifier",
    "shuffled_batches": "encoding",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
