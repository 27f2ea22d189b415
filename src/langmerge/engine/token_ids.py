"""Token ids of a checkpoint's config in the order of another vocabulary."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from langmerge.engine.vocabulary import Alignment
from langmerge.errors import CheckpointError

_ID_KEYS = ("token_id", "token_ids", "token_index", "suppress_tokens")
"""Ends of the keys in config.json and generation_config.json whose values are token ids."""


def renumbered(config: Mapping[str, Any], alignment: Alignment, name: str, size: int) -> dict[str, Any]:
    """A checkpoint's config.json (or generation_config.json) with its token ids in the output's order.

    Those are the keys that end in one of `_ID_KEYS`, also in nested parts; `vocab_size` becomes the output's.

    Args:
        config: of the checkpoint.
        alignment: of all checkpoints.
        name: of the checkpoint.
        size: rows of its embeddings.

    Raises:
        CheckpointError: a token that the output's vocabulary lacks.
    """
    to_output = np.full(size, -1, np.int64)
    rows = alignment.rows.get(name, np.arange(min(size, alignment.pieces)))
    held = np.flatnonzero(rows >= 0)
    to_output[rows[held]] = held

    def changed(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: changed(inner, one) for inner, one in value.items()}
        if isinstance(value, list):
            return [changed(key, one) for one in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if key == "vocab_size" and value == size:
            return alignment.pieces
        # Ids outside of the embeddings (-1, -100) mean something else.
        if not key.endswith(_ID_KEYS) or not 0 <= value < size:
            return value
        if to_output[value] < 0:
            raise CheckpointError(
                f"{key} {value} of {name} stands for a piece that the output's vocabulary lacks: "
                f"take the vocabulary of {name}, or the union"
            )
        return int(to_output[value])

    return {key: changed(key, value) for key, value in config.items()}
