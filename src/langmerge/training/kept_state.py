"""The state of a training run on disk: whole at every moment, and read without running code."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import torch

from langmerge.errors import OutputError


def save_state(file: Path, signature: str, payload: dict[str, Any]) -> None:
    """Write into a temporary sibling, then rename it.

    Args:
        file: its folder is made if need be.
        signature: of everything that decides the run.
        payload: tensors, numbers, texts, lists and mappings.

    Raises:
        OutputError: the place cannot be written.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"signature": signature, **payload}, temporary)
        temporary.replace(file)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise OutputError(f"the state {file} cannot be written: {reason}") from error


def load_state(file: Path, signature: str) -> dict[str, Any] | None:
    """What `save_state` wrote, or None if there is nothing, something broken, or another run's."""
    try:
        kept: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        return None
    return kept if isinstance(kept, dict) and kept.get("signature") == signature else None


def drop_state(file: Path) -> None:
    """Remove it, and what a killed run left of one."""
    for path in (file, file.with_name(f"{file.name}.tmp")):
        path.unlink(missing_ok=True)
