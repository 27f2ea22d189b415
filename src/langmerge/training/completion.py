"""Causal language models: the loss is that of the completion, never of the prompt before it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from langmerge.errors import DataError
from langmerge.models.encoding import MAX_LENGTH, length_bucketed, padded
from langmerge.progress import Progress, silent
from langmerge.training.fitting import Pace, fit, mean_loss

Row = tuple[list[int], int]
"""Token ids of prompt and completion, and how many belong to the prompt."""


def completions(
    tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, max_length: int = MAX_LENGTH
) -> list[Row]:
    """Prompt and answer as token ids, the end of text behind the answer; a long prompt loses its beginning.

    The two are cut into tokens apart, so that no token belongs to both.

    Raises:
        DataError: an answer is longer than `max_length`, or the tokenizer has no end of text.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} has no end-of-text token: completions need one"
        )
    before = tokenizer(list(prompts), add_special_tokens=False)["input_ids"] if prompts else []
    behind = tokenizer(list(answers), add_special_tokens=False)["input_ids"] if answers else []
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = []
    for prompt, answer in zip(before, behind, strict=True):
        room = max_length - len(start) - len(answer) - 1
        if room < 0:
            raise DataError(
                f"an answer has {len(answer)} tokens, at most {max_length - len(start) - 1} have room"
            )
        kept = [*start, *(prompt[-room:] if room else [])]
        rows.append(([*kept, *answer, end], len(kept)))
    return rows


def completion_loss(model: Any, rows: Sequence[Row]) -> tuple[torch.Tensor, int]:
    """Sum of cross-entropies in nats over the tokens of the completions, and their number."""
    device = next(model.parameters()).device
    ids, mask = padded([row for row, _ in rows], pad_id=model.config.pad_token_id or 0)
    asked = mask.bool()
    for place, (_, prompt) in enumerate(rows):
        # A first token has nothing that it could be told from.
        asked[place, : max(1, prompt)] = False
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    # The logits at a token are for the next one; a prefix puts none of its own before them.
    wanted = asked[:, 1:].to(device)
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1][wanted].float(), ids.to(device)[:, 1:][wanted], reduction="sum"
    )
    return loss, int(wanted.sum())


def train_completion(
    model: Any, train: Sequence[Row], dev: Sequence[Row], pace: Pace, *, progress: Progress = silent
) -> dict[str, Any]:
    """Train what trains of a causal LM in place; the epoch with the least dev loss is kept.

    Returns:
        What `fit` does; scores are dev losses with the sign turned.

    Raises:
        DataError: no train or no dev rows.
        TrainingError: a loss that is not finite.
    """
    if not train or not dev:
        raise DataError(f"completions need train and dev rows: found {len(train)} and {len(dev)}")

    def loss(rows: np.ndarray) -> tuple[torch.Tensor, int]:
        return completion_loss(model, [train[row] for row in rows])

    return fit(
        model,
        [len(row) for row, _ in train],
        pace,
        loss=loss,
        score=lambda: -mean_completion_loss(model, dev),
        progress=progress,
    )


def mean_completion_loss(model: Any, rows: Sequence[Row]) -> float:
    """Mean cross-entropy in nats a token of the completions; the model is put into eval mode."""
    batches = length_bucketed([len(row) for row, _ in rows], batch_tokens=2_048)
    return mean_loss(model, batches, lambda batch: completion_loss(model, [rows[row] for row in batch]))
