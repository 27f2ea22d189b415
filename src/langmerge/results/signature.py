"""Signatures: which run a number came from."""

import hashlib
import json
from pathlib import Path
from typing import Any


def signature(payload: Any) -> str:
    """A short hash of anything that JSON can hold; key order does not matter.

    >>> signature({"a": 1, "b": [2]}) == signature({"b": [2], "a": 1})
    True

    Returns:
        12 hexadecimal digits.
    """
    text = json.dumps(payload, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_signature(folder: Path) -> str:
    """A short hash of a model folder's weights and config.

    Weights are hashed by content, once: the hash is kept beside them and trusted while size and time of change agree.
    """
    files = sorted(
        [*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("tokenizer.json")]
    )
    return signature([[file.name, _file_hash(file)] for file in files])


def _file_hash(file: Path) -> str:
    stat = file.stat()
    stamp = f"{stat.st_size} {stat.st_mtime_ns}"
    cache = file.with_name(f".{file.name}.sha256")
    if cache.exists():
        known, _, kept = cache.read_text().partition("\n")
        if known == stamp and len(kept) == 64:
            return kept
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    try:
        cache.write_text(f"{stamp}\n{digest}")
    except OSError:
        # A read-only folder costs time at the next call, nothing else.
        return digest
    return digest
