"""Texts as vectors: the mean of an encoder's last hidden states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from langmerge.models.devices import autocast
from langmerge.models.encoding import length_bucketed, padded


@torch.inference_mode()
def mean_pooled(
    model: Any, encoded: Sequence[Sequence[int]], *, batch_tokens: int = 2_048, bf16: bool | None = None
) -> Float32[np.ndarray, "n d"]:
    """The mean over each text's tokens of the last hidden state below the head.

    Args:
        model: a classifier or a bare encoder; it is put into eval mode.
        encoded: token ids of each text, from `encode`.
        batch_tokens: padded tokens in a batch.
        bf16: see `predict_logits`.

    Returns:
        Shape (texts, hidden size), in the texts' order.
    """
    model.eval()
    encoder = getattr(model, model.base_model_prefix, model)
    device = next(model.parameters()).device
    found: list[Any] = [None] * len(encoded)
    with autocast(device, bf16):
        for rows in length_bucketed([len(row) for row in encoded], batch_tokens=batch_tokens):
            ids, mask = padded([encoded[row] for row in rows], pad_id=model.config.pad_token_id or 0)
            mask = mask.to(device)
            states = encoder(input_ids=ids.to(device), attention_mask=mask).last_hidden_state.float()
            means = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            for row, vector in zip(rows, means.cpu().numpy(), strict=True):
                found[row] = vector
    return np.asarray(np.stack(found), dtype=np.float32)
