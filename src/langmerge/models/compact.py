"""Word embeddings cut down to the rows that some texts use: two thirds of a multilingual encoder are never looked at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Ids = np.ndarray[Any, np.dtype[np.int64]]


def used_rows(encoded: Sequence[Sequence[int]], *, pad_id: int) -> Ids:
    """Ids that occur in the texts, sorted, and all up to the padding's: it keeps its number, from which models of the
    RoBERTa family count positions.
    """
    seen = {id_ for row in encoded for id_ in row} | set(range(pad_id + 1))
    return np.array(sorted(seen), dtype=np.int64)


def renumbered(encoded: Sequence[Sequence[int]], rows: Ids) -> list[list[int]]:
    """The texts in ids of a cut-down embedding; every id must be among `rows`."""
    place = {int(old): new for new, old in enumerate(rows)}
    return [[place[id_] for id_ in row] for row in encoded]


def cut_embeddings(model: Any, rows: Ids) -> str:
    """Leave only these rows of the model's input embeddings, in place.

    Returns:
        The name of the embeddings' tensor.
    """
    whole = model.get_input_embeddings()
    name: str = next(name for name, own in model.named_parameters() if own is whole.weight)
    with torch.no_grad():
        kept = whole.weight[torch.from_numpy(rows).to(whole.weight.device)].clone()
    cut = torch.nn.Embedding(
        kept.shape[0], kept.shape[1], padding_idx=model.config.pad_token_id, _weight=kept
    )
    model.set_input_embeddings(cut)
    return name
