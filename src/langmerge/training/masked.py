"""Masked language modelling: pieces are hidden, and the model says what stood there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from langmerge.errors import TrainingError
from langmerge.models import lm_head
from langmerge.models.encoding import length_bucketed, padded
from langmerge.progress import Progress, silent
from langmerge.training.epochs import Encoded, bare
from langmerge.training.fitting import Pace, fit, mean_loss

SHARE, KEPT, DRAWN = 0.15, 0.1, 0.1
"""Of the pieces that are asked for, and of these: left as they are, replaced by a drawn one (Devlin et al. 2019)."""

HELD_OUT = 200
"""Most texts that are held out to choose the epoch by."""


def masked(
    encoded: Sequence[Sequence[int]],
    rng: np.random.Generator,
    *,
    special: frozenset[int],
    mask_id: int,
    vocabulary: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids with pieces hidden, and for each place the id that stood there, or −1 where nothing is asked.

    One place at least is asked for in every text that has a piece.
    """
    hidden, asked = [], []
    for row in encoded:
        ids, wanted = list(row), [-1] * len(row)
        places = [place for place, one in enumerate(row) if one not in special]
        if places:
            chosen = [place for place in places if rng.random() < SHARE] or [int(rng.choice(places))]
            for place in chosen:
                wanted[place] = row[place]
                draw = rng.random()
                if draw >= KEPT + DRAWN:
                    ids[place] = mask_id
                elif draw >= KEPT:
                    ids[place] = int(rng.integers(vocabulary))
        hidden.append(ids)
        asked.append(wanted)
    return hidden, asked


def masked_loss(
    model: Any, hidden: Sequence[Sequence[int]], asked: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, int]:
    """Sum of cross-entropies in nats over the places that are asked for, and their number.

    The head sees these places only: over all it would cost more than the encoder.
    """
    inner = bare(model)
    device = next(model.parameters()).device
    ids, mask = padded(hidden, pad_id=model.config.pad_token_id or 0)
    wanted = torch.full(ids.shape, -1, dtype=torch.int64)
    for row, one in enumerate(asked):
        wanted[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
    places = wanted >= 0
    if not bool(places.any()):
        return torch.zeros((), device=device), 0
    states = inner.base_model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
    logits = lm_head(inner)(states[places.to(device)])
    loss = torch.nn.functional.cross_entropy(logits.float(), wanted[places].to(device), reduction="sum")
    return loss, int(places.sum())


def train_masked(
    model: Any,
    encoded: Encoded,
    pace: Pace,
    *,
    special: frozenset[int],
    mask_id: int,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a masked LM, or what trains of it, in place; a tenth of the texts is held out to choose the epoch by.

    Args:
        model: a masked LM, or one with an adapter.
        encoded: token ids of each text.
        pace: how fast and how long; every epoch hides other pieces.
        special: ids that are never hidden.
        mask_id: of the mask token.
        progress: told of steps.

    Returns:
        What `fit` does; scores are held-out losses with the sign turned.

    Raises:
        TrainingError: fewer than two texts, or a loss that is not finite.
    """
    if len(encoded) < 2:
        raise TrainingError(
            f"Masked language modelling needs 2 texts or more (one is held out): found {len(encoded)}"
        )
    rng = np.random.default_rng([pace.seed, 1])
    order = rng.permutation(len(encoded))
    held = max(1, min(HELD_OUT, len(encoded) // 10))
    hide: dict[str, Any] = {
        "special": special,
        "mask_id": mask_id,
        "vocabulary": bare(model).config.vocab_size,
    }
    outside = masked([encoded[row] for row in order[:held]], rng, **hide)
    texts = [encoded[row] for row in order[held:]]
    inside = masked(texts, rng, **hide)

    def again() -> None:
        nonlocal inside
        inside = masked(texts, rng, **hide)

    def loss(rows: np.ndarray) -> tuple[torch.Tensor, int]:
        return masked_loss(model, [inside[0][row] for row in rows], [inside[1][row] for row in rows])

    return fit(
        model,
        [len(row) for row in texts],
        pace,
        loss=loss,
        score=lambda: -mean_masked_loss(model, *outside),
        before_epoch=again,
        progress=progress,
    )


def mean_masked_loss(model: Any, hidden: Sequence[Sequence[int]], asked: Sequence[Sequence[int]]) -> float:
    """Mean cross-entropy in nats over the places that are asked for; the model is put into eval mode."""
    batches = length_bucketed([len(row) for row in hidden], batch_tokens=2_048)
    return mean_loss(
        model,
        batches,
        lambda rows: masked_loss(model, [hidden[row] for row in rows], [asked[row] for row in rows]),
    )
