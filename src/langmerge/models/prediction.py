"""Logits for many rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from langmerge.models.devices import autocast
from langmerge.models.encoding import length_bucketed, padded
from langmerge.progress import Progress, silent


@torch.inference_mode()
def predict_logits(
    model: Any,
    encoded: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 2_048,
    bf16: bool | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Return the classifier's logits in the order of the rows.

    Args:
        model: a classifier; it is put into eval mode.
        encoded: token ids of each row, from `encode`.
        batch_tokens: padded tokens in a batch.
        bf16: bfloat16 products; None takes them where the device is faster with them. Logits then differ
            from float32 ones in the third digit.
        progress: told of rows.

    Returns:
        float32, shape (rows, labels).
    """
    model.eval()
    device = next(model.parameters()).device
    logits = np.zeros((len(encoded), model.config.num_labels), dtype=np.float32)
    lengths = [len(row) for row in encoded]
    with progress("predict", len(encoded)) as advance, autocast(device, bf16):
        for rows in length_bucketed(lengths, batch_tokens=batch_tokens):
            ids, mask = padded([encoded[row] for row in rows], pad_id=model.config.pad_token_id or 0)
            output = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            logits[rows] = output.float().cpu().numpy()
            advance(len(rows))
    return logits
