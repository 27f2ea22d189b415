"""What an objective does not say of a run; which rows it learns on."""

from typing import Any

import numpy as np
import torch

from langmerge.errors import InputError
from langmerge.learned.objectives import entropies

HELD_OUT_MOST = 512
"""Held-out rows: enough for a loss to the second digit."""

Rows = np.ndarray[Any, np.dtype[np.int64]]


def compare(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> dict[str, float]:
    """What an objective does not show: entropy falls as well when logits merely grow.

    Args:
        before: logits (rows, labels).
        after: of the same rows.

    Returns:
        `flips`: share of rows whose predicted label is another; `logit_norm_growth`: ratio of the mean norms of centred
        logits; `entropy_before`, `entropy_after` in nats; `labels_before`, `labels_after`: how many are predicted at all.
    """

    def norm(logits: np.ndarray[Any, Any]) -> float:
        return float(np.linalg.norm(logits - logits.mean(1, keepdims=True), axis=1).mean())

    old, new = torch.from_numpy(before).double(), torch.from_numpy(after).double()
    return {
        "flips": float((before.argmax(1) != after.argmax(1)).mean()),
        "logit_norm_growth": norm(after) / max(norm(before), 1e-30),
        "entropy_before": float(entropies(old).mean()),
        "entropy_after": float(entropies(new).mean()),
        "labels_before": float(len(set(before.argmax(1).tolist()))),
        "labels_after": float(len(set(after.argmax(1).tolist()))),
    }


def split_rows(rows: int, *, share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn on and rows held out, both in order.

    Raises:
        InputError: nothing would be left.
    """
    held = min(HELD_OUT_MOST, round(share * rows))
    if held >= rows:
        raise InputError(f"{rows} rows of text are too few to hold {held} out")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).numpy()
    return np.sort(order[held:]), np.sort(order[:held])
