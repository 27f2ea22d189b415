"""Token classification: a label for every piece of a text, spans of labels for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from langmerge.models import encode_with_offsets
from langmerge.models.encoding import length_bucketed, padded
from langmerge.progress import Progress, silent
from langmerge.tasks import IGNORED, SlotExamples, Span, decoded, span_f1, token_labels
from langmerge.training.epochs import Encoded
from langmerge.training.fitting import Pace, fit


def labelled_loss(
    model: Any, encoded: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, int]:
    """Sum of cross-entropies in nats over the pieces that have a label, and their number."""
    device = next(model.parameters()).device
    ids, mask = padded(encoded, pad_id=model.config.pad_token_id or 0)
    wanted = torch.full(ids.shape, IGNORED, dtype=torch.int64)
    for row, one in enumerate(labels):
        wanted[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten().to(device), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((wanted != IGNORED).sum())


@torch.inference_mode()
def predicted_spans(
    model: Any,
    encoded: Encoded,
    offsets: Sequence[Sequence[tuple[int, int]]],
    texts: Sequence[str],
    labels: Sequence[str],
) -> list[tuple[Span, ...]]:
    """The spans that a token classifier finds in each text; the model is put into eval mode."""
    model.eval()
    device = next(model.parameters()).device
    found: list[tuple[Span, ...]] = [()] * len(encoded)
    for rows in length_bucketed([len(row) for row in encoded], batch_tokens=2_048):
        ids, mask = padded([encoded[row] for row in rows], pad_id=model.config.pad_token_id or 0)
        best = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.argmax(-1).cpu()
        for place, row in enumerate(rows):
            found[row] = decoded(offsets[row], best[place, : len(encoded[row])].tolist(), labels, texts[row])
    return found


def train_slots(
    model: Any,
    tokenizer: Any,
    train: SlotExamples,
    dev: SlotExamples,
    labels: Sequence[str],
    pace: Pace,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a token classifier, or what trains of it, in place; the epoch with the best span F1 on dev is kept.

    Returns:
        What `fit` does; scores are span F1 in [0, 1].

    Raises:
        TrainingError: a loss that is not finite.
    """
    ids, offsets = encode_with_offsets(tokenizer, train.texts)
    wanted = [token_labels(one, spans, labels) for one, spans in zip(offsets, train.spans, strict=True)]
    dev_ids, dev_offsets = encode_with_offsets(tokenizer, dev.texts)

    def loss(rows: np.ndarray) -> tuple[torch.Tensor, int]:
        return labelled_loss(model, [ids[row] for row in rows], [wanted[row] for row in rows])

    return fit(
        model,
        [len(row) for row in ids],
        pace,
        loss=loss,
        score=lambda: span_f1(dev.spans, predicted_spans(model, dev_ids, dev_offsets, dev.texts, labels)),
        progress=progress,
    )
