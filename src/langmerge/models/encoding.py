"""Text to token ids, and ids to batches that hold little padding."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from langmerge.errors import CheckpointError

MAX_LENGTH = 128
"""Tokens of a text that are read; utterances have a dozen."""

_LENGTH_POOL = 32
"""Batches that are sorted by length together when training: fewer pads, still a random order."""


def encode(tokenizer: Any, texts: Sequence[str], *, max_length: int = MAX_LENGTH) -> list[list[int]]:
    """Return the token ids of each text, special tokens included.

    Args:
        tokenizer: from `load_tokenizer`.
        texts: any number, none included.
        max_length: longer sequences are cut to this many tokens.
    """
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return ids


def encode_with_offsets(
    tokenizer: Any, texts: Sequence[str], *, max_length: int = MAX_LENGTH
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """Token ids as `encode` gives them, and where each token begins and ends in its text, in characters.

    Raises:
        CheckpointError: the tokenizer cannot say where.
    """
    if not texts:
        return [], []
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name_or_path} cannot say where its tokens stand in the text"
        )
    found = tokenizer(list(texts), truncation=True, max_length=max_length, return_offsets_mapping=True)
    return found["input_ids"], [[(start, stop) for start, stop in row] for row in found["offset_mapping"]]


def length_bucketed(lengths: Sequence[int], *, batch_tokens: int) -> list[np.ndarray]:
    """Cut the rows, sorted by length, into batches of at most `batch_tokens` padded tokens.

    Args:
        lengths: tokens in each row.
        batch_tokens: rows × longest row of a batch stay below it; one row may exceed it alone.

    Returns:
        Arrays of row numbers (int64), longest rows first so that memory peaks at once; each row occurs once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def shuffled_batches(
    lengths: Sequence[int], *, batch_size: int, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """Yield one epoch of batches in random order, each of rows of similar length.

    Rows are shuffled, sorted by length within pools of 32 batches, cut, and the batches shuffled again.

    Args:
        lengths: tokens in each row.
        batch_size: rows in a batch; the last one may be smaller.
        generator: the source of randomness; two calls give two orders.
    """
    length = np.asarray(lengths, dtype=np.int64)
    order = torch.randperm(len(length), generator=generator).numpy()
    pool = _LENGTH_POOL * batch_size
    batches = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(length[rows], kind="stable")]
        batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    for position in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[position]


def padded(encoded: Sequence[Sequence[int]], *, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both int64 of shape (rows, longest row); pads stand at the end."""
    width = max(len(row) for row in encoded)
    ids = torch.full((len(encoded), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for position, row in enumerate(encoded):
        ids[position, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[position, : len(row)] = 1
    return ids, mask
