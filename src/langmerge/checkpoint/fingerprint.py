"""What a checkpoint holds, as a short hash: the same for any sharding and order of its tensors.

A tensor is hashed in chunks of a fixed number of entries, so that a merge can take the hash in the same pass in which it
reads the weights. XXH3 (128 bits) finds every accidental difference at the speed of memory; it is no defence against
somebody who makes two files on purpose.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from langmerge.checkpoint.header import TensorInfo
from langmerge.checkpoint.places import read_json
from langmerge.checkpoint.reader import Checkpoint, open_checkpoint
from langmerge.errors import CheckpointError

CHUNK = 1 << 18
"""Entries of a tensor that are hashed at once."""

KEPT = ".langmerge.fingerprint"
"""The hash is kept beside the weights under this name, and trusted while sizes and times of change agree."""

SETTLED = 2_000_000_000
"""Time in ns since the last change after which a hash is kept."""

COUNTED = ("config.json", "tokenizer.json")
"""Files beside the weights that make it another model."""


def chunk_digest(stored: np.ndarray[Any, Any]) -> bytes:
    """Hash of one chunk, flat."""
    return xxhash.xxh3_128_digest(stored.view(np.uint8).data)


def chunk_digests(stored: np.ndarray[Any, Any]) -> list[bytes]:
    """Hashes of the chunks of a flat stretch that begins where a chunk does."""
    return [chunk_digest(stored[start : start + CHUNK]) for start in range(0, len(stored), CHUNK)]


def tensor_digest(chunks: list[bytes]) -> str:
    """Hash of a tensor from its chunks', in order."""
    return xxhash.xxh3_128_hexdigest(b"".join(chunks))


def weights_digest(tensors: Mapping[str, TensorInfo], digest: Callable[[str], str]) -> str:
    """Hash of all weights from the tensors' hashes."""
    lines = [
        f"{name}\0{tensors[name].dtype}\0{list(tensors[name].shape)}\0{digest(name)}"
        for name in sorted(tensors)
    ]
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def hashed_tensor(checkpoint: Checkpoint, name: str) -> str:
    """Hash of one tensor, read for this alone."""
    info = checkpoint.tensors[name]
    if info.entries == 0:
        return tensor_digest([])
    return tensor_digest(chunk_digests(checkpoint.array(name).reshape(-1)))


def fingerprint(checkpoint: Checkpoint, digests: Mapping[str, str] | None = None) -> str:
    """32 hexadecimal digits for the weights of an open checkpoint.

    Args:
        checkpoint: to be told from others.
        digests: hashes of tensors that are known already; the others are read here.

    Raises:
        CheckpointError: its files have changed since it was opened.
    """
    known, taken = kept_fingerprint(checkpoint), digests or {}
    found = known or weights_digest(
        checkpoint.tensors, lambda name: taken.get(name) or hashed_tensor(checkpoint, name)
    )
    checkpoint.check_unchanged()
    if not known:
        _keep(checkpoint, found)
    return found


def kept_fingerprint(checkpoint: Checkpoint) -> str | None:
    """The hash that an earlier call kept beside the weights, if nothing has changed since."""
    file = checkpoint.folder / KEPT
    try:
        kept = read_json(file) if file.is_file() and not file.is_symlink() else {}
    except CheckpointError:
        return None
    weights, stamp = kept.get("weights"), kept.get("stamp")
    whole = isinstance(weights, str) and bool(re.fullmatch("[0-9a-f]{32}", weights))
    return weights if whole and stamp == _stamp(checkpoint) else None


def _keep(checkpoint: Checkpoint, weights: str) -> None:
    # Clocks of file systems are coarse: what was written just now may be written once more at the same time.
    if time.time_ns() - max(stamp.changed for stamp in checkpoint.stamps) < SETTLED:
        return
    text = json.dumps({"stamp": _stamp(checkpoint), "weights": weights})
    temporary = checkpoint.folder / f"{KEPT}.tmp"
    # A read-only folder costs time at the next call, nothing else.
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        # Made anew and renamed: never through a link that somebody put there.
        with temporary.open("x") as handle:
            handle.write(text)
        temporary.replace(checkpoint.folder / KEPT)


def _stamp(checkpoint: Checkpoint) -> list[list[Any]]:
    return [[one.name, one.size, one.changed] for one in sorted(checkpoint.stamps, key=lambda one: one.name)]


def checkpoint_signature(checkpoint: Checkpoint, digests: Mapping[str, str] | None = None) -> str:
    """12 hexadecimal digits for a model: weights, config and tokenizer."""
    parts = [fingerprint(checkpoint, digests)]
    for name in COUNTED:
        file = checkpoint.folder / name
        parts.append(xxhash.xxh3_128_hexdigest(file.read_bytes()) if file.exists() else "")
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())[:12]


def adapter_signature(checkpoint: Checkpoint) -> str:
    """12 hexadecimal digits for an adapter by itself: weights and settings, wherever its base lies."""
    config = {key: one for key, one in checkpoint.config.items() if key != "base_model_name_or_path"}
    said = json.dumps(config, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(f"{fingerprint(checkpoint)}\n{said}".encode())[:12]


def folder_signature(folder: Path) -> str:
    """The `checkpoint_signature` of a model folder.

    Raises:
        CheckpointError: it is none.
    """
    return checkpoint_signature(open_checkpoint(folder))
