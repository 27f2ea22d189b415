"""Masked language modelling: pieces are hidden, and the model says what stood there."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from langmerge.errors import TrainingError
from langmerge.models import autocast_for_gradients, has_fast_bf16, lm_head
from langmerge.models.encoding import length_bucketed, padded, shuffled_batches
from langmerge.progress import Progress, silent
from langmerge.training.epochs import Best, Encoded, adamw, bare, linear_schedule

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
) -> tuple[Any, int]:
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
    *,
    special: frozenset[int],
    mask_id: int,
    epochs: int,
    lr: float,
    head_lr: float,
    batch_size: int = 32,
    seed: int = 0,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    bf16: bool | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train what trains of a masked LM in place; leave it, in eval mode, at the epoch that is best on held-out text.

    Args:
        model: a masked LM, or one with an adapter.
        encoded: token ids of each text.
        special: ids that are never hidden.
        mask_id: of the mask token.
        epochs: passes; every pass hides other pieces.
        lr: peak rate of the body.
        head_lr: peak rate of the head.
        batch_size: texts in a step.
        seed: of held-out texts, order, dropout and what is hidden.
        warmup: share of the steps in which the rate rises.
        weight_decay: of matrices.
        bf16: bfloat16 products; None takes them where the device is faster with them.
        progress: told of steps.

    Returns:
        train_loss and held_out_loss by epoch (nats a piece), best_epoch, steps.

    Raises:
        TrainingError: fewer than two texts, or a loss that is not finite.
    """
    if len(encoded) < 2:
        raise TrainingError(
            f"Masked language modelling needs 2 texts or more (one is held out): found {len(encoded)}"
        )
    device = next(model.parameters()).device
    bf16 = has_fast_bf16(device) if bf16 is None else bf16
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(encoded))
    held = max(1, min(HELD_OUT, len(encoded) // 10))
    hide: dict[str, Any] = {
        "special": special,
        "mask_id": mask_id,
        "vocabulary": bare(model).config.vocab_size,
    }
    outside = masked([encoded[row] for row in order[:held]], rng, **hide)
    texts = [encoded[row] for row in order[held:]]
    steps = math.ceil(len(texts) / batch_size)
    best, train_loss, held_out_loss = Best(), [], []
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        progress("train", epochs * steps) as advance,
    ):
        torch.manual_seed(seed)
        optimizer = adamw(model, lr=lr, head_lr=head_lr, weight_decay=weight_decay)
        schedule = LambdaLR(optimizer, linear_schedule(steps=epochs * steps, warmup=warmup))
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(1, epochs + 1):
            model.train()
            inputs, asked = masked(texts, rng, **hide)
            total, count = 0.0, 0
            for rows in shuffled_batches(
                [len(row) for row in texts], batch_size=batch_size, generator=generator
            ):
                with autocast_for_gradients(device, bf16):
                    loss, places = masked_loss(
                        model, [inputs[row] for row in rows], [asked[row] for row in rows]
                    )
                if places:
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise TrainingError(
                            f"The loss is {value} at step {schedule.last_epoch + 1}: use a lower learning rate"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(loss / places)
                    optimizer.step()
                    total, count = total + value, count + places
                schedule.step()
                advance(1)
            train_loss.append(total / max(1, count))
            held_out_loss.append(mean_masked_loss(model, *outside))
            best.offer(model, -held_out_loss[-1], epoch)
        best.restore(model)
    return {
        "train_loss": train_loss,
        "held_out_loss": held_out_loss,
        "best_epoch": best.epoch,
        "steps": len(train_loss) * steps,
    }


@torch.inference_mode()
def mean_masked_loss(model: Any, hidden: Sequence[Sequence[int]], asked: Sequence[Sequence[int]]) -> float:
    """Mean cross-entropy in nats over the places that are asked for; the model is put into eval mode."""
    model.eval()
    total, count = 0.0, 0
    for rows in length_bucketed([len(row) for row in hidden], batch_tokens=2_048):
        loss, places = masked_loss(model, [hidden[row] for row in rows], [asked[row] for row in rows])
        total, count = total + float(loss), count + places
    if not math.isfinite(total):
        raise TrainingError("The model gives NaN or infinity on held-out text: use a lower learning rate")
    return total / max(1, count)
